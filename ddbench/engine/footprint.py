"""Prediction of the memory that a meta-gradient takes, from one step with tensors that have shapes but no data."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddbench.contract.state import State
from ddbench.contract.task import Loss, cross_entropy
from ddbench.engine.allocations import allocated
from ddbench.engine.batches import Batches
from ddbench.engine.inner_steps import Engine, choose_engine
from ddbench.engine.memory import MEMORIES, Footprint, Memory
from ddbench.engine.workers import worker_count
from ddbench.machine.environment import free_memory

OVERHEAD = 50_000_000
"""Bytes that threads and libraries take whatever the tensors are."""
SLACK = 1.2
"""Factor on the tensors' bytes for allocations of libraries and gaps between blocks, by experience."""


def fastest_fitting(
    network: nn.Module,
    networks: int,
    inputs: tuple[int, ...],
    steps: int,
    real_batch: int,
    device: torch.device,
    *,
    among: Sequence[Memory] = MEMORIES,
    moments: int = 0,
    inner_loss: Loss = cross_entropy,
) -> tuple[Memory, int]:
    """Return the fastest way of going back whose predicted peak is below half of the free memory, and that peak.

    `inputs` is the shape `[steps, n, *sample]` of the distilled examples, `steps` the number of inner steps gone back
    through, and `real_batch` the number of examples in the outer loss (0 for a distance of parameters). `moments` is
    that of the inner optimiser: 0 for plain gradient descent, 1 with momentum, 2 for Adam. The peak is in bytes.
    `among` lists the choices, the fastest first; the last one is returned when none fits.
    """
    images = torch.empty(inputs, device="meta")
    engine = choose_engine(network, images, networks, inner_loss)
    workers = worker_count(network, math.ceil(networks / engine.stack))
    footprint = _footprint(engine, network, min(engine.stack, networks), images, real_batch, moments, inner_loss)
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
    real_batch: int,
    moments: int,
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
    trainer = engine.trainer(module, [start] * networks, Batches(images, labels), inner_loss)
    weights = sum(tensor.nbytes for tensor in trainer.start)

    step, held, _ = allocated(lambda: trainer.step(0, trainer.start, dict(trainer.buffers), with_graph=True))
    _, _, total = allocated(lambda: step.vjp([torch.zeros_like(tensor) for tensor in trainer.start]))

    def outer_loss() -> Tensor:
        with torch.enable_grad():
            logits: Tensor = module.eval()(torch.empty((real_batch, *inputs.shape[2:]), device="meta", dtype=dtype))
            return F.cross_entropy(logits, torch.empty(real_batch, device="meta", dtype=torch.int64))

    outer = allocated(outer_loss)[1] if real_batch else weights
    # The adjoint of an update with moments holds those before and after the step.
    return Footprint(weights * (1 + moments), held, total + 3 * moments * weights, outer)
