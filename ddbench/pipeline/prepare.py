"""Prepare a plan: load and split the data once, build the network, open the pools."""

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddbench.contract.attack import attacks_named
from ddbench.contract.component import Component
from ddbench.contract.examples import DatasetInfo, ExampleSet
from ddbench.contract.inits import InitDistribution, InitRequest, Side
from ddbench.contract.metric import Metric
from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.plan import EvaluationPlan
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import Choice, Settings
from ddbench.contract.state import State
from ddbench.contract.task import AdaptationTarget, Budget, Networks, Objective, Task
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.decoders import Decoders
from ddbench.engine.attacks import UnderAttack
from ddbench.engine.fit import Recipe
from ddbench.engine.networks import unstack
from ddbench.errors import PluginError, UsageError, blamed_on
from ddbench.machine import passes
from ddbench.machine.environment import resolve_device
from ddbench.machine.files import sha256
from ddbench.pipeline.data import Data, build, check_network, first_of_each_class, load_examples
from ddbench.pipeline.experts import ExpertSource, expert_source
from ddbench.pipeline.plan import NO_ATTACK
from ddbench.pipeline.pools import Architecture, Pools
from ddbench.pipeline.teachers import TeacherSource
from ddbench.protocols import Setting
from ddbench.protocols.base import FULL_NETWORKS
from ddbench.records.attacks import AttackRecord
from ddbench.records.result import DatasetRecord, TestRecord

SMOKE_TRAIN, SMOKE_TEST = 50, 20
"""Examples of each class that a smoke run keeps."""
SMOKE_STEPS = 3
SMOKE_NETWORKS = 2


@dataclass(frozen=True)
class Prepared:
    """Everything that a run works with, on its device.

    Attributes:
        plan: the plan that was prepared.
        train: the examples that methods see; the validation slice and the test split are in `setting` alone.
        checksum: the checksum of `train` as it was loaded, so that a method which writes into it is noticed.
        setting: everything a protocol needs besides the set; its network is the one that scores.
        module: the network to distil for.
        init: the init distribution of `module`, with its options bound.
        pools: pools of pretrained networks that init distributions draw on.
        experts: the experts that methods ask for.
        teachers: the teachers that methods ask for.
        weights: files of pretrained weights that were read, `{name: {"sha256": ...}}`.
        record: the facts about the data that the record holds.
        tested_on: the facts about the data that score, where they are of another dataset; else None.
        device: the device that data and networks are on.
        decode: the decoders of parametrised sets.
    """

    plan: EvaluationPlan
    train: ExampleSet
    checksum: str
    setting: Setting
    module: nn.Module
    init: InitDistribution
    pools: tuple[Pools, ...]
    experts: ExpertSource
    teachers: TeacherSource
    weights: Mapping[str, dict[str, Any]]
    record: DatasetRecord
    tested_on: TestRecord | None
    device: torch.device
    decode: Decoders

    @property
    def settings(self) -> Settings:
        """The complete spec."""
        return self.plan.settings

    @property
    def most_steps(self) -> int | None:
        """The limit on the outer steps of a loop; None for none."""
        return SMOKE_STEPS if self.settings.smoke else self.settings.step_limit

    @property
    def eval_networks(self) -> int:
        """The number of networks that score the result."""
        asked = self.settings.eval_networks
        return min(asked, SMOKE_NETWORKS) if self.settings.smoke else asked

    @property
    def attacks(self) -> tuple[AttackRecord, ...]:
        """The attacks that trained networks are scored under too."""
        under = self.setting.under_attack
        return tuple(AttackRecord.of(attack, len(under.examples)) for attack in under.attacks) if under else ()

    @property
    def everything(self) -> ExampleSet:
        """All training examples, the validation slice behind those that methods see."""
        held_out = self.setting.validation
        return replace(
            self.train,
            inputs=torch.cat([self.train.inputs, held_out.inputs]),
            labels=torch.cat([self.train.labels, held_out.labels]),
        )

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return the origin of networks that were drawn so far: weights files by content, and facts about pools."""
        opened = {name: facts for pools in self.pools for name, facts in pools.provenance().items()}
        return {**self.weights, **opened}

    def asked_by_method(self) -> dict[str, dict[str, Any]]:
        """Return the facts about experts and teachers that the method has asked for so far."""
        return {**self.experts.provenance(), **self.teachers.provenance()}

    def task(self, generator: torch.Generator, time_left: Callable[[], float] = lambda: math.inf) -> Task:
        """Return what a method is given, its networks drawn with `generator`.

        What is trained for it (experts, teachers) ends where `time_left()` seconds reach zero.
        The data are those of the run, not a copy (see `check_untouched`); the network is a copy.
        """
        setting, info = self.setting, self.train.info
        networks = Networks(
            passes.count_calls(copy.deepcopy(self.module)), self.init, info, generator, "train", self.pools[0]
        )
        return Task(
            self.train,
            setting.objective,
            networks,
            setting.budget,
            info,
            self.experts.within(time_left),
            self.teachers.within(time_left),
            self.decode,
        )

    def train_needs(self, method: Component, options: Mapping[str, Any]) -> None:
        """Train the experts and teachers that the method declares to need, so that its clock does not count them."""
        needs = method.facts.get("needs")
        if needs is not None:
            with blamed_on(method.who):
                needs(self.task(torch.Generator()), **options)

    def decoded(self, distilled: DistilledSet) -> DistilledSet:
        """Return a set as protocols take it: on the device, with the inputs of a payload in place of it."""
        with torch.no_grad():
            return distilled.to(self.device).decoded(self.decode)

    def check_untouched(self, method: Component) -> None:
        """Raise `PluginError` where `method` has written into the training data it was given."""
        if self.train.checksum() != self.checksum:
            raise PluginError(
                f"{method.who} wrote into the training data.",
                "Let it clone what it changes: task.train.inputs.clone().",
            )

    def peak_memory(self, method: Component, options: Mapping[str, Any]) -> tuple[int, str] | None:
        """Return the bytes that the method says it will take beside what is held now, and how; None if it says none."""
        predict = method.facts.get("peak_memory")
        if predict is None:
            return None
        with blamed_on(method.who):
            peak: tuple[int, str] = predict(self.task(torch.Generator()), **options)
        return peak

    def draw_once(self) -> None:
        """Draw the networks that will score, and one to train on: pools are there before the clock runs.

        Raises `UsageError` where a pool has fewer than the spec asks for.
        """
        protocol = self.plan.protocol
        needed = protocol.networks_needed(self.eval_networks)
        for side, count in needed.items():
            self.setting.networks(side, torch.Generator()).sample(count)
        if protocol.teacher:
            self.setting.full_data(math.inf)
        # Where scoring takes none, a method that does without them must not wait for a pool either.
        if needed:
            self.task(torch.Generator()).networks.sample(1)


def prepare(
    plan: EvaluationPlan, catalog: Catalog, *, reporter: Reporter | None = None, download: bool = True
) -> Prepared:
    """Load the data and build the network. Raises `DdbenchError` when either cannot be had."""
    settings, protocol = plan.settings, plan.protocol
    device = resolve_device(settings.device)
    whole = Data.load(
        plan.dataset,
        settings.dataset,
        settings.sample_shape,
        settings,
        download=download,
        catalog=catalog,
        reporter=reporter,
    ).to(device)
    data = whole
    if settings.smoke:
        data = whole.first_of_each_class(max(SMOKE_TRAIN, settings.images_per_class), SMOKE_TEST)
    info = data.train.info
    module = _build_network(plan, data).to(device)
    network = Architecture(plan.network, settings.network)
    eval_module, eval_network = module, network
    if settings.eval_network != settings.network:
        eval_network = Architecture(plan.eval_network, settings.eval_network)
        eval_module = build(plan.eval_network, settings.eval_network, info).to(device)
    objective = _build_objective(plan.objective, settings.objective, data.validation)
    test, tested_on = data.test if settings.split == "test" else data.validation, None
    if plan.eval_dataset is not None:
        test = _other_test_split(plan.eval_dataset, settings, info, catalog, reporter, download=download).to(device)
        tested_on = TestRecord(name=test.info.label, content_hash=test.info.content_hash, partial=test.info.partial)
    under_attack = UnderAttack.choose(attacks_named(settings.attack), test) if settings.attack else None
    if under_attack and not objective.metric.bounded_by_full_data:
        raise UsageError(f"attacks are on classifiers; {settings.objective.name} is another objective.", NO_ATTACK)
    if protocol.teacher and not objective.metric.bounded_by_full_data:
        raise UsageError(
            f"{protocol.name} has labels given by a classifier; {settings.objective.name} is another objective.",
            "Choose another --protocol.",
        )

    def open_pools(network: Architecture) -> Pools:
        return Pools(settings, network, whole, catalog, device, reporter, may_train=download)

    pools = open_pools(network)
    eval_pools = pools if eval_network == network else open_pools(eval_network)
    init = _distribution(plan.init, settings.init, plan.adaptation)
    eval_adaptation = plan.adaptation if settings.eval_init == settings.init else None
    eval_init = _distribution(plan.eval_init, settings.eval_init, eval_adaptation)

    def networks(side: Side, generator: torch.Generator) -> Networks:
        return Networks(eval_module, eval_init, info, generator, side, eval_pools)

    def full_data(patience: float) -> list[State]:
        if eval_module is module and plan.adaptation is not None and plan.adaptation.adapt is not None:
            raise UsageError(
                f"networks adapted by {plan.init.name} start from weights of their own; no pool of them is trained.",
                "Score on another network with --eval-network, or choose a target whose networks come from a pool.",
            )
        # Beside a score they are not what the run draws on: pools of their own keep them out of its record.
        own = eval_pools if protocol.teacher else open_pools(eval_network)
        pool = own.open(0, FULL_NETWORKS, Recipe(SMOKE_STEPS) if settings.smoke else Recipe(), patience=patience)
        return list(unstack(eval_module, pool.weights("evaluation", range(FULL_NETWORKS)).to(device)))

    return Prepared(
        plan=plan,
        train=data.train,
        checksum=data.train.checksum(),
        setting=Setting(
            module=eval_module,
            validation=data.validation,
            test=test,
            objective=objective,
            budget=Budget(settings.images_per_class, settings.steps, settings.epochs, settings.byte_budget),
            networks=networks,
            full_data=full_data,
            under_attack=under_attack,
        ),
        module=module,
        init=init,
        pools=(pools,) if eval_pools is pools else (pools, eval_pools),
        experts=expert_source(settings, network, data, pools, catalog, reporter or Silent(), may_train=download),
        teachers=TeacherSource(network, data.validation, catalog, device, open_pools, settings.smoke),
        weights=_weights_read(plan.adaptation),
        record=_record(data, len(test)),
        tested_on=tested_on,
        device=device,
        decode=Decoders(catalog, info),
    )


def made_with(distilled: DistilledSet) -> dict[str, dict[str, Any]]:
    """Return the facts about experts and teachers that a set was made with, as its metadata state them."""
    facts: dict[str, dict[str, Any]] = json.loads(distilled.metadata.get("made_with", "{}"))
    return facts


def _build_network(plan: EvaluationPlan, data: Data) -> nn.Module:
    """Return the network for the data, adapted to its pretrained weights where a target brings them."""
    module = build(plan.network, plan.settings.network, data.train.info)
    if plan.adaptation is not None and plan.adaptation.adapt is not None:
        with blamed_on(plan.init.who):
            module = plan.adaptation.adapt(module, data.train.info)
        check_network(module, plan.init.who, data.train.info)
    return module


@dataclass(frozen=True)
class _CheckedMeasure:
    """The `measure` of an objective; a failure and metrics that are not the declared ones are blamed on its plugin."""

    who: str
    objective: Objective

    def __call__(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        with blamed_on(self.who):
            values = self.objective.measure(logits, labels)
        declared = [metric.name for metric in self.objective.metrics]
        if not isinstance(values, Mapping) or sorted(values) != sorted(declared):
            measured = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
            raise PluginError(
                f"{self.who} declares {', '.join(declared)} and measures {measured}.",
                "List every metric once in Objective.metrics, the one that ranks first.",
            )
        with blamed_on(self.who):
            return {name: float(value) for name, value in values.items()}


def _build_objective(component: Component, choice: Choice, examples: ExampleSet) -> Objective:
    """Return the objective, whose measure is checked at every call, the first time here on equal logits.

    Raises `PluginError` for anything else than an `Objective` that measures the metrics it declares.
    """
    objective = component.call(choice.options, examples.info)
    if not isinstance(objective, Objective):
        raise PluginError(f"{component.who} returned {type(objective).__name__}, not an Objective.")
    if not objective.metrics or not all(isinstance(metric, Metric) for metric in objective.metrics):
        raise PluginError(f"{component.who} declares no metrics.", "List each ddbench.Metric in Objective.metrics.")
    measure = _CheckedMeasure(component.who, objective)
    with torch.no_grad():
        measure(torch.zeros(len(examples), len(examples.info.classes), device=examples.labels.device), examples.labels)
    return replace(objective, measure=measure)


def _weights_read(adaptation: AdaptationTarget | None) -> dict[str, dict[str, Any]]:
    files = adaptation.files if adaptation is not None else ()
    return {Path(file).name: {"sha256": sha256(Path(file).read_bytes())} for file in files}


def _other_test_split(
    dataset: Component,
    settings: Settings,
    info: DatasetInfo,
    catalog: Catalog,
    reporter: Reporter | None,
    *,
    download: bool,
) -> ExampleSet:
    """Return the test split of the dataset that scores, in the shape of the examples that networks are trained on.

    It is normalised by its own training split, as every dataset is.
    """
    assert settings.eval_dataset is not None
    shape = None if tuple(dataset.facts["sample_shape"]) == info.sample_shape else info.sample_shape
    _, test = load_examples(
        dataset,
        settings.eval_dataset,
        shape,
        download=download,
        catalog=catalog,
        whitening=settings.whitening,
        reporter=reporter,
    )
    if test.info.sample_shape != info.sample_shape:
        raise UsageError(
            f"examples of {test.info.name} have shape {list(test.info.sample_shape)}, not {list(info.sample_shape)}.",
            "Score on a dataset whose examples have the shape of the set.",
        )
    return first_of_each_class(test, SMOKE_TEST) if settings.smoke else test


def _record(data: Data, scored: int) -> DatasetRecord:
    info = data.train.info
    return DatasetRecord(
        name=info.label,
        content_hash=info.content_hash,
        partial=info.partial,
        train=len(data.train),
        validation=len(data.validation),
        test=scored,
        sample_shape=info.sample_shape,
    )


def _distribution(component: Component, choice: Choice, adaptation: AdaptationTarget | None) -> InitDistribution:
    """Return the component as an init distribution with its options bound; what it raises names it."""
    if adaptation is None:

        def draw(request: InitRequest) -> State | dict[str, Tensor]:
            drawn: State | dict[str, Tensor] = component.call(choice.options, request)
            return drawn

        return draw

    def draw_pretrained(request: InitRequest) -> State | dict[str, Tensor]:
        if adaptation.sample is None:
            return {name: parameter.detach()[None] for name, parameter in request.network.named_parameters()}
        with blamed_on(component.who):
            return adaptation.sample(request)

    return draw_pretrained
