"""Load a dataset, convert and split its examples, and build a network for them."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

from ddbench.contract.component import Component
from ddbench.contract.examples import DatasetInfo, ExampleSet, ImageSplits
from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.spec import Choice, Settings, Whitening
from ddbench.engine.networks import evaluation_mode
from ddbench.errors import DdbenchError, PluginError
from ddbench.machine.environment import free_memory
from ddbench.machine.folders import data_dir
from ddbench.machine.seeds import derive_seed
from ddbench.modalities.image import Shape, converted, normalise


def info_from_facts(dataset: Component, sample_shape: tuple[int, ...] | None = None) -> DatasetInfo:
    """Return the facts of a dataset that are known before it is loaded."""
    facts = dataset.facts
    return DatasetInfo(
        name=dataset.name,
        classes=tuple(facts["classes"]),
        sample_shape=sample_shape or tuple(facts["sample_shape"]),
        mean=(0.0,),
        std=(1.0,),
        modality=facts.get("modality", "image"),
        content_hash="",
        partial=False,
    )


def load_examples(
    dataset: Component,
    choice: Choice,
    sample_shape: Shape | None,
    *,
    download: bool,
    whitening: Whitening | None = None,
    reporter: Reporter | None = None,
) -> tuple[ExampleSet, ExampleSet]:
    """Return training and test examples of a dataset, normalised, and converted to `sample_shape` where one is given.

    With `whitening` they are ZCA-whitened instead of normalised per channel. What loading changed in the images is
    said to `reporter`.
    Raises `PluginError` when the dataset's plugin fails or its data are invalid, `UsageError` for a shape that images
    cannot be converted to.
    """
    splits = dataset.call(choice.options, data_dir(), download)
    if not isinstance(splits, ImageSplits):
        raise PluginError(
            f"{dataset.who} returned {type(splits).__name__}, not ImageSplits.", "Return a ddbench.ImageSplits."
        )
    classes = tuple(dataset.facts["classes"])
    # The declared shape is that of the default options; others, such as a size, may change it.
    plain = dataset.validated(choice.options) == dataset.validated({})
    splits.validate(dataset.who, len(classes), tuple(dataset.facts["sample_shape"]) if plain else None)
    for notice in splits.notices:
        (reporter or Silent()).say(f"Images   {notice}")
    if sample_shape is not None:
        _check_memory(dataset.name, splits, sample_shape)
        splits = converted(splits, sample_shape)
    name, modality = dataset.facts.get("label", dataset.name), dataset.facts.get("modality", "image")
    return normalise(name, splits, classes, modality, whitening)


def _check_memory(name: str, splits: ImageSplits, shape: Shape) -> None:
    """Raise `DdbenchError` where the examples as float32, and their split, cannot fit."""
    needed = (2 * len(splits.train_images) + len(splits.test_images)) * math.prod(shape) * 4
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise DdbenchError(
            f"{name} at {shape[1]}x{shape[2]} pixels takes {needed / 1e9:.0f} GB; {free / 1e9:.0f} GB are free.",
            "Convert to fewer pixels, such as --set target.size=64.",
        )


@dataclass(frozen=True)
class Data:
    """The examples of a dataset: those that methods see, the validation slice of the training split, the test split."""

    train: ExampleSet
    validation: ExampleSet
    test: ExampleSet

    @classmethod
    def load(
        cls,
        dataset: Component,
        choice: Choice,
        sample_shape: Shape | None,
        settings: Settings,
        *,
        download: bool,
        reporter: Reporter | None = None,
    ) -> Self:
        """Load a dataset, whitened as `settings` say, and cut the validation slice off its training split.

        Raises as `load_examples`.
        """
        everything, test = load_examples(
            dataset, choice, sample_shape, download=download, whitening=settings.whitening, reporter=reporter
        )
        return cls(*split_validation(everything, settings.validation), test)

    def first_of_each_class(self, train: int, test: int) -> Self:
        """Return the first `train` training examples of each class, and the first `test` of the other two."""
        return replace(
            self,
            train=_first_of_each_class(self.train, train),
            validation=_first_of_each_class(self.validation, test),
            test=_first_of_each_class(self.test, test),
        )

    def to(self, device: torch.device) -> Self:
        """Return the same examples on `device`."""
        return type(self)(self.train.to(device), self.validation.to(device), self.test.to(device))


def split_validation(train: ExampleSet, share: float) -> tuple[ExampleSet, ExampleSet]:
    """Return `train` without the validation slice, and the slice: `share` of each class, the same for every seed."""
    generator = torch.Generator().manual_seed(derive_seed("validation slice"))
    kept, held_out = [], []
    for label in range(len(train.info.classes)):
        members = train.of_class(label)
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(share * len(members))), max(0, len(members) - 1))
        held_out.append(members[:count])
        kept.append(members[count:])
    return train[torch.cat(kept).sort().values], train[torch.cat(held_out).sort().values]


def build(component: Component, choice: Choice, info: DatasetInfo) -> nn.Module:
    """Return the network for `info`. Raises `PluginError` for a module that does not take the dataset's examples."""
    with torch.random.fork_rng(devices=[]):
        module = component.call(choice.options, info)
    check_network(module, component.who, info)
    assert isinstance(module, nn.Module)
    return module


def check_network(module: object, who: str, info: DatasetInfo) -> None:
    """Raise `PluginError` unless `module` maps examples of the dataset to one number for each class."""
    if not isinstance(module, nn.Module):
        raise PluginError(f"{who} returned {type(module).__name__}, not an nn.Module.", "Return a torch.nn.Module.")
    try:
        with torch.no_grad(), evaluation_mode(module):
            shape = tuple(module(torch.zeros(2, *info.sample_shape)).shape)
    except Exception as error:
        raise PluginError(
            f"{who} does not work on examples of shape {list(info.sample_shape)}: {error}.",
            "Choose another with --network; `ddbench list networks` names them.",
        ) from error
    if shape != (2, len(info.classes)):
        raise PluginError(
            f"{who} gives outputs {list(shape[1:])} for {len(info.classes)} classes.", "Give one number for each class."
        )


def _first_of_each_class(examples: ExampleSet, count: int) -> ExampleSet:
    chosen = [examples.of_class(label)[:count] for label in range(len(examples.info.classes))]
    return examples[torch.cat(chosen)]
