"""Checks of modalities, each on the example that the modality gives."""

from collections.abc import Sequence

import torch

from ddbench.contract.examples import ExampleSet, ExamplesRequest, ImageSplits, Splits
from ddbench.contract.presentation import Presentation
from ddbench.contract.sets import DistilledSet
from ddbench.errors import DdbenchError
from ddbench.testing.checks import EVERY, Check, Failed, Subject, untouched_globals

CLASSES = ("a", "b")


def _made(subject: Subject) -> tuple[ImageSplits | Splits, ExampleSet, ExampleSet]:
    """Return the example, and the training and test examples that the modality makes of it."""
    component = subject.component
    splits = component.facts["example"](torch.Generator().manual_seed(0))
    if not isinstance(splits, ImageSplits | Splits):
        raise Failed(f"its example is a {type(splits).__name__}.", "Return ddbench.Splits.")
    splits.validate("its example", len(CLASSES))
    request = ExamplesRequest("tiny", CLASSES, component.name, component.facts.get("augmentations", ()))
    made = component.call({}, splits, request)
    if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(part, ExampleSet) for part in made)):
        raise Failed(f"it returns {type(made).__name__}.", "Return two ExampleSet: request.examples(...).")
    return splits, *made


def makes_examples(subject: Subject) -> None:
    """Require finite float32 inputs of the shape that the facts state, with the labels of the dataset."""
    splits, train, test = _made(subject)
    for examples, labels in ((train, splits.train_labels), (test, splits.test_labels)):
        inputs = examples.inputs
        if inputs.dtype != torch.float32 or not torch.isfinite(inputs).all():
            raise Failed(f"its inputs are {inputs.dtype}, or not finite.", "Return finite float32 inputs.")
        if tuple(inputs.shape[1:]) != examples.info.sample_shape:
            raise Failed(
                f"inputs of shape {list(inputs.shape[1:])} are stated as {list(examples.info.sample_shape)}.",
                "Make them by request.examples(...), which states the shape.",
            )
        if not torch.equal(examples.labels, labels):
            raise Failed("labels differ from those of the dataset.", "Leave labels as they are.")
    if train.info.modality != subject.component.name or train.info.content_hash != splits.content_hash():
        raise Failed("its facts name another modality or hash.", "Make them by request.examples(...).")


def makes_the_same_again(subject: Subject) -> None:
    """Require the same inputs at each call, and unchanged global state."""
    _, train, test = _made(subject)
    with untouched_globals():
        _, again, test_again = _made(subject)
    if not torch.equal(train.inputs, again.inputs) or not torch.equal(test.inputs, test_again.inputs):
        raise Failed("two calls on the same data differ.", "Draw no random numbers, or draw them with a fixed seed.")


def ignores_the_test_split(subject: Subject) -> None:
    """Require training inputs that do not depend on test examples: normalisation is that of the training split."""
    splits, train, _ = _made(subject)
    if isinstance(splits, ImageSplits):
        changed: ImageSplits | Splits = ImageSplits(
            splits.train_images, splits.train_labels, splits.train_images[:1], splits.train_labels[:1]
        )
    else:
        changed = Splits(
            splits.train_inputs,
            splits.train_labels,
            splits.train_inputs[:1],
            splits.train_labels[:1],
            tensors=splits.tensors,
            metadata=splits.metadata,
        )
    component = subject.component
    request = ExamplesRequest("tiny", CLASSES, component.name, component.facts.get("augmentations", ()))
    other, _ = component.call({}, changed, request)
    if not torch.equal(other.inputs, train.inputs):
        raise Failed("training inputs change with the test split.", "Normalise by the training split alone.")


def presents_a_set(subject: Subject) -> None:
    """Require a presentation of a set of its examples, from the file alone, with one picture for each if any."""
    _, train, _ = _made(subject)
    distilled = DistilledSet(train.inputs[None], train.labels[None]).described(
        modality=train.info.modality, classes=list(CLASSES), mean=list(train.info.mean), std=list(train.info.std)
    )
    distilled = distilled.described(**train.info.metadata)
    path = subject.folder / "set.safetensors"
    distilled.save(path)
    shown = subject.component.facts["present"](DistilledSet.load(path))
    if not isinstance(shown, Presentation):
        raise Failed(f"it presents {type(shown).__name__}.", "Return a ddbench.Presentation.")
    pixels = shown.pixels
    if pixels is not None and (
        pixels.dim() != 4 or len(pixels) != len(train) or not ((pixels >= 0) & (pixels <= 1)).all()
    ):
        raise Failed(f"its pixels have the shape {list(pixels.shape)}, or leave [0, 1].", "Give [total, c, h, w].")
    if pixels is None and not shown.lines and not shown.files:
        raise Failed("it presents nothing.", "Give pixels, lines or files.")


def refuses_whitening(subject: Subject) -> None:
    """Require a `UsageError`, or examples, where whitening is asked for: it must not be ignored."""
    splits, train, _ = _made(subject)
    request = ExamplesRequest("tiny", CLASSES, subject.component.name, whitening="zca")
    try:
        whitened, _ = subject.component.call({}, splits, request)
    except DdbenchError:
        return
    if torch.equal(whitened.inputs, train.inputs):
        raise Failed("whitening is ignored.", "Call request.refuse_image_settings().")


MODALITY: Sequence[Check] = (
    *EVERY,
    makes_examples,
    makes_the_same_again,
    ignores_the_test_split,
    presents_a_set,
    refuses_whitening,
)
