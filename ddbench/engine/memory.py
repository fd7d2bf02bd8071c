"""Ways of going back through training: what the forward pass keeps, and how the reverse pass gets each step again.

Each way gives the same gradient and trades memory against time.
Notation of the memory laws: T steps are gone back through, W is the size of the inner state of all networks of a call
(weights, and the moments of the inner optimiser: one for momentum, two for Adam), G that of one step with its graph.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ddbench.engine.inner_optimisers import InnerOptimiser, InnerState
from ddbench.engine.inner_steps import Step, Trainer


@dataclass(frozen=True)
class Footprint:
    """Bytes that the networks of one worker hold: inner state, one step with its graph, its `vjp`, the outer loss.

    `state` is that of weights and moments, and `outer` the graph that the real batch leaves in one network.
    """

    state: int
    step: int
    vjp: int
    outer: int


class InnerLoop:
    """The inner steps `0 .. end - 1`; the reverse pass visits those from `first` on.

    `buffers` are the running statistics, which follow the forward pass.
    """

    def __init__(self, trainer: Trainer, optimiser: InnerOptimiser, first: int, end: int) -> None:
        self.trainer, self.optimiser, self.first, self.end = trainer, optimiser, first, end
        self.start = optimiser.start(trainer.start)
        self.buffers = {name: buffer.clone() for name, buffer in trainer.buffers.items()}

    def step(self, t: int, state: InnerState, buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        """Return step `t` at the weights of `state`; running statistics in `buffers` are updated in place."""
        return self.trainer.step(t, state.weights, buffers, with_graph=with_graph)

    def update(self, t: int, state: InnerState, step: Step) -> InnerState:
        """Return the state after step `t`."""
        gradient = [g.detach() for g in step.gradient]
        return self.optimiser.update(t, state, gradient, differentiable=t >= self.first)


class Tape(ABC):
    """The record of one forward pass.

    `advance(t, state)` is called once for every step, in rising order, and `replay(t)` for those from `loop.first` on,
    in falling order; what lies above `t` may be released.
    """

    def __init__(self, loop: InnerLoop) -> None:
        self.loop = loop

    @abstractmethod
    def advance(self, t: int, state: InnerState) -> InnerState:
        """Take step `t` from `state`, keep what `replay` needs, and return the state after it."""

    @abstractmethod
    def replay(self, t: int) -> tuple[InnerState, Step]:
        """Return the state before step `t`, and the step with its graph."""


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
        return steps * (footprint.state + footprint.step) + max(footprint.vjp, footprint.outer)


@dataclass(frozen=True)
class Recompute(Memory):
    """Keep the state before every step and rebuild one graph at a time (as the code of Wang et al. 2018 does).

    Each step is taken twice. Memory T W + G.
    """

    name: ClassVar[str] = "recompute"

    def tape(self, loop: InnerLoop) -> Tape:
        """See `Memory.tape`."""
        return _StateTape(loop, 1)

    def peak(self, footprint: Footprint, steps: int) -> int:
        """See `Memory.peak`."""
        return steps * footprint.state + one_step(footprint)


@dataclass(frozen=True)
class Checkpoint(Memory):
    """Keep the state before every k-th step and train again in between (Griewank 1992; Chen et al. 2016, 1604.06174).

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
        return _StateTape(loop, self.stride(loop.end - loop.first))

    def peak(self, footprint: Footprint, steps: int) -> int:
        """See `Memory.peak`."""
        stride = self.stride(steps)
        return (math.ceil(steps / stride) + stride) * footprint.state + one_step(footprint)


MEMORIES: tuple[Memory, ...] = (Store(), Recompute(), Checkpoint())
"""Every way of going back, the fastest first."""


def one_step(footprint: Footprint) -> int:
    """Return the bytes of one step and the larger of what follows: its `vjp`, or the outer loss before it exists."""
    return footprint.step + max(footprint.vjp, footprint.outer - footprint.step, 0)


class _GraphTape(Tape):
    """A tape of steps with their graphs."""

    def __init__(self, loop: InnerLoop) -> None:
        super().__init__(loop)
        self.steps: dict[int, tuple[InnerState, Step]] = {}

    def advance(self, t: int, state: InnerState) -> InnerState:
        step = self.loop.step(t, state, self.loop.buffers, with_graph=t >= self.loop.first)
        if t >= self.loop.first:
            self.steps[t] = state, step
        return self.loop.update(t, state, step)

    def replay(self, t: int) -> tuple[InnerState, Step]:
        return self.steps.pop(t)


class _StateTape(Tape):
    """A tape of the state before every `stride`-th step; those in between are computed again."""

    def __init__(self, loop: InnerLoop, stride: int) -> None:
        super().__init__(loop)
        self.stride = stride
        self.states: dict[int, InnerState] = {}
        self.places = range(loop.first, loop.end, stride)
        # One block: states kept one by one between short-lived tensors would leave holes as large as themselves.
        self.block = loop.start.map(lambda tensor: tensor.new_empty((len(self.places), *tensor.shape)))

    def advance(self, t: int, state: InnerState) -> InnerState:
        if t in self.places:
            place = self.places.index(t)
            self.states[t] = self.block.map(lambda slots, tensor: slots[place].copy_(tensor), state)
        step = self.loop.step(t, state, self.loop.buffers, with_graph=False)
        return self.loop.update(t, state, step)

    def replay(self, t: int) -> tuple[InnerState, Step]:
        # Running statistics are complete: going through a step again must not move them.
        scratch = {name: buffer.clone() for name, buffer in self.loop.buffers.items()}
        if t not in self.states:
            start = self.loop.first + (t - self.loop.first) // self.stride * self.stride
            state = self.states[start]
            for s in range(start, t):
                state = self.states[s + 1] = self.loop.update(
                    s, state, self.loop.step(s, state, scratch, with_graph=False)
                )
        state = self.states.pop(t)
        return state, self.loop.step(t, state, scratch, with_graph=True)
