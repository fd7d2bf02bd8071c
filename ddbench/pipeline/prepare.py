"""A run spec made ready to run: names resolved, data loaded and split, network built."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.contract.component import Component
from ddbench.contract.observer import Reporter
from ddbench.contract.sets import ExampleSet
from ddbench.contract.spec import Choice, RunSpec, default_steps
from ddbench.contract.task import AdaptationTarget, Budget, Networks, Objective, Side, Task
from ddbench.discovery.catalog import Catalog
from ddbench.engine.fit import Recipe
from ddbench.engine.networks import unstack
from ddbench.errors import PluginError, UsageError, blamed_on
from ddbench.machine.environment import keep_freed_memory, resolve_device
from ddbench.machine.files import sha256
from ddbench.pipeline.data import build, check_network, info_from_facts, load_data, split_validation
from ddbench.pipeline.pools import Pools, sampler_arguments
from ddbench.protocols import Setting, get_protocol
from ddbench.protocols.base import FULL_NETWORKS
from ddbench.records.result import DatasetRecord

SMOKE_TRAIN, SMOKE_TEST = 50, 20
"""Examples of each class that a smoke run keeps."""
SMOKE_STEPS = 3
SMOKE_NETWORKS = 2


@dataclass(frozen=True)
class Parts:
    """The components a spec names; `init` is the target where there is one, and `adaptation` what it says."""

    catalog: Catalog
    method: Component | None
    dataset: Component
    network: Component
    objective: Component
    init: Component
    eval_init: Component
    adaptation: AdaptationTarget | None

    @property
    def distributions(self) -> dict[str, str]:
        """The package and version, or the file and a digest of it, that each part comes from."""
        parts = (self.method, self.dataset, self.network, self.objective, self.init, self.eval_init)
        return {f"{part.kind} {part.name!r}": part.distribution for part in parts if part is not None}


@dataclass(frozen=True)
class Bench:
    """A spec made ready to run: data loaded and split, network built, everything on its device."""

    spec: RunSpec
    parts: Parts
    train: ExampleSet
    setting: Setting
    init: Callable[..., dict[str, Tensor]]
    pools: Pools
    record: DatasetRecord
    device: torch.device

    @property
    def most_steps(self) -> int | None:
        """How many outer steps a smoke run takes; None for a run in earnest."""
        return SMOKE_STEPS if self.spec.smoke else None

    @property
    def everything(self) -> ExampleSet:
        """All training examples, the validation slice among them."""
        held_out = self.setting.validation
        return replace(
            self.train,
            inputs=torch.cat([self.train.inputs, held_out.inputs]),
            labels=torch.cat([self.train.labels, held_out.labels]),
        )

    def peak_memory(self) -> tuple[int, str] | None:
        """Bytes that the method says it will take beside what is held now, and how; None when it does not say."""
        method = self.parts.method
        predict = method.facts.get("peak_memory") if method else None
        if method is None or predict is None:
            return None
        with blamed_on(method.who):
            peak: tuple[int, str] = predict(self.task(torch.Generator()), **self.spec.method.options)
        return peak

    @property
    def sources(self) -> str:
        """What the networks came from besides the spec, as JSON: pools, and weights files by content."""
        return json.dumps(self.pools.used, sort_keys=True)

    def draw_once(self) -> None:
        """Draw the networks that will score, and one to train on: pools are there before the clock runs.

        Raises `UsageError` where a pool has fewer than the spec asks for.
        """
        needed = get_protocol(self.spec.protocol).networks_needed(self.eval_networks)
        for side, count in needed.items():
            self.setting.networks(side, torch.Generator()).sample(count)
        if get_protocol(self.spec.protocol).teacher:
            self.setting.full_data(math.inf)
        # Where scoring takes none, a method that does without them must not wait for a pool either.
        if needed:
            self.task(torch.Generator()).networks.sample(1)

    @property
    def eval_networks(self) -> int:
        """How many networks score the result."""
        return min(self.spec.eval_networks, SMOKE_NETWORKS) if self.spec.smoke else self.spec.eval_networks

    def task(self, generator: torch.Generator) -> Task:
        """What a method is given, its networks drawn with `generator`.

        Data and network are copies: what a method does to them cannot reach the scoring, or another method.
        """
        setting, info = self.setting, self.train.info
        train = replace(self.train, inputs=self.train.inputs.clone(), labels=self.train.labels.clone())
        networks = Networks(copy.deepcopy(setting.module), self.init, info, generator, "train")
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
    dataset_choice, network_choice, shape, adaptation = spec.dataset, spec.network, spec.sample_shape, None
    if spec.target is not None:
        init, init_choice = catalog.resolve("target", spec.target)
        changes["target"] = init_choice
        adaptation = init.call(init_choice.options)
        if not isinstance(adaptation, AdaptationTarget):
            raise PluginError(f"{init.who} returned {type(adaptation).__name__}, not an AdaptationTarget.")
        _check_not_named_twice(spec, adaptation, init_choice)
        if adaptation.dataset is not None and dataset_choice.name != adaptation.dataset:
            dataset_choice = Choice(name=adaptation.dataset)
        if network_choice is None:
            network_choice = Choice(name=adaptation.network)
        shape = adaptation.sample_shape or shape
    else:
        init, init_choice = catalog.resolve("init", spec.init)
    changes |= {"init": init_choice, "eval_init": init_choice, "sample_shape": shape}
    eval_init = init
    if spec.eval_init is not None and spec.eval_init != init_choice:
        eval_init, changes["eval_init"] = catalog.resolve("init", spec.eval_init)
    dataset, changes["dataset"] = catalog.resolve("dataset", dataset_choice)
    objective, changes["objective"] = catalog.resolve("objective", spec.objective)
    network_choice = network_choice or usual_network(dataset)
    network, changes["network"] = catalog.resolve("network", network_choice, info_from_facts(dataset, shape))
    images_per_class = spec.images_per_class or dataset.facts.get("images_per_class", 10)
    changes |= {"images_per_class": images_per_class, "steps": spec.steps or default_steps(images_per_class)}
    parts = Parts(catalog, method, dataset, network, objective, init, eval_init, adaptation)
    completed = spec.model_copy(update=changes)
    if completed.experiment and not _carries_out(completed, catalog):
        completed = completed.model_copy(update={"experiment": ""})
    return completed, parts


def usual_network(dataset: Component) -> Choice:
    """The network for a dataset where none is named."""
    return Choice.from_name(dataset.facts.get("network", "mlp"))


def _carries_out(spec: RunSpec, catalog: Catalog) -> bool:
    """Whether a completed spec is of the task of the experiment it names.

    Only options of its method, its seed, its extent, the size of its pools and what is swept may differ.
    """
    experiment = next((e for e in catalog.experiments() if e.name == spec.experiment), None)
    if experiment is None:
        return False
    wanted, _ = complete(RunSpec.parse(experiment.spec), catalog)
    free = {"seed", "time_limit", "eval_networks", "smoke", "device", "experiment", "best_coreset"}
    free |= {key for axis in experiment.sweep.axes for key in axis.keys} if experiment.sweep else set()

    def task(of: RunSpec) -> dict[str, Any]:
        fields = of.model_dump(exclude=free)
        fields["method"] = of.method.name
        for part in ("init", "eval_init", "target"):
            if fields[part] is not None:
                # The arguments of Sources.pool.
                for option in ("count", "held_out", "steps", "lr"):
                    fields[part]["options"].pop(option, None)
        return fields

    return task(spec) == task(wanted)


def prepare(spec: RunSpec, parts: Parts, *, reporter: Reporter | None = None, download: bool = True) -> Bench:
    """Load the data and build the network. Raises `DdbenchError` when either cannot be had."""
    device = resolve_device(spec.device)
    keep_freed_memory()
    everything, test = load_data(parts.dataset, spec.dataset, spec.sample_shape, download=download)
    train, validation = split_validation(everything, spec.validation)
    if spec.smoke:
        train = _first_of_each_class(train, max(SMOKE_TRAIN, spec.images_per_class or 0))
        validation, test = _first_of_each_class(validation, SMOKE_TEST), _first_of_each_class(test, SMOKE_TEST)
    info = train.info
    assert spec.network is not None
    module = build(parts.network, spec.network, info)
    if parts.adaptation is not None and parts.adaptation.adapt is not None:
        with blamed_on(parts.init.who):
            module = parts.adaptation.adapt(module, info)
        check_network(module, parts.init.who, info)
    module = module.to(device)
    objective = parts.objective.call(spec.objective.options, info)
    if not isinstance(objective, Objective):
        raise PluginError(f"{parts.objective.who} returned {type(objective).__name__}, not an Objective.")
    protocol = get_protocol(spec.protocol)
    if protocol.teacher and objective.primary != "accuracy":
        raise UsageError(
            f"{protocol.name} has labels given by a classifier; {spec.objective.name} is another objective.",
            "Choose another --protocol.",
        )
    budget = Budget(spec.images_per_class or 1, spec.steps or 1, spec.epochs)
    pools = Pools(spec, parts.catalog, device, reporter, may_train=download)
    for file in parts.adaptation.files if parts.adaptation is not None else ():
        pools.used[Path(file).name] = {"sha256": sha256(Path(file).read_bytes())}
    assert spec.eval_init is not None
    init = _sampler(parts.init, spec.init, parts.adaptation, pools)
    eval_init = init
    if spec.eval_init != spec.init:
        eval_init = _sampler(parts.eval_init, spec.eval_init, None, pools)

    def networks(side: Side, generator: torch.Generator) -> Networks:
        return Networks(module, eval_init, info, generator, side)

    def full_data(patience: float) -> list[dict[str, Tensor]]:
        # Beside a score they are not what the run draws on: pools of their own keep them out of its row.
        own = pools if protocol.teacher else Pools(spec, parts.catalog, device, reporter, may_train=download)
        pool = own.open(0, FULL_NETWORKS, Recipe(SMOKE_STEPS) if spec.smoke else Recipe(), patience=patience)
        stacked = pool.weights("evaluation", range(FULL_NETWORKS))
        return list(unstack(module, {name: tensor.to(device) for name, tensor in stacked.items()}))

    train, validation, test = train.to(device), validation.to(device), test.to(device)
    record = DatasetRecord(
        name=info.label,
        content_hash=info.content_hash,
        partial=info.partial,
        train=len(train),
        validation=len(validation),
        test=len(test),
        sample_shape=info.sample_shape,
    )
    setting = Setting(module, validation, test, objective, budget, networks, full_data)
    return Bench(spec, parts, train, setting, init, pools, record, device)


def _check_not_named_twice(spec: RunSpec, adaptation: AdaptationTarget, target: Choice) -> None:
    """A target brings its own dataset, network and init; others given beside it would be passed over in silence."""
    given = {
        "dataset": adaptation.dataset is not None
        and "dataset" in spec.model_fields_set
        and spec.dataset.name != adaptation.dataset,
        "network": spec.network is not None and spec.network.name != adaptation.network,
        "init": "init" in spec.model_fields_set and spec.init.name != target.name,
        "sample shape": None not in (spec.sample_shape, adaptation.sample_shape)
        and spec.sample_shape != adaptation.sample_shape,
    }
    for part, clashes in given.items():
        if clashes:
            raise UsageError(
                f"target {target.name} brings its own {part}: another does not go with it.", f"Leave the {part} out."
            )


def _sampler(
    component: Component, choice: Choice, adaptation: AdaptationTarget | None, pools: Pools
) -> Callable[..., dict[str, Tensor]]:
    """The component as a sampler `(network, info, n, generator, side)`, its options bound; failures name it."""
    if adaptation is None:

        def draw(*arguments: Any) -> dict[str, Tensor]:
            drawn: dict[str, Tensor] = component.call(
                choice.options, *sampler_arguments(component.function, arguments, pools)
            )
            return drawn

        return draw

    def draw_pretrained(*arguments: Any) -> dict[str, Tensor]:
        if adaptation.sample is None:
            return {name: parameter.detach()[None] for name, parameter in arguments[0].named_parameters()}
        with blamed_on(component.who):
            return adaptation.sample(*sampler_arguments(adaptation.sample, arguments, pools))

    return draw_pretrained


def _first_of_each_class(examples: ExampleSet, count: int) -> ExampleSet:
    chosen = [examples.of_class(label)[:count] for label in range(len(examples.info.classes))]
    return examples[torch.cat(chosen)]
