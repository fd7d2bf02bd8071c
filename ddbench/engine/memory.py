"""How much memory a meta-gradient takes, found by going through one step with tensors that have shapes but no data."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddbench.contract.task import Loss
from ddbench.engine.inner_steps import trainer
from ddbench.engine.meta_gradient import Memory, group_size

OVERHEAD = 50_000_000
"""Bytes that threads and libraries take whatever the tensors are."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that networks of one worker hold: their weights, one step with its graph, going back through it, the rest.

    `outer` is what the real batch leaves behind in one network.
    """

    weights: int
    step: int
    pull: int
    outer: int

    def peak(self, steps: int, memory: str) -> int:
        """Bytes at the worst moment of `steps` inner steps and back, in a memory mode of `meta_gradient`."""
        if memory == "store":
            kept = steps * (self.weights + self.step)
        elif memory == "recompute":
            kept = steps * self.weights + self.step
        else:
            stride = max(1, math.isqrt(steps))
            kept = (math.ceil(steps / stride) + stride) * self.weights + self.step
        return kept + max(self.pull, self.outer if memory == "store" else max(0, self.outer - self.step))


def fitting_memory(
    network: nn.Module,
    networks: int,
    inputs: tuple[int, ...],
    classes: int,
    total_steps: int,
    real_batch: int,
    free: int,
    *,
    memory: Memory | None = None,
    inner_loss: Loss = F.cross_entropy,
) -> tuple[Memory, int]:
    """The fastest memory mode whose predicted peak is below half of the `free` bytes, and that peak in bytes.

    `memory` asks for one mode. `"checkpoint"` is the answer when nothing fits. `inputs`: `[steps, n, *sample]`.
    """
    together = group_size(network, torch.empty(inputs, device="meta"), networks, inner_loss)
    workers = min(math.ceil(networks / together), torch.get_num_threads())
    one = footprint(network, min(together, networks), inputs, classes, real_batch, inner_loss=inner_loss)
    modes: tuple[Memory, ...] = ("store", "recompute", "checkpoint") if memory is None else (memory,)
    for mode in modes:
        # What libraries hold beside the tensors, and the holes between these, by experience.
        peak = int(1.2 * workers * one.peak(total_steps, mode)) + OVERHEAD
        if peak <= free // 2:
            break
    return mode, peak


def footprint(
    network: nn.Module,
    networks: int,
    inputs: tuple[int, ...],
    classes: int,
    real_batch: int,
    *,
    soft: bool = False,
    inner_loss: Loss = F.cross_entropy,
) -> Footprint:
    """Of `networks` that go together on inputs `[steps, n, *sample]`; `real_batch` examples in the outer loss."""
    module = copy.deepcopy(network).to("meta")
    dtype = next(module.parameters()).dtype
    start = {name: parameter.detach() for name, parameter in module.named_parameters()}
    # One batch stands for all: what a step leaves does not depend on how many there are.
    images = torch.empty((1, *inputs[1:]), device="meta", dtype=dtype)
    labels = torch.empty((1, inputs[1], classes), device="meta", dtype=dtype)
    labels = labels if soft else torch.empty((1, inputs[1]), device="meta", dtype=torch.int64)
    steps = trainer(module, [start] * networks, images, labels, inner_loss)
    weights = sum(tensor.nbytes for tensor in steps.start)

    step, kept, _ = _made(lambda: steps.step(0, steps.start, dict(steps.buffers), with_graph=True))
    _, _, back = _made(lambda: step.pull([torch.zeros_like(tensor) for tensor in steps.start]))

    def outer() -> Tensor:
        with torch.enable_grad():
            logits: Tensor = module.eval()(torch.empty((real_batch, *inputs[2:]), device="meta", dtype=dtype))
            return F.cross_entropy(logits, torch.empty(real_batch, device="meta", dtype=torch.int64))

    return Footprint(weights, kept, back, _made(outer)[1])


def _made(function: Callable[[], Any]) -> tuple[Any, int, int]:
    """What `function` gives, the bytes that are still held with it, and all it made on the way."""
    with _Storages() as storages:
        result = function()
    return result, sum(size for storage, size in storages.made if not storage.expired()), storages.bytes


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every storage that operations make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[tuple[StorageWeakRef, int]] = []
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                held = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self.made.append((held, tensor.nbytes))
                self.bytes += tensor.nbytes
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
