"""Prediction of the memory that a meta-gradient takes, from one step with tensors that have shapes but no data."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddbench.contract.state import State
from ddbench.contract.task import Loss, cross_entropy
from ddbench.engine.inner_steps import Engine, choose_engine
from ddbench.engine.memory import MEMORIES, Footprint, Memory
from ddbench.machine.environment import free_memory

OVERHEAD = 50_000_000
"""Bytes that threads and libraries take whatever the tensors are."""
SLACK = 1.2
"""Factor on the tensors' bytes for allocations of libraries and gaps between blocks, by experience."""


def fastest_fitting(
    network: nn.Module,
    networks: int,
    inputs: tuple[int, ...],
    classes: int,
    steps: int,
    real_batch: int,
    device: torch.device,
    *,
    among: Sequence[Memory] = MEMORIES,
    inner_loss: Loss = cross_entropy,
) -> tuple[Memory, int]:
    """Return the fastest way of going back whose predicted peak is below half of the free memory, and that peak.

    `inputs` is the shape `[steps, n, *sample]` of the distilled examples, `steps` the number of inner steps gone back
    through, and `real_batch` the number of examples in the outer loss. The peak is in bytes.
    `among` lists the choices, the fastest first; the last one is returned when none fits.
    """
    images = torch.empty(inputs, device="meta")
    engine = choose_engine(network, images, networks, inner_loss)
    workers = min(math.ceil(networks / engine.stack), torch.get_num_threads())
    footprint = _footprint(engine, network, min(engine.stack, networks), images, classes, real_batch, inner_loss)
    half = free_memory(device) // 2
    for memory in among:
        peak = int(SLACK * workers * memory.peak(footprint, steps)) + OVERHEAD
        if peak <= half:
            break
    return memory, peak


def _footprint(
    engine: Engine,
    network: nn.Module,
    networks: int,
    inputs: Tensor,
    classes: int,
    real_batch: int,
    inner_loss: Loss,
) -> Footprint:
    """Return the footprint of `networks` in one call on inputs `[steps, n, *sample]`, with hard labels."""
    module = copy.deepcopy(network).to("meta")
    dtype = next(module.parameters()).dtype
    params = {name: parameter.detach() for name, parameter in module.named_parameters()}
    start = State(params, dict(module.named_buffers()))
    # One batch stands for all: the memory of a step does not depend on their number.
    images = torch.empty((1, *inputs.shape[1:]), device="meta", dtype=dtype)
    labels = torch.empty((1, inputs.shape[1]), device="meta", dtype=torch.int64)
    trainer = engine.trainer(module, [start] * networks, images, labels, inner_loss)
    weights = sum(tensor.nbytes for tensor in trainer.start)

    step, held, _ = _allocated(lambda: trainer.step(0, trainer.start, dict(trainer.buffers), with_graph=True))
    _, _, total = _allocated(lambda: step.vjp([torch.zeros_like(tensor) for tensor in trainer.start]))

    def outer_loss() -> Tensor:
        with torch.enable_grad():
            logits: Tensor = module.eval()(torch.empty((real_batch, *inputs.shape[2:]), device="meta", dtype=dtype))
            return F.cross_entropy(logits, torch.empty(real_batch, device="meta", dtype=torch.int64))

    return Footprint(weights, held, total, _allocated(outer_loss)[1])


def _allocated(function: Callable[[], Any]) -> tuple[Any, int, int]:
    """Return the result of `function`, the bytes still held with it, and all bytes allocated on the way."""
    with _Allocations() as allocations:
        result = function()
    held = sum(size for storage, size in allocations.storages if not storage.expired())
    return result, held, sum(size for _, size in allocations.storages)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A list of every storage that operations allocate, with its bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                self.storages.append((StorageWeakRef(storage), tensor.nbytes))  # type: ignore[no-untyped-call]
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
