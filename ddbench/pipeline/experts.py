"""Experts on disk: trained once, one file each with the weights of every epoch, read epoch by epoch."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddbench.contract.examples import ExampleSet
from ddbench.contract.experts import ExpertRecipe, Experts, Trajectories
from ddbench.contract.observer import Pace, Reporter
from ddbench.contract.spec import Choice, RunSpec, Settings
from ddbench.contract.state import State
from ddbench.discovery.catalog import Catalog
from ddbench.engine.experts import OutOfTime, forecast_experts, train_experts
from ddbench.engine.networks import measure
from ddbench.errors import DdbenchError, MissingPrerequisite, UsageError
from ddbench.machine import processes
from ddbench.machine.environment import precision
from ddbench.machine.files import atomic_write, sha256
from ddbench.machine.folders import cache_dir
from ddbench.machine.seeds import derive_seed
from ddbench.pipeline.data import Data, build
from ddbench.pipeline.pool_files import alone, flattened, folder_name, readable, unflattened, used
from ddbench.pipeline.pools import CLASSIFICATION, Architecture, Pools, pretrain_command

SMOKE_EXPERTS, SMOKE_EPOCHS = 2, 4
"""Experts and epochs of a smoke run: methods match segments of up to three epochs."""


class ExpertSpec(pydantic.BaseModel):
    """Everything that decides about the weights of experts; a change of any of it changes the key."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    dataset: Choice
    dataset_hash: str
    sample_shape: tuple[int, ...]
    validation: float
    examples: int
    network: Choice
    network_source: str
    init: Choice
    recipe: ExpertRecipe

    @property
    def key(self) -> str:
        """SHA-256 of all fields."""
        return sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode())

    @property
    def folder(self) -> Path:
        """The folder of the experts."""
        return cache_dir() / "experts" / folder_name(self.dataset, self.network, self.key)


class StoredTrajectories:
    """The first `count` experts of a folder; see `Trajectories`. Nothing of them is kept in memory."""

    def __init__(self, spec: ExpertSpec, count: int, device: torch.device) -> None:
        self.spec, self.folder = spec, spec.folder
        self._count, self._device = count, device

    @property
    def epochs(self) -> int:
        """The last epoch; epoch 0 is the untrained network."""
        return self.spec.recipe.epochs

    def __len__(self) -> int:
        return self._count

    def trajectory(self, expert: int) -> dict[str, Float[Tensor, " states *shape"]]:
        """See `Trajectories.trajectory`."""
        path = self._existing(expert)
        with readable(path):
            tensors = safetensors.torch.load(path.read_bytes())
        return unflattened(tensors).to(self._device).params

    def start(self, expert: int, epoch: int) -> State:
        """See `Trajectories.start`."""
        path = self._existing(expert)
        if not 0 <= epoch <= self.epochs:
            raise UsageError(
                f"the experts have epochs 0 to {self.epochs}; epoch {epoch} was asked for.",
                "Choose among the `epochs` of the result of task.experts: a smoke run has few.",
            )
        with readable(path), safetensors.safe_open(path, "pt") as file:
            # Copies: the tensors of the file are views of it.
            tensors = {name: file.get_slice(name)[epoch].clone() for name in file.keys()}  # noqa: SIM118  no mapping
        return unflattened(tensors).to(self._device)

    def path(self, expert: int) -> Path:
        """Return the file of one expert."""
        return self.folder / f"expert-{expert:05d}.safetensors"

    def write(self, expert: int, trajectory: State, accuracy: float) -> None:
        """Write the file of one expert. Raises `DdbenchError` where the disk is full."""
        facts = {"accuracy": accuracy, "expert": expert, "key": self.spec.key}
        try:
            # Of several entries of metadata the order in the file would be random.
            raw = safetensors.torch.save(flattened(trajectory), {"facts": json.dumps(facts)})
            atomic_write(self.path(expert), raw)
        except DdbenchError as error:
            kept = f"Experts 0 to {expert - 1} are kept. " if expert else ""
            raise DdbenchError(
                error.message,
                f"{kept}Free some space, or name a folder with more of it: "
                "DDBENCH_CACHE=...; the same command continues from there.",
            ) from error

    def check(self, expert: int) -> None:
        """Raise `DdbenchError` where the file of an expert is damaged, or holds another expert or recipe."""
        path = self.path(expert)
        with readable(path), safetensors.safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        if (facts.get("key"), facts.get("expert")) != (self.spec.key, expert):
            raise DdbenchError(
                f"{path} does not hold expert {expert} of this network, dataset and recipe.",
                "Remove the file; the expert is trained again when it is needed.",
            )

    def _existing(self, expert: int) -> Path:
        if not 0 <= expert < self._count:
            raise UsageError(
                f"there are {self._count} experts; expert {expert} was asked for.",
                "Number them from 0 to len(experts) - 1: a smoke run has few.",
            )
        return self.path(expert)


@dataclass
class ExpertSource:
    """The experts of one run: opens them, and trains those that are not on disk.

    Attributes:
        base: the fields of `ExpertSpec` without the recipe.
        module: the architecture, on the device of the run.
        start: the untrained state of an expert, drawn with its generator.
        train: the examples to train on.
        validation: the examples to measure the trained experts on, for the list of experts.
        reporter: the place where the training is shown.
        command: the command that trains experts of this network and dataset, without their recipe.
        may_train: False raises `MissingPrerequisite` for experts that are not on disk.
        smoke: True trains a few experts for a few epochs.
    """

    base: Mapping[str, Any]
    module: nn.Module
    start: Callable[[torch.Generator], State]
    train: ExampleSet
    validation: ExampleSet
    reporter: Reporter
    command: str = "ddbench pretrain --experts"
    may_train: bool = True
    smoke: bool = False
    _opened: dict[tuple[ExpertRecipe, int], StoredTrajectories] = field(default_factory=dict, init=False, repr=False)

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return the facts about the experts that were opened, by the name of their folder."""
        return {
            experts.folder.name: {
                "experts": len(experts),
                "dataset": self.train.info.label,
                **experts.spec.recipe.model_dump(exclude_defaults=True),
                "epochs": experts.epochs,
                "lr": experts.spec.recipe.lr,
            }
            for experts in sorted(self._opened.values(), key=len)
        }

    def within(self, time_left: Callable[[], float]) -> Experts:
        """Return the experts of a task; what is trained for it ends where `time_left()` seconds reach zero."""

        def experts(count: int = 10, **recipe: Any) -> Trajectories:
            return self.open(ExpertRecipe.parse(**recipe), count, time_left)

        return experts

    def open(
        self, recipe: ExpertRecipe, count: int, time_left: Callable[[], float] = lambda: math.inf
    ) -> StoredTrajectories:
        """Return so many experts, trained now where they are not on disk. Raises as `Experts`."""
        if count < 1:
            raise UsageError(f"{count} experts were asked for.", "Ask for at least one.")
        if self.smoke:
            count = min(count, SMOKE_EXPERTS)
            recipe = recipe.model_copy(update={"epochs": min(recipe.epochs, SMOKE_EPOCHS)})
        if (recipe, count) not in self._opened:
            device = next(self.module.parameters()).device
            experts = StoredTrajectories(ExpertSpec(**self.base, recipe=recipe), count, device)
            processes.first_alone(lambda: self._fill(experts, time_left))
            self._opened[recipe, count] = experts
        return self._opened[recipe, count]

    def _fill(self, experts: StoredTrajectories, time_left: Callable[[], float]) -> None:
        """Check the experts that are on disk, and train the others; each is written as soon as it is done."""
        if not all(experts.path(number).exists() for number in range(len(experts))):
            if not self.may_train:
                raise MissingPrerequisite(self._notice(experts, would=True), f"{self._remedy(experts)}")
            with alone(experts.folder / "experts.json", self.reporter):
                self._train(experts, time_left)
        for number in range(len(experts)):
            experts.check(number)
        used(experts.folder / "experts.json")

    def _train(self, experts: StoredTrajectories, time_left: Callable[[], float]) -> None:
        missing = self._missing(experts)
        if not missing:
            return
        recipe = experts.spec.recipe
        notice = self._notice(experts)
        atomic_write(experts.folder / "experts.json", experts.spec.model_dump_json(indent=2) + "\n")
        self.reporter.say(notice)
        self.reporter.stage(f"Training {len(missing)} experts")
        epochs, pace, accuracies, remaining = len(missing) * recipe.epochs, Pace(), list[float](), iter(missing)
        done = 0

        def epoch_done() -> None:
            nonlocal done
            done += 1
            pace.tick()
            mean = {"accuracy": math.fsum(accuracies) / len(accuracies)} if accuracies else {}
            self.reporter.progress(done, epochs, mean, pace.left(epochs - done))

        def report(trajectory: State) -> None:
            last = State(
                *({n: t[-1].to(device) for n, t in p.items()} for p in (trajectory.params, trajectory.buffers))
            )
            accuracies.append(measure(self.module, last, self.validation, CLASSIFICATION)["accuracy"])
            experts.write(next(remaining), trajectory, accuracies[-1])

        device = next(self.module.parameters()).device
        starts = [(number, self._start(number)) for number in missing]
        try:
            # Experts serve runs of any precision.
            with precision("float32"):
                train_experts(
                    self.module,
                    starts,
                    self.train,
                    recipe,
                    report,
                    epoch_done=epoch_done,
                    out_of_time=lambda: time_left() <= 0,
                )
        except OutOfTime:
            raise MissingPrerequisite(
                f"the time limit ended after {len(accuracies)} of {len(missing)} experts were trained.",
                f"They are kept. {self._remedy(experts)}",
            ) from None

    def _missing(self, experts: StoredTrajectories) -> list[int]:
        return [number for number in range(len(experts)) if not experts.path(number).exists()]

    def _start(self, number: int) -> State:
        return self.start(torch.Generator().manual_seed(derive_seed("expert", number, "start")))

    def _notice(self, experts: StoredTrajectories, *, would: bool = False) -> str:
        """Return a sentence about the experts that are to be trained, with time and space that they take."""
        missing, recipe = self._missing(experts), experts.spec.recipe
        start = self._start(missing[0])
        seconds = forecast_experts(self.module, start, self.train, recipe, len(missing))
        size = sum(t.numel() * t.element_size() for part in (start.params, start.buffers) for t in part.values())
        space = f"{len(missing) * (recipe.epochs + 1) * size / 1e6:.3g} MB"
        cost = f"about {seconds / 60:.0f} minutes" if seconds > 100 else f"about {seconds:.0f} seconds"
        if would:
            return f"{len(missing)} experts would be trained first: {recipe}; {cost}, {space}."
        return f"Experts  {len(missing)} to train, {recipe}: {cost}, {space} in {experts.folder}"

    def _remedy(self, experts: StoredTrajectories) -> str:
        options = experts.spec.recipe.model_dump(exclude_defaults=True)
        flags = " ".join(f"--{name} {value}" for name, value in options.items())
        return f"Train them beforehand: {self.command} --count {len(experts)} {flags}".rstrip()


def expert_source(
    settings: Settings,
    architecture: Architecture,
    data: Data,
    pools: Pools,
    catalog: Catalog,
    reporter: Reporter,
    *,
    may_train: bool = True,
) -> ExpertSource:
    """Return the experts of a run: of its network, from the init distribution `random`, on its training data.

    `data` are the examples that they are trained and measured on, `pools` give them their start.
    """
    info = data.train.info
    module = build(architecture.component, architecture.choice, info).to(data.train.inputs.device)
    init = catalog.resolve("init", RunSpec.model_fields["init"].default)[1]

    def start(generator: torch.Generator) -> State:
        return pools.start(init, module, info, generator)

    base = {
        "dataset": settings.dataset,
        "dataset_hash": info.content_hash,
        "sample_shape": info.sample_shape,
        "validation": settings.validation,
        "examples": len(data.train),
        "network": architecture.choice,
        "network_source": architecture.component.distribution,
        "init": init,
    }
    return ExpertSource(
        base,
        module,
        start,
        data.train,
        data.validation,
        reporter,
        pretrain_command("--experts", settings.dataset, architecture.choice, settings.sample_shape),
        may_train,
        settings.smoke,
    )
