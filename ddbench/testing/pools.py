"""A stand-in for pools of pretrained networks, which train for minutes: random weights in the same shape."""

import torch
from torch import Tensor, nn

from ddbench.contract.examples import DatasetInfo
from ddbench.contract.spec import Choice
from ddbench.contract.task import Side
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError
from ddbench.machine.seeds import derive_seed
from ddbench.pipeline.pools import sampler_arguments


class TinySources:
    """The `Sources` of a check: network `i` of a pool always has the same weights, and no other network has them."""

    def __init__(self, catalog: Catalog, module: nn.Module, info: DatasetInfo) -> None:
        self._catalog, self._module, self._info = catalog, module, info

    def pool(
        self,
        side: Side,
        n: int,
        generator: torch.Generator,
        *,
        count: int,
        held_out: int,
        steps: int,
        lr: float,
        dataset: str | None = None,
        sample_shape: tuple[int, int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Return `n` networks of the pool, drawn as `Sources.pool` draws them. Raises `UsageError` beyond its size."""
        size = count if side == "train" else held_out
        if n > size:
            raise UsageError(
                f"it asks for {n} networks of a pool of {size} for the {side} side.", "Ask for a larger pool."
            )
        in_order = side == "evaluation" or n == size
        numbers = range(n) if in_order else torch.randperm(size, generator=generator)[:n].tolist()
        networks = [self._network(side, number) for number in numbers]
        return {name: torch.cat([network[name] for network in networks]) for name in networks[0]}

    def draw(
        self, init: object, network: nn.Module, info: DatasetInfo, n: int, generator: torch.Generator, side: Side
    ) -> dict[str, Tensor]:
        """Return weights from another init distribution: a name, or a mapping of `name` and `options`."""
        component, choice = self._catalog.resolve("init", Choice.from_name(init))
        arguments = sampler_arguments(component.function, (network, info, n, generator, side), self)
        drawn: dict[str, Tensor] = component.call(choice.options, *arguments)
        return drawn

    def _network(self, side: Side, number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(derive_seed("tiny pool", side, number))
        return self.draw("random", self._module, self._info, 1, generator, "train")
