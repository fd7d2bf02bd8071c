"""The state of networks: parameters and running statistics, of one network or of a stack of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

Params = Mapping[str, Tensor]
"""Tensors by name: parameters of one network `{name: shape}`, or of several `{name: [nets, *shape]}`."""


@dataclass(frozen=True)
class State:
    """Parameters and buffers of one network, `{name: shape}`, or of a stack of them, `{name: [nets, *shape]}`.

    Attributes:
        params: the parameters by name.
        buffers: the running statistics of batch normalisation, and other buffers, by name. Where a buffer is missing,
            the network's own is meant.
    """

    params: dict[str, Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def stack(cls, states: Sequence["State"]) -> Self:
        """Return the stack of several networks; a buffer that one of them lacks is left out."""
        params = {name: torch.stack([state.params[name] for state in states]) for name in states[0].params}
        shared = [name for name in states[0].buffers if all(name in state.buffers for state in states)]
        return cls(params, {name: torch.stack([state.buffers[name] for state in states]) for name in shared})

    @property
    def count(self) -> int:
        """The number of networks of a stack."""
        return len(next(iter(self.params.values())))

    def network(self, index: int) -> "State":
        """Return the state of one network of a stack."""
        params, buffers = ({name: t[index] for name, t in part.items()} for part in (self.params, self.buffers))
        return State(params, buffers)

    def networks(self, indices: Tensor | slice) -> "State":
        """Return the stack of the networks of these indices, in their order."""
        params, buffers = ({name: t[indices] for name, t in part.items()} for part in (self.params, self.buffers))
        return State(params, buffers)

    def to(self, device: torch.device) -> "State":
        """Return the same state on `device`."""
        params, buffers = ({name: t.to(device) for name, t in part.items()} for part in (self.params, self.buffers))
        return State(params, buffers)

    @property
    def finite(self) -> bool:
        """True where no tensor holds NaN or an infinite value."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in (*self.params.values(), *self.buffers.values()))
