"""The state of networks: parameters and running statistics, of one network or of a stack of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Params = Mapping[str, Tensor]
"""Tensors by name: parameters of one network `{name: shape}`, or of several `{name: [nets, *shape]}`."""


@dataclass(frozen=True)
class State:
    """Parameters and buffers of one network, `{name: shape}`, or of a stack of them, `{name: [nets, *shape]}`.

    `buffers` holds the running statistics of batch normalisation; it is empty for networks without them.
    """

    params: dict[str, Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def network(self, index: int) -> "State":
        """Return the state of one network of a stack."""
        params, buffers = ({name: t[index] for name, t in part.items()} for part in (self.params, self.buffers))
        return State(params, buffers)
