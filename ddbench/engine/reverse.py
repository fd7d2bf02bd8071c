"""Going back by undoing the steps: momentum SGD in fixed point, run backwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddbench.engine.fixed_point import ReversibleMomentum, as_ratio
from ddbench.engine.inner_optimisers import SGD, InnerState
from ddbench.engine.inner_steps import Step, Weights
from ddbench.engine.memory import Footprint, InnerLoop, Memory, Tape, one_step
from ddbench.errors import DdbenchError


@dataclass(frozen=True)
class Reverse(Memory):
    """Keep only the last weights and velocities, and undo one step after the other (Maclaurin et al. 2015, 1502.03492).

    The steps must be those of `SGD` with momentum; without momentum nothing can be undone.
    They are taken in fixed point with 52 binary places (`engine.fixed_point`), so results differ from those of the
    other ways by rounding. Numbers must stay below 1024. The momentum is the nearest ratio of integers up to 2^16.

    Each step is taken twice. Memory 24 bytes and T log2(1 / momentum) bits for each weight, and G. With momentum 0.9
    the bits of 1000 steps are 19 bytes. The arithmetic of a step needs up to 40 bytes more for each weight.

    Undoing needs the same gradient, to the last bit, in both directions. The first step is taken twice to see whether
    it is; after the last step undone, weights and velocities must have the bytes that they began with.
    Otherwise `DdbenchError` is raised.
    """

    name: ClassVar[str] = "reverse"

    def tape(self, loop: InnerLoop) -> Tape:
        """See `Memory.tape`. Raises `ValueError` for an optimiser without momentum."""
        return _ReversibleTape(loop)

    def peak(self, footprint: Footprint, steps: int) -> int:
        """See `Memory.peak`."""
        # In units of weights and velocities in float32, 8 bytes: 24 bytes are 3, those while a step is undone 5. The
        # buffer's bits are those of momentum 0.9.
        return (8 + steps // 400) * footprint.state + one_step(footprint)


class _ReversibleTape(Tape):
    """A tape that holds weights and velocities of the latest step in fixed point."""

    def __init__(self, loop: InnerLoop) -> None:
        super().__init__(loop)
        if not isinstance(loop.optimiser, SGD):
            raise ValueError(f"Reverse() undoes the steps of SGD with momentum, not of {type(loop.optimiser).__name__}")
        self.rates, momentum, self.decay = loop.optimiser.schedules(loop.end)
        self.momentum = [as_ratio(value) for value in momentum]

    def advance(self, t: int, state: InnerState) -> InnerState:
        if t < self.loop.first:
            return self.loop.update(t, state, self.loop.step(t, state, self.loop.buffers, with_graph=False))
        if t == self.loop.first:
            self.exact = ReversibleMomentum(_flat(state.weights), _flat(state.moments[0]))
            self._probe(t)
        # Not without a graph: some derivatives are rounded in another way then.
        step = self.loop.step(t, self._state(), self.loop.buffers, with_graph=True)
        self.exact.step(_flat(step.gradient), self.rates[t], self.momentum[t], self.decay[t])
        return self._state()

    def replay(self, t: int) -> tuple[InnerState, Step]:
        try:
            self.exact.undo_weights(self.rates[t])
            step = self.loop.step(t, self._state(), self._scratch_buffers(), with_graph=True)
            self.exact.undo_velocities(_flat(step.gradient), self.momentum[t], self.decay[t])
        except DdbenchError as error:
            # The forward pass stayed in range.
            raise _not_deterministic("left the range of numbers on the way back") from error
        if t == self.loop.first and not self.exact.at_start:
            raise _not_deterministic("did not arrive at the initial weights")
        return self._state(), step

    def _state(self) -> InnerState:
        """Return weights and velocities as the trainer has them."""
        like = self.loop.trainer.start
        return InnerState(_like(self.exact.weights, like), (_like(self.exact.velocities, like),))

    def _probe(self, t: int) -> None:
        """Raise `DdbenchError` where the first step has another gradient the second time."""
        first, second = (
            self.loop.step(t, self._state(), self._scratch_buffers(), with_graph=True).gradient for _ in range(2)
        )
        if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
            raise _not_deterministic("had another gradient when it was repeated")

    def _scratch_buffers(self) -> dict[str, Tensor]:
        """Return running statistics that a step may move."""
        return {name: buffer.clone() for name, buffer in self.loop.buffers.items()}


def _flat(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([w.detach().flatten() for w in weights])


def _like(flat: Tensor, weights: Weights) -> Weights:
    parts = torch.split(flat, [w.numel() for w in weights])
    return [part.view(w.shape).to(w.dtype) for part, w in zip(parts, weights, strict=True)]


def _not_deterministic(symptom: str) -> DdbenchError:
    return DdbenchError(
        f"the network's gradients are not deterministic: training in reverse {symptom}.",
        "Remove randomness from the network, set torch.use_deterministic_algorithms(True), or take Recompute().",
    )
