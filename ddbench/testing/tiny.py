"""Data and tasks on which a plugin runs in a second: one random pattern per class, in noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from ddbench.contract.component import Component
from ddbench.contract.examples import ExampleSet, ImageSplits
from ddbench.contract.experts import Teachers, TrainedNetworks
from ddbench.contract.inits import InitRequest, Side
from ddbench.contract.observer import Silent
from ddbench.contract.plan import EvaluationPlan, Plan
from ddbench.contract.spec import Choice, RunSpec, Settings
from ddbench.contract.state import State
from ddbench.contract.task import Budget, Networks, Objective, Task
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.decoders import Decoders
from ddbench.engine.fit import POOL_RATE, Recipe, train_each
from ddbench.engine.networks import unstack
from ddbench.modalities.image import normalise
from ddbench.pipeline.experts import ExpertSource
from ddbench.pipeline.plan import plan_method
from ddbench.protocols.base import Setting
from ddbench.protocols.replay import REPLAY_V1
from ddbench.testing.pools import TinyPools

SIZE = 8
TEACHER_STEPS = 20
"""Steps of Adam at most that a teacher of a tiny task takes."""
Layer = Literal["", "batch norm", "dropout"]


@dataclass(frozen=True)
class Tiny:
    """The settings of a tiny task.

    Attributes:
        channels: channels of an image.
        classes: number of classes.
        images_per_class: the budget over all steps.
        steps: gradient steps per epoch.
        epochs: passes over the steps.
        objective: name of the objective.
        linear: a linear network instead of a convolutional one.
        layer: a layer behind the convolution that behaves otherwise in training.
    """

    channels: int = 1
    classes: int = 3
    images_per_class: int = 2
    steps: int = 2
    epochs: int = 2
    objective: str = "classification"
    linear: bool = False
    layer: Layer = ""


def examples(channels: int, classes: int, per_class: int = 40) -> tuple[ExampleSet, ExampleSet]:
    """Return training and test images of 8x8 pixels, whose classes are easy to distinguish."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(40, 216, (classes, channels, SIZE, SIZE), generator=generator).float()

    def split(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(classes).repeat_interleave(count)
        noise = 25 * torch.randn((len(labels), channels, SIZE, SIZE), generator=generator)
        return (patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels

    return normalise("tiny", ImageSplits(*split(per_class), *split(per_class)), _names(classes), "image")


def _names(classes: int) -> tuple[str, ...]:
    return tuple(f"class {label}" for label in range(classes))


def network(channels: int, classes: int, *, linear: bool = False, layer: Layer = "") -> nn.Module:
    """Return a convolution and a linear layer, or only a linear layer; always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if linear:
            return nn.Sequential(nn.Flatten(), nn.Linear(channels * SIZE**2, classes))
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            *([nn.BatchNorm2d(4)] if layer == "batch norm" else []),
            *([nn.Dropout(0.3)] if layer == "dropout" else []),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * (SIZE // 2) ** 2, classes),
        )


def objective(catalog: Catalog, name: str, train: ExampleSet) -> Objective:
    """Return an objective with its default options."""
    component, choice = catalog.resolve("objective", Choice(name=name))
    result: Objective = component.call(choice.options, train.info)
    return result


def plan(catalog: Catalog, tiny: Tiny, method: Component) -> Plan:
    """Return the plan of a run of `method`; its networks are the built-in ones that are nearest to the tiny ones."""
    facts = {"classes": _names(tiny.classes), "sample_shape": (tiny.channels, SIZE, SIZE)}
    dataset = Component("dataset", "tiny", examples, pydantic.create_model("tiny_options"), facts)
    network, network_choice = catalog.resolve("network", Choice(name="linear" if tiny.linear else "convnet"))
    init, init_choice = catalog.resolve("init", Choice(name="random"))
    objective, objective_choice = catalog.resolve("objective", Choice(name=tiny.objective))
    asked = RunSpec.parse({"method": method.name, "dataset": "tiny", "steps": tiny.steps, "epochs": tiny.epochs})
    choices = {"network": network_choice, "eval_network": network_choice, "init": init_choice, "eval_init": init_choice}
    decided = {**choices, "objective": objective_choice, "images_per_class": tiny.images_per_class}
    settings = Settings.model_validate({**asked.model_dump(), **decided})
    shared = EvaluationPlan(settings, REPLAY_V1, dataset, network, network, objective, init, init, None, None)
    return plan_method(shared, method, {})


def task(catalog: Catalog, tiny: Tiny, generator: torch.Generator) -> Task:
    """Return a task with tensors of its own."""
    train, _ = examples(tiny.channels, tiny.classes)
    networks = _networks(catalog, tiny, train, "train", generator)
    budget = Budget(tiny.images_per_class, tiny.steps, tiny.epochs)
    aim = objective(catalog, tiny.objective, train)
    return Task(
        train,
        aim,
        networks,
        budget,
        train.info,
        _experts(catalog, tiny).within(lambda: math.inf),
        _teachers(catalog, tiny),
        Decoders(catalog, train.info),
    )


def setting(catalog: Catalog, tiny: Tiny) -> Setting:
    """Return the setting in which a protocol scores a set; half of the test images are the validation slice."""
    train, test = examples(tiny.channels, tiny.classes)
    validation = replace(test, inputs=test.inputs[::2], labels=test.labels[::2])
    return Setting(
        network(tiny.channels, tiny.classes, linear=tiny.linear, layer=tiny.layer),
        validation,
        test,
        objective(catalog, tiny.objective, train),
        Budget(tiny.images_per_class, tiny.steps, tiny.epochs),
        lambda side, generator: _networks(catalog, tiny, train, side, generator),
        lambda patience: [],
    )


def _networks(catalog: Catalog, tiny: Tiny, train: ExampleSet, side: Side, generator: torch.Generator) -> Networks:
    component, choice = catalog.resolve("init", Choice(name="random"))

    def draw(request: InitRequest) -> dict[str, Tensor]:
        drawn: dict[str, Tensor] = component.call(choice.options, request)
        return drawn

    module = network(tiny.channels, tiny.classes, linear=tiny.linear, layer=tiny.layer)
    return Networks(module, draw, train.info, generator, side, TinyPools(catalog))


def _experts(catalog: Catalog, tiny: Tiny) -> ExpertSource:
    """Return experts that train in a second, a few of them for a few epochs, as in a smoke run."""
    train, test = examples(tiny.channels, tiny.classes)
    base = {
        "dataset": Choice(name="tiny"),
        "dataset_hash": train.info.content_hash,
        "sample_shape": train.info.sample_shape,
        "validation": 0.0,
        "examples": len(train),
        "network": Choice(name="tiny", options={"linear": tiny.linear, "layer": tiny.layer}),
        "network_source": "",
        "init": Choice(name="random"),
    }

    def start(generator: torch.Generator) -> State:
        return _networks(catalog, tiny, train, "train", generator).sample(1).network(0)

    module = network(tiny.channels, tiny.classes, linear=tiny.linear, layer=tiny.layer)
    return ExpertSource(base, module, start, train, test, Silent(), smoke=True)


def _teachers(catalog: Catalog, tiny: Tiny) -> Teachers:
    """Return teachers that train in a second; another network than the tiny one is not to be had."""
    train, _ = examples(tiny.channels, tiny.classes)
    module = network(tiny.channels, tiny.classes, linear=tiny.linear, layer=tiny.layer).eval()
    trained: dict[tuple[int, int, float], TrainedNetworks] = {}

    def teachers(
        count: int = 1,
        *,
        network: str | Mapping[str, Any] | None = None,
        steps: int | None = None,
        lr: float | None = None,
        weights: str | None = None,
    ) -> TrainedNetworks:
        steps, lr = min(steps or TEACHER_STEPS, TEACHER_STEPS), lr or POOL_RATE
        if (count, steps, lr) not in trained:
            states: list[State] = []
            starts = _networks(catalog, tiny, train, "train", torch.Generator().manual_seed(0)).sample(count)
            several, recipe = list(unstack(module, starts)), Recipe(steps, lr)
            train_each(module, several, range(count), train, recipe, states.append)
            trained[count, steps, lr] = TrainedNetworks(module, tuple(states))
        return trained[count, steps, lr]

    return teachers
