"""A stand-in for pools of pretrained networks, which train for minutes: random weights in the same shape."""

from dataclasses import replace

import torch
from torch import Tensor

from ddbench.contract.inits import InitRequest
from ddbench.contract.spec import Choice
from ddbench.contract.state import State
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError
from ddbench.machine.seeds import derive_seed


class TinyPools:
    """The `Supplier` of a check: network `i` of a pool always has the same weights, and no other network has them."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def pool(
        self,
        request: InitRequest,
        *,
        count: int,
        held_out: int,
        steps: int,
        lr: float,
        dataset: str | None = None,
        sample_shape: tuple[int, int, int] | None = None,
    ) -> State:
        """Return the networks that `InitRequest.pool` would draw. Raises `UsageError` beyond the size of the pool."""
        n, size = request.n, count if request.side == "train" else held_out
        if n > size:
            raise UsageError(
                f"it asks for {n} networks of a pool of {size} for the {request.side} side.", "Ask for a larger pool."
            )
        in_order = request.side == "evaluation" or n == size
        numbers = range(n) if in_order else torch.randperm(size, generator=request.generator)[:n].tolist()
        return State.stack([self._network(request, number) for number in numbers])

    def draw(self, init: object, request: InitRequest) -> State | dict[str, Tensor]:
        """See `Supplier.draw`."""
        component, choice = self._catalog.resolve("init", Choice.from_name(init))
        drawn: State | dict[str, Tensor] = component.call(choice.options, request)
        return drawn

    def _network(self, request: InitRequest, number: int) -> State:
        generator = torch.Generator().manual_seed(derive_seed("tiny pool", request.side, number))
        return replace(request, generator=generator, side="train").other("random", 1).network(0)
