"""Data and tasks on which a plugin runs in a second: one random pattern per class, in noise."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ddbench.contract.examples import ExampleSet, ImageSplits
from ddbench.contract.inits import InitRequest, Side
from ddbench.contract.spec import Choice
from ddbench.contract.task import Budget, Networks, Objective, Task
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.decoders import Decoders
from ddbench.modalities.image import normalise
from ddbench.protocols.base import Setting
from ddbench.testing.pools import TinyPools

SIZE = 8


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
    """

    channels: int = 1
    classes: int = 3
    images_per_class: int = 2
    steps: int = 2
    epochs: int = 2
    objective: str = "classification"
    linear: bool = False


def examples(channels: int, classes: int, per_class: int = 40) -> tuple[ExampleSet, ExampleSet]:
    """Return training and test images of 8x8 pixels, whose classes are easy to distinguish."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(40, 216, (classes, channels, SIZE, SIZE), generator=generator).float()

    def split(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(classes).repeat_interleave(count)
        noise = 25 * torch.randn((len(labels), channels, SIZE, SIZE), generator=generator)
        return (patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels

    names = tuple(f"class {label}" for label in range(classes))
    return normalise("tiny", ImageSplits(*split(per_class), *split(per_class)), names, "image")


def network(channels: int, classes: int, *, linear: bool = False) -> nn.Module:
    """Return a convolution and a linear layer, or only a linear layer; always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if linear:
            return nn.Sequential(nn.Flatten(), nn.Linear(channels * SIZE**2, classes))
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
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


def task(catalog: Catalog, tiny: Tiny, generator: torch.Generator) -> Task:
    """Return a task with tensors of its own."""
    train, _ = examples(tiny.channels, tiny.classes)
    networks = _networks(catalog, tiny, train, "train", generator)
    budget = Budget(tiny.images_per_class, tiny.steps, tiny.epochs)
    decode = Decoders(catalog, train.info)
    return Task(train, objective(catalog, tiny.objective, train), networks, budget, train.info, decode)


def setting(catalog: Catalog, tiny: Tiny) -> Setting:
    """Return the setting in which a protocol scores a set; half of the test images are the validation slice."""
    train, test = examples(tiny.channels, tiny.classes)
    validation = replace(test, inputs=test.inputs[::2], labels=test.labels[::2])
    return Setting(
        network(tiny.channels, tiny.classes, linear=tiny.linear),
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

    module = network(tiny.channels, tiny.classes, linear=tiny.linear)
    return Networks(module, draw, train.info, generator, side, TinyPools(catalog))
