"""From a released set to a `DistilledSet` of the harness, by a reading."""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ddbench.contract.examples import ExampleSet
from ddbench.contract.set_checks import LabelKind
from ddbench.contract.sets import DistilledSet
from ddbench.errors import UsageError
from ddbench.formats.reading import Reading
from ddbench.formats.released_set import ReleasedSet, are_distributions
from ddbench.formats.scale_check import check
from ddbench.formats.scales import PIXELS, Scale, own_scale, to_scale
from ddbench.modalities.image import resized
from ddbench.modalities.whitening import unwhiten


def convert(released: ReleasedSet, reading: Reading, train: ExampleSet, say: Callable[[str], None]) -> DistilledSet:
    """Return the set as networks train on it, in the scale of `train`, all training examples of the dataset.

    What is assumed is said in numbers, before it is done. Raises `UsageError` for images and labels that contradict
    the reading or do not fit the dataset.
    """
    info = train.info
    images = _shaped(released, reading, info.sample_shape, info.name, say)
    if reading.undo:
        say("ZCA-whitening (eps .1, fitted on the training split) is undone.")
        images, scale = unwhiten(images, info.pixels(train.inputs)), PIXELS
    elif reading.whitening is not None:
        say(f"Images are whitened ({reading.whitening}): the data are whitened too, by their training split.")
        scale = own_scale(info)
    else:
        scale = _checked(reading.scale or own_scale(info), images.shape[1])
        say(f"Values of images: {scale.described}.")
    mean, std = _expected(train, scale, whitened=reading.whitening is not None)
    for line in check(images, scale, mean, std, info):
        say(line)
    images = to_scale(images, scale, own_scale(info))
    labels, kind = _labels(released, reading, info.classes, info.name, say)
    lrs = released.lrs if reading.rate is None else torch.tensor(float(reading.rate))
    if lrs is not None:
        say(f"Learning rate: {_rates(lrs)}.")
    if reading.tiles > 1:
        count = reading.tiles**2
        say(
            f"Each stored image is cut into {count} tiles, enlarged: {len(images)} stored images give "
            f"{count * len(images)} to train on. The budget counts those stored."
        )
        repeated = labels.repeat(count, *[1] * (labels.dim() - 1))[None]
        options = {"factor": reading.tiles}
        return DistilledSet.encoded("tiles/v1", {"images": images}, repeated, options, lrs=lrs, label_kind=kind)
    per_step = len(images) // released.steps
    shape = (released.steps, per_step)
    return DistilledSet(
        images.reshape(*shape, *images.shape[1:]), labels.reshape(*shape, *labels.shape[1:]), lrs, label_kind=kind
    )


def _shaped(
    released: ReleasedSet, reading: Reading, shape: tuple[int, ...], name: str, say: Callable[[str], None]
) -> Float[Tensor, "n c h w"]:
    """Return the images in the shape of the dataset."""
    images = released.images
    if images.dim() == 2:
        if images.shape[1] != math.prod(shape):
            raise UsageError(
                f"the images have {images.shape[1]} values each, those of {name} {math.prod(shape)} ({_by(shape)}).",
                "Name the dataset they were made for.",
            )
        return images.reshape(len(images), *shape)
    if tuple(images.shape[1:]) == shape:
        return images
    if not reading.resize:
        raise UsageError(
            f"the images are {_by(images.shape[1:])}, those of {name} {_by(shape)}.",
            "Name the dataset they were made for, or resize: --resize images converts the images of the file, "
            "--resize dataset those of the dataset.",
        )
    say(f"Images are resized from {_by(images.shape[1:])} to {_by(shape)}, the shape of {name}.")
    channels, height, width = shape
    return resized(images, (channels, height, width))


def _checked(scale: Scale, channels: int) -> Scale:
    """Return a scale. Raises `UsageError` for one that is not of so many channels, or cannot be undone."""
    if any(len(values) not in (1, channels) for values in (scale.mean, scale.std)):
        raise UsageError(
            f"mean and std have one number, or one for each of {channels} channels.",
            "Such as --file-mean 0.491,0.482,0.447 --file-std 0.247,0.243,0.262",
        )
    if not all(map(math.isfinite, scale.mean + scale.std)) or any(value <= 0 for value in scale.std):
        raise UsageError(
            "mean and std of the file must be finite, the std above zero.",
            "Give the numbers of the file's authors by --file-mean and --file-std.",
        )
    return scale


def _expected(train: ExampleSet, scale: Scale, *, whitened: bool) -> tuple[list[float], list[float]]:
    """Return mean and std of each channel that real training images have in `scale`."""
    info = train.info
    if whitened:
        return train.inputs.mean((0, 2, 3)).tolist(), train.inputs.std((0, 2, 3)).tolist()
    channels = len(info.mean)
    means, stds = (values * channels if len(values) == 1 else values for values in (scale.mean, scale.std))
    mean = [(own - m) / s for own, m, s in zip(info.mean, means, stds, strict=True)]
    return mean, [own / s for own, s in zip(info.std, stds, strict=True)]


def _labels(
    released: ReleasedSet, reading: Reading, classes: tuple[str, ...], name: str, say: Callable[[str], None]
) -> tuple[Shaped[Tensor, " n *classes"], LabelKind]:
    labels, kind = released.labels, reading.labels
    if not labels.is_floating_point():
        if kind not in (None, "class"):
            raise UsageError(f"each label is a class number, not {kind}.", "Leave out --file-labels.")
        for line in _check_class_numbers(labels, classes, name):
            say(line)
        return labels, "class"
    if labels.shape[1] != len(classes):
        raise UsageError(
            f"the labels are of {labels.shape[1]} classes, {name} has {len(classes)}.",
            "Name the dataset they were made for.",
        )
    if kind == "class":
        say("Labels: the class of the largest number.")
        return labels.argmax(-1), "class"
    if kind == "logits":
        say("Labels: logits, whose softmax networks train on.")
        return labels, kind
    if kind == "regression":
        say("Labels: numbers that networks train on as they are.")
        return labels, kind
    if not are_distributions(labels):
        # Logits look like damaged probabilities: only the user knows.
        raise UsageError(
            "the soft labels are not probabilities: they must not be negative and sum to one.",
            "If they are logits of a teacher, add --file-labels logits; if learned numbers, --file-labels regression; "
            "for the largest as class, --file-labels class.",
        )
    say("Labels: probabilities of the classes.")
    labels = labels.clamp(min=0)
    return labels / labels.sum(-1, keepdim=True), "distribution"


def _check_class_numbers(labels: Int[Tensor, " n"], classes: tuple[str, ...], name: str) -> Iterator[str]:
    """Yield what is to be said of class numbers. Raises `UsageError` for those that are not of the dataset."""
    count = len(classes)
    if not 0 <= labels.min() <= labels.max() < count:
        raise UsageError(
            f"the labels are {int(labels.min())} to {int(labels.max())}, the {count} classes of {name} are "
            f"0 to {count - 1}.",
            "Name the dataset they were made for.",
        )
    each = labels.bincount(minlength=count)
    missing = torch.nonzero(each == 0).flatten().tolist()
    if missing and len(labels) >= count:
        raise UsageError(
            f"class {classes[missing[0]]!r} has no image in this file.",
            f"Name the dataset it was made for, or take a file with images of every class of {name}.",
        )
    if missing:
        yield f"Labels: class numbers; {len(missing)} of {count} classes have no image."
    elif int(each.min()) == int(each.max()):
        yield f"Labels: class numbers, {int(each[0])} for each class."
    else:
        yield f"Labels: class numbers, from {int(each.min())} to {int(each.max())} for each class."


def _rates(lrs: Tensor) -> str:
    if not lrs.dim() or lrs.numel() == 1:
        return f"{float(lrs):.4g}"
    low, high = (float(value) for value in lrs.aminmax())
    return f"{lrs.numel()} rates for {lrs.shape[0]} x {lrs.shape[1]} steps, from {low:.4g} to {high:.4g}"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
