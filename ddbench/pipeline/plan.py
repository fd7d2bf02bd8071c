"""From a spec to a plan: names resolved, defaults filled in, nothing loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import zip_longest
from typing import Any

from ddbench.contract.component import Component
from ddbench.contract.plan import EvaluationPlan, Plan, RecipeRequest
from ddbench.contract.spec import Choice, RunSpec, Settings, default_steps
from ddbench.contract.task import AdaptationTarget, Budget
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.modalities import modality_of
from ddbench.errors import PluginError, UsageError, blamed_on
from ddbench.pipeline.data import info_from_facts
from ddbench.protocols import content_in_settings, protocol_of
from ddbench.protocols.base import Protocol

USUAL_IMAGES_PER_CLASS = 10
"""Images per class if neither the spec nor the dataset sets the number."""
NO_ATTACK = "Leave out --attack."
_EXTENT = {
    "seed", "time_limit", "step_limit", "pass_limit", "split", "trials", "eval_networks", "smoke", "device",
    "experiment", "best_coreset", "attack",
}  # fmt: skip
"""Fields that may differ between an experiment and a run that carries it out."""
_POOL_OPTIONS = ("count", "held_out", "steps", "lr")
"""Options of an init or target about the size and the training of a pool (arguments of `InitRequest.pool`)."""


def plan_run(spec: RunSpec | Settings, catalog: Catalog) -> Plan:
    """Return the plan of a run. Raises `UsageError` for a name or an option that does not exist.

    Options of the method are those that are asked for, then those of its recipe, then its defaults. Complete settings
    leave nothing to a recipe.
    """
    asked = spec_of(spec, catalog) if isinstance(spec, Settings) else spec
    method, choice = catalog.resolve("method", asked.method)
    decided = _decide(asked.model_copy(update={"method": choice}), catalog)
    if isinstance(spec, RunSpec):
        plan = plan_method(decided, method, asked.method.options)
    else:
        plan = Plan(**vars(decided), method=method)
    return replace(plan, settings=_without_wrong_experiment(plan.settings, catalog))


def plan_method(plan: EvaluationPlan, method: Component, options: Mapping[str, Any]) -> Plan:
    """Return the plan of running `method` on the task of `plan`; its recipe and its defaults add to `options`.

    Raises `UsageError` for an option that does not exist, `PluginError` for a recipe that is not valid.
    """
    recipe = {name: value for name, value in recipe_of(method, request_of(plan)).items() if name not in options}
    choice = Choice(name=method.name, options=method.validated({**recipe, **options}))
    settings = plan.settings.model_copy(update={"method": choice})
    shared = {item.name: getattr(plan, item.name) for item in fields(EvaluationPlan)}
    return Plan(**{**shared, "settings": settings}, method=method, recipe=recipe)


def request_of(plan: EvaluationPlan) -> RecipeRequest:
    """Return the circumstances that a recipe may depend on."""
    settings = plan.settings
    return RecipeRequest(
        dataset=settings.dataset.name,
        classes=tuple(plan.dataset.facts["classes"]),
        sample_shape=tuple(settings.sample_shape or plan.dataset.facts["sample_shape"]),
        budget=Budget(settings.images_per_class, settings.steps, settings.epochs),
        network=settings.network.name,
        modality=plan.dataset.facts.get("modality", "image"),
    )


def recipe_of(method: Component, request: RecipeRequest) -> dict[str, Any]:
    """Return the options that the method's recipe sets, validated; empty for a method without one.

    Raises `PluginError` for anything but options of the method.
    """
    recipe = method.facts.get("recipe")
    if recipe is None:
        return {}
    with blamed_on(method.who):
        options = recipe(request)
    if not isinstance(options, Mapping):
        raise PluginError(
            f"the recipe of {method.who} returned {type(options).__name__}.", "Return a dict of option to value."
        )
    try:
        method.validated(options)
    except UsageError as error:
        raise PluginError(
            f"the recipe of {method.who} is not valid on {request.dataset}: {error.message}", "Fix the recipe."
        ) from error
    return dict(options)


def reason_to_skip(plan: Plan) -> str:
    """Return why the method cannot serve the plan, by its fact `supports`; empty where it can.

    Raises `PluginError` where it returns anything but text or None.
    """
    supports = plan.method.facts.get("supports")
    if supports is None:
        return ""
    with blamed_on(plan.method.who):
        reason = supports(plan)
    if reason is not None and not (isinstance(reason, str) and reason.strip()):
        raise PluginError(
            f"`supports` of {plan.method.who} returned {reason!r}.", "Return the reason to skip as text, or None."
        )
    return reason or ""


def plan_evaluation(spec: RunSpec, catalog: Catalog) -> EvaluationPlan:
    """Return the plan of scoring a set; the method is left as it is named: no code of it is needed.

    Raises `UsageError` for a name or an option that does not exist.
    """
    return _decide(spec, catalog)


def spec_of(settings: Settings, catalog: Catalog) -> RunSpec:
    """Return the spec that asks for exactly this; options that the method got since then have their older values."""
    method = next((c for c in catalog.components("method") if c.name == settings.method.name), None)
    options = settings.method.options if method is None else method.recorded(settings.method.options)
    choice = Choice(name=settings.method.name, options=options)
    return settings.model_copy(update={"method": choice}).asked()


def usual_network(dataset: Component) -> Choice:
    """Return the network for a dataset where none is named."""
    return Choice.from_name(dataset.facts.get("network", "mlp"))


def _decide(spec: RunSpec, catalog: Catalog) -> EvaluationPlan:
    protocol = protocol_of(spec)
    init, init_choice, adaptation = _resolve_init(spec, catalog)
    eval_init, eval_choice = init, init_choice
    if spec.eval_init is not None and spec.eval_init != init_choice:
        eval_init, eval_choice = catalog.resolve("init", spec.eval_init)
    dataset_choice, network_choice, shape = spec.dataset, spec.network, spec.sample_shape
    if adaptation is not None:
        if adaptation.dataset is not None and dataset_choice.name != adaptation.dataset:
            dataset_choice = Choice(name=adaptation.dataset)
        network_choice = network_choice or Choice(name=adaptation.network)
        shape = adaptation.sample_shape or shape
    dataset, dataset_choice = catalog.resolve("dataset", dataset_choice)
    eval_dataset, eval_dataset_choice = None, None
    if spec.eval_dataset is not None:
        eval_dataset, eval_dataset_choice = catalog.resolve("dataset", spec.eval_dataset)
        if eval_dataset_choice == dataset_choice:
            eval_dataset, eval_dataset_choice = None, None
        else:
            _check_eval_dataset(spec, dataset, eval_dataset, catalog)
    objective, objective_choice = catalog.resolve("objective", spec.objective)
    info = info_from_facts(dataset, shape)
    network, network_choice = catalog.resolve("network", network_choice or usual_network(dataset), info)
    eval_network, eval_network_choice = network, network_choice
    if spec.eval_network is not None and spec.eval_network != network_choice:
        eval_network, eval_network_choice = catalog.resolve("network", spec.eval_network, info)
    _check_modality(protocol, dataset, [network, eval_network], catalog)
    if spec.attack:
        _check_attack(spec, protocol, modality_of(dataset, catalog).name)
    images_per_class = spec.images_per_class or dataset.facts.get("images_per_class", USUAL_IMAGES_PER_CLASS)
    settings = Settings.model_validate(
        {
            **spec.model_dump(),
            "dataset": dataset_choice,
            "eval_dataset": eval_dataset_choice,
            "network": network_choice,
            "eval_network": eval_network_choice,
            "sample_shape": shape,
            "init": init_choice,
            "eval_init": eval_choice,
            "objective": objective_choice,
            "protocol": protocol.name,
            "protocol_content": content_in_settings(protocol),
            "target": None if spec.target is None else init_choice,
            "images_per_class": images_per_class,
            "steps": spec.steps or default_steps(images_per_class),
        }
    )
    return EvaluationPlan(
        settings, protocol, dataset, network, eval_network, objective, init, eval_init, adaptation, eval_dataset
    )


def _check_modality(protocol: Protocol, dataset: Component, networks: list[Component], catalog: Catalog) -> None:
    """Raise `UsageError` where a network or the augmentation of the protocol is for another kind of data."""
    modality = modality_of(dataset, catalog)
    for network in networks:
        takes = network.facts.get("takes", ())
        if takes and modality.name not in takes:
            raise UsageError(
                f"{network.name} takes {' or '.join(takes)}; {dataset.name} holds {modality.name}.",
                "Choose another with --network; `ddbench list networks` names them.",
            )
    unsuited = [name for name in protocol.operations if name not in modality.facts.get("augmentations", ())]
    if unsuited:
        raise UsageError(
            f"{protocol.name} augments images ({', '.join(unsuited)}); {dataset.name} holds {modality.name}.",
            "Choose a --protocol without augmentation, such as train/v1.",
        )


def _check_eval_dataset(spec: RunSpec, dataset: Component, other: Component, catalog: Catalog) -> None:
    """Raise `UsageError` where networks for one dataset cannot be scored on the test split of the other."""
    if spec.split != "test":
        raise UsageError("another dataset scores by its test split alone.", "Leave out --on, or the other dataset.")
    modalities = [modality_of(component, catalog).name for component in (dataset, other)]
    if modalities[0] != modalities[1]:
        raise UsageError(
            f"{dataset.name} holds {modalities[0]} and {other.name} {modalities[1]}.",
            "Score on a dataset of the same kind.",
        )
    check_classes(dataset.name, dataset.facts["classes"], other.name, other.facts["classes"])


def check_classes(source: str, stated: Sequence[object], dataset: str, classes: Sequence[object]) -> None:
    """Raise `UsageError` where labels of `source` stand for other classes than those of a dataset."""
    for label, pair in enumerate(zip_longest(map(str, stated), map(str, classes))):
        if pair[0] != pair[1]:
            stated_name, other_name = ("no class" if name is None else repr(name) for name in pair)
            raise UsageError(
                f"label {label} is {stated_name} in {source} and {other_name} in {dataset}.",
                "Score on a dataset with the same classes in the same order.",
            )


def _check_attack(spec: RunSpec, protocol: Protocol, modality: str) -> None:
    """Raise `UsageError` where there are no networks or no pixels that an attack is stated for."""
    if modality != "image":
        raise UsageError(f"attacks are on images; {spec.dataset.name} holds {modality}.", NO_ATTACK)
    if spec.whitening is not None:
        raise UsageError("attacks change raw pixels, and these images are whitened.", NO_ATTACK)
    if not protocol.networks_needed(1):
        raise UsageError(f"attacks are on networks, and {protocol.name} trains none.", NO_ATTACK)


def _resolve_init(spec: RunSpec, catalog: Catalog) -> tuple[Component, Choice, AdaptationTarget | None]:
    """Return where networks are drawn from: the adaptation target with its answer, or the init distribution."""
    if spec.target is None:
        return *catalog.resolve("init", spec.init), None
    target, choice = catalog.resolve("target", spec.target)
    adaptation = target.call(choice.options)
    if not isinstance(adaptation, AdaptationTarget):
        raise PluginError(f"{target.who} returned {type(adaptation).__name__}, not an AdaptationTarget.")
    _check_not_named_twice(spec, adaptation, choice)
    return target, choice, adaptation


def _check_not_named_twice(spec: RunSpec, adaptation: AdaptationTarget, target: Choice) -> None:
    """Raise `UsageError` for a part that is named beside a target which brings its own: it would be ignored."""
    clashes = {
        "dataset": adaptation.dataset is not None
        and "dataset" in spec.model_fields_set
        and spec.dataset.name != adaptation.dataset,
        "network": spec.network is not None and spec.network.name != adaptation.network,
        "scoring network": spec.eval_network is not None and spec.eval_network.name != adaptation.network,
        "init": "init" in spec.model_fields_set and spec.init.name != target.name,
        "sample shape": None not in (spec.sample_shape, adaptation.sample_shape)
        and spec.sample_shape != adaptation.sample_shape,
    }
    for part, clash in clashes.items():
        if clash:
            raise UsageError(
                f"target {target.name} brings its own {part}: another does not go with it.", f"Leave the {part} out."
            )


def _without_wrong_experiment(settings: Settings, catalog: Catalog) -> Settings:
    """Return the settings, without the name of an experiment whose task they do not carry out."""
    if not settings.experiment or _carries_out(settings, catalog):
        return settings
    return settings.model_copy(update={"experiment": ""})


def _carries_out(settings: Settings, catalog: Catalog) -> bool:
    """Return True if complete settings are of the task of the experiment that they name.

    Only options of the method, the seed, the extent, the size of pools and swept fields may differ.
    """
    experiment = next((e for e in catalog.experiments() if e.name == settings.experiment), None)
    if experiment is None:
        return False
    wanted = plan_run(RunSpec.parse({**experiment.spec, "experiment": ""}), catalog).settings
    swept = {key for axis in experiment.sweep.axes for key in axis.keys} if experiment.sweep else set()

    def task(settings: Settings) -> dict[str, Any]:
        fields = settings.model_dump(exclude=_EXTENT | swept)
        fields["method"] = settings.method.name
        for part in ("init", "eval_init", "target"):
            if fields.get(part) is not None:
                for option in _POOL_OPTIONS:
                    fields[part]["options"].pop(option, None)
        return fields

    return task(settings) == task(wanted)
