"""Init distributions: the request that one answers, and the states that it may return."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ddbench.contract.examples import DatasetInfo
from ddbench.contract.state import State
from ddbench.errors import PluginError

Side = Literal["train", "evaluation"]


@runtime_checkable
class Supplier(Protocol):
    """The supplier of networks behind a request: pools of trained networks, and other init distributions."""

    def pool(
        self,
        request: "InitRequest",
        *,
        count: int,
        held_out: int,
        steps: int,
        lr: float,
        dataset: str | None = None,
        sample_shape: tuple[int, int, int] | None = None,
    ) -> State:
        """See `InitRequest.pool`."""
        ...

    def draw(self, init: object, request: "InitRequest") -> "State | dict[str, Tensor]":
        """Return the answer of the init distribution `init` to `request`."""
        ...


@dataclass(frozen=True)
class InitRequest:
    """A request for initial networks, the one argument of an init distribution.

    The evaluation side draws other networks than the training side, unless the distribution has only one to give
    (`fixed` returns one, however many were asked for).

    Attributes:
        network: the architecture; its weights are not to be changed.
        info: facts about the dataset that the networks are for.
        n: the number of networks asked for; fewer may be returned where the distribution has no more.
        generator: the random numbers to draw with, on the CPU.
        side: `train` for the networks of methods, `evaluation` for those that score.
        supplier: the pools and init distributions that `pool` and `other` draw on.
    """

    network: nn.Module
    info: DatasetInfo
    n: int
    generator: torch.Generator
    side: Side
    supplier: Supplier

    def pool(
        self,
        *,
        count: int,
        held_out: int,
        steps: int,
        lr: float,
        dataset: str | None = None,
        sample_shape: tuple[int, int, int] | None = None,
        side: Side | None = None,
        n: int | None = None,
    ) -> State:
        """Return `n` networks of the run's architecture, trained on `dataset` (None: the run's own), stacked.

        The pool has `count` networks to draw from and `held_out` others to score on; missing networks are trained
        first, by `steps` of Adam at rate `lr`. `side` and `n` are those of the request unless they are given.
        Raises `UsageError` where the pool has fewer than `n`.
        """
        request = replace(self, side=side or self.side, n=self.n if n is None else n)
        return self.supplier.pool(
            request,
            count=count,
            held_out=held_out,
            steps=steps,
            lr=lr,
            dataset=dataset,
            sample_shape=sample_shape,
        )

    def other(self, init: object, n: int | None = None) -> State:
        """Draw from another init distribution: a name, or a mapping of `name` and `options`.

        Raises `PluginError` where it returns no valid networks.
        """
        request = replace(self, n=self.n if n is None else n)
        return checked_state(self.supplier.draw(init, request), request.network, request.n)


InitDistribution = Callable[[InitRequest], State | dict[str, Tensor]]
"""A distribution with its options bound: returns stacked networks, or only parameters `{name: [n, *shape]}`."""


def checked_state(drawn: object, network: nn.Module, n: int) -> State:
    """Return what an init distribution drew as a stack of up to `n` states, on the device of `network`.

    Where buffers are missing, each network gets a copy of the module's own. Raises `PluginError` for names or shapes
    that are not those of `network`, and for values that are not finite.
    """
    state = State(drawn) if isinstance(drawn, dict) else drawn
    params, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    if not isinstance(state, State) or state.params.keys() != params.keys():
        raise PluginError("the init distribution did not return the network's parameters by name.")
    unknown = next((name for name in state.buffers if name not in buffers), None)
    if unknown is not None:
        raise PluginError(
            f"the init distribution returned the buffer {unknown!r}, which the network does not have.",
            f"Its buffers are: {', '.join(buffers) or 'no buffers at all'}.",
        )
    count = len(next(iter(state.params.values()))) if state.params else n
    count = min(max(count, 1), n)
    for part, wanted in ((state.params, params), (state.buffers, buffers)):
        for name, tensor in part.items():
            if tuple(tensor.shape) != (count, *wanted[name].shape):
                raise PluginError(
                    f"the init distribution returned {name} of shape {list(tensor.shape)}.",
                    f"Up to {n} networks of shape {list(wanted[name].shape)} are expected, the same number everywhere.",
                )
            if not torch.isfinite(tensor).all():
                raise PluginError(f"the init distribution returned NaN or infinite values in {name}.")
    drawn_buffers = {
        name: state.buffers[name] if name in state.buffers else own[None].expand(count, *own.shape).clone()
        for name, own in buffers.items()
    }
    return State(_like(state.params, params), _like(drawn_buffers, buffers))


def _like(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in the order, type and place of `wanted`."""
    return {name: tensors[name].detach().to(own) for name, own in wanted.items()}
