"""Teachers: networks of a pool, of any architecture, that a method may look at."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic
import torch

from ddbench.contract.examples import DatasetInfo
from ddbench.contract.experts import Teachers, TrainedNetworks
from ddbench.contract.spec import Choice
from ddbench.discovery.catalog import Catalog
from ddbench.engine.fit import POOL_RATE, POOL_STEPS, Recipe
from ddbench.errors import UsageError
from ddbench.pipeline.data import build
from ddbench.pipeline.pools import SMOKE_SIZE, SMOKE_STEPS, Architecture, Pools


@dataclass
class TeacherSource:
    """The teachers of one run, from the networks to train on of a pool; those held out never teach.

    Attributes:
        architecture: the network of the run.
        info: facts about the dataset of the run.
        catalog: the networks that can be named.
        device: the device of the run.
        open_pools: the pools of an architecture on the data of the run.
        smoke: True trains a few networks for a few steps.
    """

    architecture: Architecture
    info: DatasetInfo
    catalog: Catalog
    device: torch.device
    open_pools: Callable[[Architecture], Pools]
    smoke: bool = False
    _pools: list[tuple[Architecture, Pools]] = field(default_factory=list, init=False, repr=False)

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return the facts about the pools of teachers that were opened, by name."""
        return {
            f"teachers/{name}": {"network": architecture.choice.name, **facts}
            for architecture, pools in self._pools
            for name, facts in pools.provenance().items()
        }

    def within(self, time_left: Callable[[], float]) -> Teachers:
        """Return the teachers of a task; none are trained where that would take more than `time_left()` seconds."""

        def teachers(
            count: int = 1,
            *,
            network: str | Mapping[str, Any] | None = None,
            steps: int | None = None,
            lr: float | None = None,
        ) -> TrainedNetworks:
            return self.open(count, network, Recipe(steps or POOL_STEPS, lr or POOL_RATE), time_left)

        return teachers

    def open(
        self,
        count: int,
        network: str | Mapping[str, Any] | None,
        recipe: Recipe,
        time_left: Callable[[], float] = lambda: math.inf,
    ) -> TrainedNetworks:
        """Return so many teachers, trained now where they are not on disk. Raises as `Teachers`."""
        if count < 1:
            raise UsageError(f"{count} teachers were asked for.", "Ask for at least one.")
        if self.smoke:
            count, recipe = min(count, SMOKE_SIZE), Recipe(min(recipe.steps, SMOKE_STEPS), recipe.lr)
        architecture = self._architecture(network)
        module = build(architecture.component, architecture.choice, self.info).to(self.device).eval()
        pool = self._pools_of(architecture).open(count, 0, recipe, patience=time_left())
        stack = pool.weights("train", range(count)).to(self.device)
        return TrainedNetworks(module, tuple(stack.network(index) for index in range(count)))

    def _architecture(self, network: str | Mapping[str, Any] | None) -> Architecture:
        if network is None:
            return self.architecture
        try:
            choice = Choice.from_name(network)
        except pydantic.ValidationError as error:
            raise UsageError(f"{network!r} names no network.", "Give a name, or {name, options}.") from error
        return Architecture(*self.catalog.resolve("network", choice, self.info))

    def _pools_of(self, architecture: Architecture) -> Pools:
        for known, pools in self._pools:
            if known.choice == architecture.choice:
                return pools
        self._pools.append((architecture, self.open_pools(architecture)))
        return self._pools[-1][1]
