"""Teachers: networks of a pool, of any architecture, that a method may look at."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from ddbench.contract.examples import DatasetInfo, ExampleSet
from ddbench.contract.experts import Teachers, TrainedNetworks
from ddbench.contract.spec import Choice
from ddbench.contract.state import State
from ddbench.discovery.catalog import Catalog
from ddbench.engine.fit import POOL_RATE, POOL_STEPS, Recipe
from ddbench.engine.networks import measure
from ddbench.engine.weights import ChosenClasses, SourceNormalised, check_weights, read_weights
from ddbench.errors import UsageError
from ddbench.machine.files import sha256
from ddbench.pipeline.data import build
from ddbench.pipeline.pools import CLASSIFICATION, SMOKE_SIZE, SMOKE_STEPS, Architecture, Pools

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The normalisation that networks from files expect."""
IMAGENET_CLASSES = 1000


def imagenet_numbers(classes: Sequence[str]) -> list[int]:
    """Return the numbers in ImageNet-1k of classes by their WordNet number (`n01440764`) or by their name (`tench`).

    Numbers are those of timm, names those of torchvision. Raises `UsageError` for a class that is not among them.
    """
    from timm.data.imagenet_info import ImageNetInfo
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    names = _IMAGENET_CATEGORIES
    known = {name: number for number, name in enumerate(names) if names.count(name) == 1}
    labels: list[str] = ImageNetInfo().label_names()  # type: ignore[no-untyped-call]
    known |= {name: number for number, name in enumerate(labels)}
    for name in classes:
        if name not in known:
            raise UsageError(
                f"the teacher knows the classes of ImageNet, and {name!r} is not among them.",
                "Take a teacher of the classes of the dataset, or name its classes by number, such as n01440764.",
            )
    return [known[name] for name in classes]


@dataclass
class TeacherSource:
    """The teachers of one run, from the networks to train on of a pool; those held out never teach.

    Attributes:
        architecture: the network of the run.
        validation: the validation slice, on which a teacher from a file is measured for the record.
        catalog: the networks that can be named.
        device: the device of the run.
        open_pools: the pools of an architecture on the data of the run.
        smoke: True trains a few networks for a few steps.
    """

    architecture: Architecture
    validation: ExampleSet
    catalog: Catalog
    device: torch.device
    open_pools: Callable[[Architecture], Pools]
    smoke: bool = False
    _pools: list[tuple[Architecture, Pools]] = field(default_factory=list, init=False, repr=False)
    _files: dict[tuple[str, str], tuple[dict[str, Any], TrainedNetworks]] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def info(self) -> DatasetInfo:
        """Facts about the dataset of the run."""
        return self.validation.info

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return the facts about the pools and the files of teachers that were opened, by name."""
        pools = {
            f"teachers/{name}": {"network": architecture.choice.name, **facts}
            for architecture, pools in self._pools
            for name, facts in pools.provenance().items()
        }
        return {**pools, **{f"teachers/{name}": facts for (name, _), (facts, _) in self._files.items()}}

    def within(self, time_left: Callable[[], float]) -> Teachers:
        """Return the teachers of a task; none are trained where that would take more than `time_left()` seconds."""

        def teachers(
            count: int = 1,
            *,
            network: str | Mapping[str, Any] | None = None,
            steps: int | None = None,
            lr: float | None = None,
            weights: str | None = None,
        ) -> TrainedNetworks:
            if weights is not None:
                return self.open_file(count, network, weights)
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

    def open_file(self, count: int, network: str | Mapping[str, Any] | None, weights: str) -> TrainedNetworks:
        """Return the one teacher whose weights are in a file. Raises as `Teachers`."""
        if count != 1:
            raise UsageError(f"a weights file holds one teacher, and {count} were asked for.", "Ask for one.")
        architecture, path = self._architecture(network), Path(weights).expanduser()
        known = (path.name, f"{path} {architecture.choice.model_dump_json()}")
        if known in self._files:
            return self._files[known][1]
        state = read_weights(path)
        known_classes = self._classes_of(state, str(path))
        names = tuple(map(str, range(known_classes)))
        module = build(architecture.component, architecture.choice, replace(self.info, classes=names))
        check_weights(module, state, str(path))
        module.load_state_dict({**module.state_dict(), **state})
        whole: nn.Module = module
        if len(self.info.sample_shape) == 3 and self.info.sample_shape[0] == len(IMAGENET_MEAN):
            whole = SourceNormalised(whole, self.info, IMAGENET_MEAN, IMAGENET_STD)
        chosen = self._numbers_of_classes(known_classes, path.name)
        if chosen is not None:
            whole = ChosenClasses(whole, chosen)
        whole = whole.to(self.device).eval().requires_grad_(False)
        params, buffers = dict(whole.named_parameters()), dict(whole.named_buffers())
        trained = TrainedNetworks(
            whole, (State(*({name: t.detach() for name, t in part.items()} for part in (params, buffers))),)
        )
        accuracy = measure(whole, trained[0], self.validation, CLASSIFICATION)["accuracy"]
        facts = {
            "network": architecture.choice.name,
            "sha256": sha256(path.read_bytes()),
            "classes": known_classes,
            "accuracy": round(accuracy, 4),
        }
        self._files[known] = facts, trained
        return trained

    def _classes_of(self, state: Mapping[str, Tensor], path: str) -> int:
        """Return the number of classes of a state dict: the outputs of its last layer."""
        last = next((tensor for tensor in reversed(list(state.values())) if tensor.dim()), None)
        if last is None:
            raise UsageError(f"{path} holds no weights.", "Fetch it again.")
        return len(last)

    def _numbers_of_classes(self, count: int, name: str) -> list[int] | None:
        """Return the outputs of a teacher of `count` classes that are the classes of the run; None for all in order."""
        classes = self.info.classes
        if count == IMAGENET_CLASSES != len(classes):
            return imagenet_numbers(classes)
        if count != len(classes):
            raise UsageError(
                f"the teacher {name} knows {count} classes, and {self.info.label} has {len(classes)}.",
                "Take a teacher of these classes, or of ImageNet where the classes have ImageNet's names or numbers.",
            )
        return None

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
