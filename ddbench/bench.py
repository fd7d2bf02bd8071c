"""A run spec made ready to run: names resolved, data loaded and split, network built."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ddbench.catalog import Catalog
from ddbench.data import DatasetInfo, ExampleSet, ImageSplits, normalise
from ddbench.environment import data_dir, derive_seed, keep_freed_memory, resolve_device
from ddbench.errors import PluginError, blamed_on
from ddbench.options import Component
from ddbench.protocols import Setting, get_protocol
from ddbench.results import DatasetRecord
from ddbench.spec import Choice, RunSpec, default_steps
from ddbench.task import AdaptationTarget, Budget, Networks, Objective, Side, Task
from ddbench.unroll import evaluation_mode

SMOKE_TRAIN, SMOKE_TEST = 50, 20
"""Examples of each class that a smoke run keeps."""
SMOKE_STEPS = 3


@dataclass(frozen=True)
class Parts:
    """The components a spec names."""

    method: Component | None
    dataset: Component
    network: Component
    objective: Component
    init: Callable[..., Any]
    init_source: Component


@dataclass(frozen=True)
class Bench:
    """A spec made ready to run: data loaded and split, network built, everything on its device."""

    spec: RunSpec
    parts: Parts
    train: ExampleSet
    setting: Setting
    record: DatasetRecord
    device: torch.device

    @property
    def most_steps(self) -> int | None:
        """How many outer steps a smoke run takes; None for a run in earnest."""
        return SMOKE_STEPS if self.spec.smoke else None

    def peak_memory(self) -> tuple[int, str] | None:
        """Bytes that the method says it will take beside what is held now, and how; None when it does not say."""
        method = self.parts.method
        predict = method.facts.get("peak_memory") if method else None
        if method is None or predict is None:
            return None
        with blamed_on(method.who):
            peak: tuple[int, str] = predict(self.task(torch.Generator()), **self.spec.method.options)
        return peak

    def task(self, generator: torch.Generator) -> Task:
        """What a method is given, its networks drawn with `generator`.

        Data and network are copies: what a method does to them cannot reach the scoring, or another method.
        """
        setting, info = self.setting, self.train.info
        train = replace(self.train, inputs=self.train.inputs.clone(), labels=self.train.labels.clone())
        networks = Networks(copy.deepcopy(setting.module), self.parts.init, info, generator, "train")
        return Task(train, setting.objective, networks, setting.budget, info)


def complete(spec: RunSpec, catalog: Catalog, *, with_method: bool = True) -> tuple[RunSpec, Parts]:
    """The spec with every default and option spelt out, and the components it names. Loads no data.

    `with_method=False` leaves the method as it is: scoring somebody's set needs none of their code. Raises
    `UsageError` for a name or option that does not exist.
    """
    get_protocol(spec.protocol)
    changes: dict[str, object] = {}
    method = None
    if with_method:
        method, changes["method"] = catalog.resolve("method", spec.method)
    dataset_choice, network_choice = spec.dataset, spec.network
    if spec.target is not None:
        component, target = catalog.resolve("target", spec.target)
        adaptation = component.call(target.options)
        if not isinstance(adaptation, AdaptationTarget):
            raise PluginError(f"{component.who} returned {type(adaptation).__name__}, not an AdaptationTarget.")
        dataset_choice, network_choice = Choice(name=adaptation.dataset), Choice(name=adaptation.network)
        changes |= {"target": target, "init": target}
        sampler = _blamed(adaptation.sample, component.who)
    else:
        component, init_choice = catalog.resolve("init", spec.init)
        changes["init"] = init_choice
        sampler = functools.partial(component.call, init_choice.options)
    dataset, changes["dataset"] = catalog.resolve("dataset", dataset_choice)
    objective, changes["objective"] = catalog.resolve("objective", spec.objective)
    network_choice = network_choice or Choice.from_name(dataset.facts.get("network", "mlp"))
    network, changes["network"] = catalog.resolve("network", network_choice, info_from_facts(dataset))
    images_per_class = spec.images_per_class or dataset.facts.get("images_per_class", 10)
    changes |= {"images_per_class": images_per_class, "steps": spec.steps or default_steps(images_per_class)}
    return spec.model_copy(update=changes), Parts(method, dataset, network, objective, sampler, component)


def info_from_facts(dataset: Component) -> DatasetInfo:
    """What is known of a dataset before it is loaded."""
    facts = dataset.facts
    return DatasetInfo(
        name=dataset.name,
        classes=tuple(facts["classes"]),
        sample_shape=tuple(facts["sample_shape"]),
        mean=(0.0,),
        std=(1.0,),
        modality=facts.get("modality", "image"),
        content_hash="",
        partial=False,
    )


def load_data(spec: RunSpec, dataset: Component, *, download: bool) -> tuple[ExampleSet, ExampleSet]:
    """Train and test examples of the spec's dataset, normalised. Raises `PluginError` when its plugin fails."""
    splits = dataset.call(spec.dataset.options, data_dir(), download)
    if not isinstance(splits, ImageSplits):
        raise PluginError(f"{dataset.who} returned {type(splits).__name__}, not ImageSplits.")
    classes = tuple(dataset.facts["classes"])
    return normalise(dataset.facts.get("label", dataset.name), splits, classes, dataset.facts.get("modality", "image"))


def split_validation(train: ExampleSet, share: float) -> tuple[ExampleSet, ExampleSet]:
    """Train without the validation slice, and the slice: `share` of each class, the same whatever the run's seed."""
    generator = torch.Generator().manual_seed(derive_seed("validation slice"))
    kept, held_out = [], []
    for label in range(len(train.info.classes)):
        members = train.of_class(label)
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(share * len(members))), max(0, len(members) - 1))
        held_out.append(members[:count])
        kept.append(members[count:])
    return train[torch.cat(kept).sort().values], train[torch.cat(held_out).sort().values]


def prepare(spec: RunSpec, parts: Parts, *, download: bool = True) -> Bench:
    """Load the data and build the network. Raises `DdbenchError` when either cannot be had."""
    device = resolve_device(spec.device)
    keep_freed_memory()
    everything, test = load_data(spec, parts.dataset, download=download)
    train, validation = split_validation(everything, spec.validation)
    if spec.smoke:
        train = _first_of_each_class(train, max(SMOKE_TRAIN, spec.images_per_class or 0))
        validation, test = _first_of_each_class(validation, SMOKE_TEST), _first_of_each_class(test, SMOKE_TEST)
    info = train.info
    with torch.random.fork_rng(devices=[]):
        module = _built(parts.network, spec, info).to(device)
    objective = parts.objective.call(spec.objective.options, info)
    if not isinstance(objective, Objective):
        raise PluginError(f"{parts.objective.who} returned {type(objective).__name__}, not an Objective.")
    budget = Budget(spec.images_per_class or 1, spec.steps or 1, spec.epochs)

    def networks(side: Side, generator: torch.Generator) -> Networks:
        return Networks(module, parts.init, info, generator, side)

    train, validation, test = train.to(device), validation.to(device), test.to(device)
    record = DatasetRecord(
        name=info.label,
        content_hash=info.content_hash,
        partial=info.partial,
        train=len(train),
        validation=len(validation),
        test=len(test),
    )
    return Bench(spec, parts, train, Setting(module, validation, test, objective, budget, networks), record, device)


def _blamed(function: Callable[..., Any], who: str) -> Callable[..., Any]:
    """`function`, whose failures are told as those of `who`."""

    def call(*args: Any) -> Any:
        with blamed_on(who):
            return function(*args)

    return call


def _built(component: Component, spec: RunSpec, info: DatasetInfo) -> nn.Module:
    assert spec.network is not None
    module = component.call(spec.network.options, info)
    if not isinstance(module, nn.Module):
        raise PluginError(f"{component.who} returned {type(module).__name__}, not an nn.Module.")
    try:
        with torch.no_grad(), evaluation_mode(module):
            shape = tuple(module(torch.zeros(2, *info.sample_shape)).shape)
    except Exception as error:
        raise PluginError(
            f"{component.who} does not work on examples of shape {list(info.sample_shape)}: {error}.",
            "Choose another with --network; `ddbench list networks` names them.",
        ) from error
    if shape != (2, len(info.classes)):
        raise PluginError(f"{component.who} gives outputs {list(shape[1:])} for {len(info.classes)} classes.")
    return module


def _first_of_each_class(examples: ExampleSet, count: int) -> ExampleSet:
    chosen = [examples.of_class(label)[:count] for label in range(len(examples.info.classes))]
    return examples[torch.cat(chosen)]
