"""Load a dataset, convert and split its examples, and build a network for them."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

from ddbench.contract.component import Component
from ddbench.contract.examples import DatasetInfo, ExampleSet, ExamplesRequest, ImageSplits, Splits
from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.spec import Choice, Settings, Whitening
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.modalities import modality_of
from ddbench.engine.networks import evaluation_mode
from ddbench.errors import PluginError
from ddbench.machine.folders import data_dir
from ddbench.machine.seeds import derive_seed


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
    sample_shape: tuple[int, ...] | None,
    *,
    download: bool,
    catalog: Catalog,
    whitening: Whitening | None = None,
    reporter: Reporter | None = None,
) -> tuple[ExampleSet, ExampleSet]:
    """Return training and test examples of a dataset as its modality makes them, such as normalised images.

    Images are converted to `sample_shape` where one is given; with `whitening` they are ZCA-whitened instead of
    normalised per channel. What loading changed in the examples is said to `reporter`.
    Raises `PluginError` when the dataset's plugin fails or its data are invalid, `UsageError` for a shape that examples
    cannot be converted to.
    """
    modality = modality_of(dataset, catalog)
    splits = dataset.call(choice.options, data_dir(), download)
    if not isinstance(splits, ImageSplits | Splits):
        raise PluginError(
            f"{dataset.who} returned {type(splits).__name__}, not ImageSplits.",
            "Return a ddbench.ImageSplits, or ddbench.Splits of another modality.",
        )
    classes = tuple(dataset.facts["classes"])
    # The declared shape is that of the default options; others, such as a size, may change it.
    plain = dataset.validated(choice.options) == dataset.validated({})
    declared = tuple(dataset.facts["sample_shape"]) if plain else None
    if isinstance(splits, ImageSplits):
        splits.validate(dataset.who, len(classes), declared)
    else:
        splits.validate(dataset.who, len(classes))
    for notice in splits.notices:
        (reporter or Silent()).say(f"{modality.name.capitalize() + 's':<8} {notice}")
    request = request_of(dataset, modality, sample_shape, whitening)
    train, test = modality.call({}, splits, request)
    shape = train.info.sample_shape
    if declared is not None and sample_shape is None and shape != declared:
        raise PluginError(
            f"{dataset.who} gives examples of shape {list(shape)} where {list(declared)} is expected.",
            "Declare the shape that its modality makes as sample_shape.",
        )
    return train, test


def request_of(
    dataset: Component,
    modality: Component,
    sample_shape: tuple[int, ...] | None = None,
    whitening: Whitening | None = None,
) -> ExamplesRequest:
    """Return what the modality of a dataset is asked for."""
    return ExamplesRequest(
        name=dataset.facts.get("label", dataset.name),
        classes=tuple(dataset.facts["classes"]),
        modality=modality.name,
        augmentations=modality.facts.get("augmentations", ()),
        sample_shape=sample_shape,
        whitening=whitening,
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
        sample_shape: tuple[int, ...] | None,
        settings: Settings,
        *,
        download: bool,
        catalog: Catalog,
        reporter: Reporter | None = None,
    ) -> Self:
        """Load a dataset, whitened as `settings` say, and cut the validation slice off its training split.

        Raises as `load_examples`.
        """
        everything, test = load_examples(
            dataset,
            choice,
            sample_shape,
            download=download,
            catalog=catalog,
            whitening=settings.whitening,
            reporter=reporter,
        )
        return cls(*split_validation(everything, settings.validation), test)

    def first_of_each_class(self, train: int, test: int) -> Self:
        """Return the first `train` training examples of each class, and the first `test` of the other two."""
        return replace(
            self,
            train=first_of_each_class(self.train, train),
            validation=first_of_each_class(self.validation, test),
            test=first_of_each_class(self.test, test),
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


def first_of_each_class(examples: ExampleSet, count: int) -> ExampleSet:
    """Return the first `count` examples of each class."""
    chosen = [examples.of_class(label)[:count] for label in range(len(examples.info.classes))]
    return examples[torch.cat(chosen)]
