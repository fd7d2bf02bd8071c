"""Pools of pretrained networks: trained once, kept by content, those to train on and those held out never mixed."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from ddbench.contract.component import Component
from ddbench.contract.examples import DatasetInfo
from ddbench.contract.inits import InitRequest, Side
from ddbench.contract.metric import Metric
from ddbench.contract.observer import Pace, Reporter, Silent
from ddbench.contract.spec import Choice, RunSpec, Settings
from ddbench.contract.state import State
from ddbench.contract.task import Objective
from ddbench.discovery.catalog import Catalog
from ddbench.engine.fit import Recipe, forecast, train_each
from ddbench.engine.networks import measure
from ddbench.errors import DdbenchError, MissingPrerequisite, UsageError
from ddbench.machine import processes
from ddbench.machine.environment import precision
from ddbench.machine.files import atomic_write
from ddbench.machine.seeds import derive_seed
from ddbench.pipeline.data import Data, build, info_from_facts
from ddbench.pipeline.pool_files import Pool, PoolSpec, alone, used

TRAINED_AT_A_TIME = 32
"""Networks whose starts and results are in memory together while a pool is trained."""
SMOKE_SIZE, SMOKE_STEPS = 8, 20
"""Networks of each side, and steps, that a smoke run's pool has."""
CLASSIFICATION = Objective(
    loss=None,
    measure=lambda logits, labels: {"accuracy": (logits.argmax(-1) == labels).float().mean().item()},
    metrics=(Metric("accuracy", "share"),),
)
_SIDES: tuple[Side, ...] = ("train", "evaluation")


@dataclass(frozen=True)
class Architecture:
    """A network component and the choice that names it, its options spelt out."""

    component: Component
    choice: Choice


@dataclass(frozen=True)
class _Source:
    """Data that networks of a pool are trained on, and their architecture."""

    choice: Choice
    data: Data
    network: Architecture


class Pools:
    """The pools of one run: opens them, trains what they lack, and supplies init distributions with networks.

    Networks are of one `architecture`. `data` are the run's own examples, already loaded. Without `may_train` a
    pool that lacks networks is a `MissingPrerequisite`, and nothing is downloaded.
    """

    def __init__(
        self,
        settings: Settings,
        architecture: Architecture,
        data: Data,
        catalog: Catalog,
        device: torch.device,
        reporter: Reporter | None = None,
        *,
        may_train: bool = True,
    ) -> None:
        self._settings, self._architecture, self._data = settings, architecture, data
        self._catalog, self._device = catalog, device
        self._reporter, self._may_train = reporter or Silent(), may_train
        self._open: dict[str, tuple[Pool, dict[str, Any]]] = {}

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return the facts about each pool that was opened, by its name: how many networks, of which training."""
        return {pool.folder.name: dict(facts) for pool, facts in self._open.values()}

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
        """See `InitRequest.pool`."""
        side, n = request.side, request.n
        size, purpose = (count, "to train on") if side == "train" else (held_out, "held out")
        if n > size:
            option = "count" if side == "train" else "held_out"
            raise UsageError(
                f"the pool has {size} networks {purpose}, fewer than the {n} that are needed.",
                f"Enlarge it with --set init.{option}={n} (eval_init.{option}, target.{option} where it is theirs), "
                "or use fewer networks.",
            )
        if self._settings.smoke:
            count, held_out, steps = min(count, SMOKE_SIZE), min(held_out, SMOKE_SIZE), min(steps, SMOKE_STEPS)
            n, size = min(n, SMOKE_SIZE), min(size, SMOKE_SIZE)
        pool = self.open(count, held_out, Recipe(steps, lr), dataset, sample_shape)
        if side == "evaluation" or n == size:
            return pool.weights(side, range(n))
        return pool.weights(side, torch.randperm(size, generator=request.generator)[:n].tolist())

    def draw(self, init: object, request: InitRequest) -> State | dict[str, Tensor]:
        """See `Supplier.draw`."""
        try:
            choice = Choice.from_name(init)
        except pydantic.ValidationError as error:
            raise UsageError(f"{init!r} names no init distribution.", "Give a name, or {name, options}.") from error
        component, choice = self._catalog.resolve("init", choice)
        drawn: State | dict[str, Tensor] = component.call(choice.options, request)
        return drawn

    def open(
        self,
        count: int,
        held_out: int,
        recipe: Recipe,
        dataset: str | None = None,
        sample_shape: tuple[int, int, int] | None = None,
        patience: float = math.inf,
    ) -> Pool:
        """Return the pool with at least so many networks, trained now where they are missing.

        `dataset` names another dataset than the run's, its images converted to `sample_shape`. Raises
        `MissingPrerequisite` where training would take more than `patience` seconds.
        """
        asked = json.dumps([count, held_out, recipe.steps, recipe.lr, recipe.batch, dataset, sample_shape])
        if asked in self._open:
            return self._open[asked][0]
        source = self._source(dataset, sample_shape)
        info = source.data.train.info
        spec = PoolSpec(
            dataset=source.choice,
            dataset_hash=info.content_hash,
            sample_shape=info.sample_shape,
            validation=self._settings.validation,
            network=source.network.choice,
            network_source=source.network.component.distribution,
            init=self._catalog.resolve("init", RunSpec.model_fields["init"].default)[1],
            steps=recipe.steps,
            lr=recipe.lr,
            batch=recipe.batch,
        )
        pool = Pool(spec.folder, spec)
        sizes: dict[Side, int] = {"train": count, "evaluation": held_out}
        processes.first_alone(lambda: self._fill(pool, sizes, source.network.component, source.data, patience))
        used(pool.folder / "pool.json")
        facts = {
            "networks": count,
            "held_out": held_out,
            "dataset": info.label,
            "steps": recipe.steps,
            "lr": recipe.lr,
        }
        self._open[asked] = pool, facts
        return pool

    def _source(self, dataset: str | None, sample_shape: tuple[int, int, int] | None) -> "_Source":
        """Return the data that a pool is trained on, and the network for them: the run's own unless it is named."""
        settings = self._settings
        if dataset is None:
            return _Source(settings.dataset, self._data, self._architecture)
        component, choice = self._catalog.resolve("dataset", Choice(name=dataset))
        data = Data.load(
            component,
            choice,
            sample_shape,
            settings,
            download=self._may_train,
            catalog=self._catalog,
            reporter=self._reporter,
        )
        facts = info_from_facts(component, data.train.info.sample_shape)
        network = Architecture(*self._catalog.resolve("network", self._architecture.choice, facts))
        return _Source(choice, data, network)

    def _fill(
        self,
        pool: Pool,
        sizes: Mapping[Side, int],
        network: Component,
        data: Data,
        patience: float,
    ) -> None:
        """Train what is missing, one network at a time on each worker; each is written as soon as it is done."""
        spec = pool.spec
        if all(pool.count(side) >= size for side, size in sizes.items()):
            return
        if not self._may_train:
            raise MissingPrerequisite(
                f"the pool {pool.folder.name} lacks networks that would be trained first.",
                "Train them beforehand: ddbench pretrain --help",
            )
        with alone(pool.folder / "pool.json", self._reporter):
            missing = [
                (side, index) for side in _SIDES for index in range(sizes[side]) if not pool.path(side, index).exists()
            ]
            if not missing:
                return
            module = build(network, spec.network, data.train.info).to(self._device)
            train, validation = data.train.to(self._device), data.validation.to(self._device)
            recipe = Recipe(spec.steps, spec.lr, spec.batch)
            if patience < math.inf:
                start = self._start(spec, module, train.info, *missing[0])
                expected = forecast(module, start, train, recipe, len(missing))
                if expected > patience:
                    raise MissingPrerequisite(
                        f"training {len(missing)} networks would take about {expected / 60:.0f} minutes.",
                        f"Train them beforehand: {self._command(spec, sizes)}",
                    )
            atomic_write(pool.folder / "pool.json", spec.model_dump_json(indent=2) + "\n")
            self._reporter.stage(f"Training {len(missing)} networks for the pool {pool.folder.name}")
            pace, accuracies, remaining = Pace(), list[float](), iter(missing)

            def done(state: State) -> None:
                side, index = next(remaining)
                if not state.finite:
                    raise DdbenchError(f"network {side}-{index} of the pool diverged.", f"Lower the rate {spec.lr:g}.")
                accuracies.append(measure(module, state, validation, CLASSIFICATION)["accuracy"])
                pool.write(side, index, state, accuracies[-1])
                pace.tick()
                count = len(accuracies)
                mean = math.fsum(accuracies) / count
                self._reporter.progress(count, len(missing), {"accuracy": mean}, pace.left(len(missing) - count))

            for first in range(0, len(missing), TRAINED_AT_A_TIME):
                part = missing[first : first + TRAINED_AT_A_TIME]
                starts = [self._start(spec, module, train.info, side, index) for side, index in part]
                seeds = [derive_seed("pool", side, index, "order") for side, index in part]
                # A pool serves runs of any precision.
                with precision("float32"):
                    train_each(module, starts, seeds, train, recipe, done)

    def _command(self, spec: PoolSpec, sizes: Mapping[Side, int]) -> str:
        """Return the command that trains this pool and no other."""
        size = f"--count {sizes['train']} --held-out {sizes['evaluation']} --steps {spec.steps} --lr {spec.lr:g}"
        shape = None if self._settings.sample_shape is None else spec.sample_shape
        return pretrain_command(size, spec.dataset, spec.network, shape)

    def start(self, init: Choice, module: nn.Module, info: DatasetInfo, generator: torch.Generator) -> State:
        """Return one network to train, drawn from the init distribution `init`, on the device of the pools."""
        return InitRequest(module, info, 1, generator, "train", self).other(init).network(0)

    def _start(self, spec: PoolSpec, module: nn.Module, info: DatasetInfo, side: Side, index: int) -> State:
        generator = torch.Generator().manual_seed(derive_seed("pool", side, index, "start"))
        return self.start(spec.init, module, info, generator)


def pretrain_command(recipe: str, dataset: Choice, network: Choice, sample_shape: tuple[int, ...] | None) -> str:
    """Return the command line that trains networks of these choices by `recipe`, some of its flags."""
    parts = [f"ddbench pretrain --dataset {dataset.name} --network {network.name} {recipe}"]
    if sample_shape is not None:
        parts.append(f"--sample-shape {' '.join(map(str, sample_shape))}")
    for part, choice in (("network", network), ("dataset", dataset)):
        parts += [f"--set {part}.{key}={json.dumps(value)}" for key, value in choice.options.items()]
    return " ".join(parts)
