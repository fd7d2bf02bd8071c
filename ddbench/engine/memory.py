"""Ways of going back through training: what the forward pass keeps, and how the reverse pass gets each step again.

Each way gives the same gradient and trades memory against time.
Notation of the memory laws: T steps are gone back through, W is the size of the weights of all networks of a call,
G that of one step with its graph.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ddbench.engine.inner_steps import Step, Trainer, Weights


@dataclass(frozen=True)
class Footprint:
    """Bytes that the networks of one worker hold: weights, one step with its graph, its `vjp`, the outer loss.

    `outer` is the graph that the real batch leaves in one network.
    """

    weights: int
    step: int
    vjp: int
    outer: int


class InnerLoop:
    """The inner steps `0 .. end - 1` at rates `[T]`; the reverse pass visits those from `first` on.

    `buffers` are the running statistics, which follow the forward pass.
    """

    def __init__(self, trainer: Trainer, rates: list[float], first: int, end: int) -> None:
        self.trainer, self.rates, self.first, self.end = trainer, rates, first, end
        self.buffers = {name: buffer.clone() for name, buffer in trainer.buffers.items()}

    def batch(self, t: int) -> int:
        """Return the index of the batch of step `t`: batches are cycled."""
        return t % len(self.trainer.labels)

    def step(self, t: int, weights: Weights, buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        """Return step `t` at `weights`; running statistics in `buffers` are updated in place."""
        return self.trainer.step(self.batch(t), weights, buffers, with_graph=with_graph)

    def update(self, t: int, weights: Weights, gradient: Sequence[Tensor]) -> Weights:
        """Return `w_{t+1} = w_t - lr_t g_t`."""
        return [w.detach().add(g.detach(), alpha=-self.rates[t]) for w, g in zip(weights, gradient, strict=True)]


class Tape(ABC):
    """The record of one forward pass.

    `record(t, weights)` is called once for every step, in rising order, and `replay(t)` for those from `first` on, in
    falling order; what lies above `t` may be released.
    """

    def __init__(self, loop: InnerLoop) -> None:
        self.loop = loop

    @abstractmethod
    def record(self, t: int, weights: Weights) -> Step:
        """Take step `t` at `weights` and keep what `replay` needs."""

    @abstractmethod
    def replay(self, t: int) -> Step:
        """Return step `t` with its graph."""


class Memory(ABC):
    """A way of going back: opens a `Tape` for each forward pass, and predicts its memory.

    `name` is the user's word for it.
    """

    name: ClassVar[str]

    @abstractmethod
    def tape(self, loop: InnerLoop) -> Tape:
        """Return an empty tape for one forward pass of `loop`."""

    @abstractmethod
    def peak(self, footprint: Footprint, steps: int) -> int:
        """Return the bytes held at the worst moment of going forward and back through `steps` steps."""


@dataclass(frozen=True)
class Store(Memory):
    """Keep the graph of every step: plain back-propagation through the unrolled loop (Domke 2012, AISTATS).

    Fastest: each step is taken once. Memory T (W + G), which limits it to few steps or small networks.
    """

    name: ClassVar[str] = "store"

    def tape(self, loop: InnerLoop) -> Tape:
        """See `Memory.tape`."""
        return _GraphTape(loop)

    def peak(self, footprint: Footprint, steps: int) -> int:
        """See `Memory.peak`."""
        return steps * (footprint.weights + footprint.step) + max(footprint.vjp, footprint.outer)


@dataclass(frozen=True)
class Recompute(Memory):
    """Keep the weights of every step and rebuild one graph at a time (as the code of Wang et al. 2018 does).

    Each step is taken twice. Memory T W + G.
    """

    name: ClassVar[str] = "recompute"

    def tape(self, loop: InnerLoop) -> Tape:
        """See `Memory.tape`."""
        return _WeightTape(loop, 1)

    def peak(self, footprint: Footprint, steps: int) -> int:
        """See `Memory.peak`."""
        return steps * footprint.weights + _one_step(footprint)


@dataclass(frozen=True)
class Checkpoint(Memory):
    """Keep the weights of every k-th step and train again in between (Griewank 1992; Chen et al. 2016, 1604.06174).

    `every` is k; None takes the integer part of sqrt(T), which makes memory least.
    Each step is taken up to three times. Memory (T / k + k) W + G, so about 2 sqrt(T) W + G by default.
    """

    every: int | None = None
    name: ClassVar[str] = "checkpoint"

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"every must be at least 1, not {self.every}")

    def stride(self, steps: int) -> int:
        """Return k for `steps` steps."""
        return self.every or max(1, math.isqrt(steps))

    def tape(self, loop: InnerLoop) -> Tape:
        """See `Memory.tape`."""
        return _WeightTape(loop, self.stride(loop.end - loop.first))

    def peak(self, footprint: Footprint, steps: int) -> int:
        """See `Memory.peak`."""
        stride = self.stride(steps)
        return (math.ceil(steps / stride) + stride) * footprint.weights + _one_step(footprint)


MEMORIES: tuple[Memory, ...] = (Store(), Recompute(), Checkpoint())
"""Every way of going back, the fastest first."""


def _one_step(footprint: Footprint) -> int:
    """Return the bytes of one step and the larger of what follows: its `vjp`, or the outer loss before it exists."""
    return footprint.step + max(footprint.vjp, footprint.outer - footprint.step, 0)


class _GraphTape(Tape):
    """A tape of steps with their graphs."""

    def __init__(self, loop: InnerLoop) -> None:
        super().__init__(loop)
        self.steps: dict[int, Step] = {}

    def record(self, t: int, weights: Weights) -> Step:
        step = self.loop.step(t, weights, self.loop.buffers, with_graph=t >= self.loop.first)
        if t >= self.loop.first:
            self.steps[t] = step
        return step

    def replay(self, t: int) -> Step:
        return self.steps.pop(t)


class _WeightTape(Tape):
    """A tape of the weights of every `stride`-th step; those in between are computed again."""

    def __init__(self, loop: InnerLoop, stride: int) -> None:
        super().__init__(loop)
        self.stride = stride
        self.weights: dict[int, Weights] = {}
        self.places = range(loop.first, loop.end, stride)
        # One block: weights kept one by one between short-lived tensors would leave holes as large as themselves.
        self.block = [w.new_empty((len(self.places), *w.shape)) for w in loop.trainer.start]

    def record(self, t: int, weights: Weights) -> Step:
        if t in self.places:
            place = self.places.index(t)
            self.weights[t] = [slots[place].copy_(w) for slots, w in zip(self.block, weights, strict=True)]
        return self.loop.step(t, weights, self.loop.buffers, with_graph=False)

    def replay(self, t: int) -> Step:
        # Running statistics are complete: going through a step again must not move them.
        scratch = {name: buffer.clone() for name, buffer in self.loop.buffers.items()}
        if t not in self.weights:
            start = self.loop.first + (t - self.loop.first) // self.stride * self.stride
            weights = self.weights[start]
            for s in range(start, t):
                step = self.loop.step(s, weights, scratch, with_graph=False)
                weights = self.weights[s + 1] = self.loop.update(s, weights, step.gradient)
        return self.loop.step(t, self.weights.pop(t), scratch, with_graph=True)
