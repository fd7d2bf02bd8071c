"""Layouts of files that other programs read: one function for each, from a set to the bytes of its files.

`dc` and `mtt` are what the repositories of DC (https://github.com/VICO-UoE/DatasetCondensation) and of MTT and DATM
write and read. `folder` is read by torchvision's `ImageFolder`, `webdataset` by the package of that name.
"""

import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddbench.contract.set_checks import LabelKind
from ddbench.errors import UsageError
from ddbench.formats.released_set import are_distributions
from ddbench.formats.scales import DC, MTT, Scale


@dataclass(frozen=True)
class PixelSet:
    """A set as the writers take it: all examples in one batch, on the scale of pixels.

    Attributes:
        images: `[n, channels, height, width]` float64. Real images lie in [0, 1]; these are not clipped.
        labels: `[n]` int64, or `[n, classes]` float32.
        kind: the kind of the labels.
        dataset: the name of the dataset that the set was made for; empty where the set does not say.
        scale: the numbers that the set itself was normalised by.
        classes: the names of the classes; empty where the set does not say.
        lrs: rates, `[epochs, steps]` or a scalar, or None.
        weights: `[n]`, the weight of each example in the loss, or None.
    """

    images: Float[Tensor, "n c h w"]
    labels: Shaped[Tensor, " n *classes"]
    kind: LabelKind
    dataset: str
    scale: Scale
    classes: tuple[str, ...] = ()
    lrs: Tensor | None = None
    weights: Float[Tensor, " n"] | None = None


@dataclass(frozen=True)
class Written:
    """Files that a writer makes of a set.

    Attributes:
        files: the bytes of each file by its path in the folder; of a layout that is one file, by the empty path.
        notes: a sentence for each thing that a reader of the files has to know.
        holds: what the files hold beside images and labels: `lrs`, every rate; `rate`, the one value that all rates
            have; `weights`.
    """

    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()
    holds: frozenset[str] = frozenset()


def dc(pixel_set: PixelSet) -> Written:
    """Write `{"data": [[images, labels]], "accs_all_exps": {}}`, ordered by class. Raises `UsageError` for soft labels.

    Images are float32 `[n, channels, height, width]`, normalised by the numbers of DC; labels are int64 `[n]`.
    """
    labels = _hard_labels(pixel_set, "dc")
    images, note = _normalised(pixel_set, DC, "DC")
    order = labels.argsort(stable=True)
    return Written({"": _saved({"data": [[images[order], labels[order]]], "accs_all_exps": {}})}, (note,))


def mtt(pixel_set: PixelSet) -> Written:
    """Write `images_best.pt`, `labels_best.pt` and, of a set with one rate, `lr_best.pt`.

    Images are normalised by the numbers of MTT. Soft labels are logits, because DATM trains on their softmax; of
    probabilities they are the logarithms. Raises `UsageError` for soft labels that are neither.
    """
    images, note = _normalised(pixel_set, MTT, "MTT")
    labels, notes = pixel_set.labels, [note]
    if pixel_set.kind == "distribution" and are_distributions(labels):
        labels = labels.clamp_min(torch.finfo(torch.float32).tiny).log()
        notes.append("Soft labels are written as logarithms of probabilities: their softmax gives the probabilities.")
    elif pixel_set.kind not in ("class", "logits"):
        _refuse_labels("mtt", "labels that are neither classes, probabilities nor logits", "npz")
    files = {"images_best.pt": _saved(images), "labels_best.pt": _saved(labels)}
    rates = pixel_set.lrs
    if rates is None or not (rates == rates.flatten()[0]).all():
        return Written(files, tuple(notes))
    rate = rates.flatten()[0].clone()
    return Written({**files, "lr_best.pt": _saved(rate)}, tuple(notes), frozenset({"rate"}))


def folder(pixel_set: PixelSet) -> Written:
    """Write `CLASS/INDEX.png`, with the names of the classes and the numbers of the examples in the set.

    Raises `UsageError` for soft labels, for classes without a name, and for images that are neither grey nor RGB.
    """
    labels = _hard_labels(pixel_set, "folder").tolist()
    if not pixel_set.classes:
        raise UsageError(
            "the set does not say the names of its classes.",
            "Add them with distilled.described(classes=[...]), or write another layout: --to npz",
        )
    pictures, notes = _pictures(pixel_set)
    names = _folder_names(pixel_set.classes)
    renamed = [f"{old!r} is {new!r}" for old, new in zip(pixel_set.classes, names, strict=True) if old != new]
    if renamed:
        notes += (f"Names of classes were changed for file systems: {', '.join(renamed)}.",)
    width = len(str(len(labels) - 1))
    files = {f"{names[label]}/{i:0{width}}.png": pictures[i] for i, label in enumerate(labels)}
    return Written(files, notes)


def npz(pixel_set: PixelSet) -> Written:
    """Write the arrays `images` `[n, height, width, channels]`, `labels`, and where present `lrs` and `weights`.

    Images are float32 pixels, not clipped; labels are int64 `[n]`, or float32 `[n, classes]`.
    """
    arrays = {"images": pixel_set.images.float().permute(0, 2, 3, 1), "labels": pixel_set.labels}
    extra = {name: getattr(pixel_set, name) for name in ("lrs", "weights") if getattr(pixel_set, name) is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: tensor.contiguous().numpy() for name, tensor in {**arrays, **extra}.items()})
    notes = ["Images are pixels, neither normalised nor clipped: mean 0 and std 1."]
    if pixel_set.kind != "class":
        notes.append(f"Soft labels are of the kind {pixel_set.kind}.")
    return Written({"": buffer.getvalue()}, tuple(notes), frozenset(extra))


def webdataset(pixel_set: PixelSet) -> Written:
    """Write a tar of `INDEX.png` and `INDEX.cls`, the class number, in the order of the set. Equal sets, equal bytes.

    A soft label is `INDEX.json` with `label` and `label_kind`. Raises `UsageError` for images that are neither grey nor
    RGB.
    """
    pictures, notes = _pictures(pixel_set)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for i, (picture, label) in enumerate(zip(pictures, pixel_set.labels.tolist(), strict=True)):
            hard = pixel_set.kind == "class"
            text = str(label) if hard else json.dumps({"label": label, "label_kind": pixel_set.kind})
            for suffix, content in (("png", picture), ("cls" if hard else "json", text.encode())):
                # Times and owners stay 0 and empty, as a new entry has them.
                entry = tarfile.TarInfo(f"{i:06}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return Written({"": buffer.getvalue()}, notes)


@dataclass(frozen=True)
class Layout:
    """A layout: the function that writes it, and the ending of its file; a folder has none."""

    write: Callable[[PixelSet], Written]
    suffix: str = ""


LAYOUTS: Mapping[str, Layout] = {
    "dc": Layout(dc, ".pt"),
    "mtt": Layout(mtt),
    "folder": Layout(folder),
    "npz": Layout(npz, ".npz"),
    "webdataset": Layout(webdataset, ".tar"),
}


def _normalised(
    pixel_set: PixelSet, published: Mapping[str, Scale], whose: str
) -> tuple[Float[Tensor, "n c h w"], str]:
    """Return float32 images by the published numbers of their dataset, or else by the set's own, and say which."""
    scale, channels = published.get(pixel_set.dataset), pixel_set.images.shape[1]
    if scale is not None and len(scale.mean) == channels:
        note = f"Images are normalised as {whose} normalises {pixel_set.dataset}: {scale}."
    else:
        scale, name = pixel_set.scale, pixel_set.dataset or "a dataset that the set does not name"
        shown = f"{name} in {channels} channel{'s' * (channels > 1)}"
        note = f"{whose} has no numbers for {shown}: images are normalised by the set's own {scale}."
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (scale.mean, scale.std))
    return ((pixel_set.images - mean) / std).float(), note


def _hard_labels(pixel_set: PixelSet, layout: str) -> Tensor:
    if pixel_set.kind != "class":
        others = "webdataset or npz" if layout == "folder" else "mtt or npz"
        _refuse_labels(layout, "soft labels", others)
    return pixel_set.labels


def _refuse_labels(layout: str, what: str, others: str) -> NoReturn:
    raise UsageError(f"the set has {what}, which the layout {layout} cannot hold.", f"Write another: --to {others}")


def _pictures(pixel_set: PixelSet) -> tuple[list[bytes], tuple[str, ...]]:
    """Return each image as PNG of 8 bits, and how many values were clipped to [0, 1]."""
    if pixel_set.images.shape[1] not in (1, 3):
        raise UsageError(
            f"the images have {pixel_set.images.shape[1]} channels, PNG holds one (grey) or three (RGB).",
            "Write another layout: --to npz",
        )
    levels = (pixel_set.images * 255).round()
    clipped = int(((levels < 0) | (levels > 255)).sum())
    arrays = levels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).squeeze(-1).numpy()
    return [_png(array) for array in arrays], (
        f"Pixels are rounded to 256 levels; {clipped} of {levels.numel()} values were clipped to [0, 1].",
    )


def _png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _saved(content: Any) -> bytes:
    """Return the bytes of a file of `torch.save`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _folder_names(classes: tuple[str, ...]) -> list[str]:
    """Return a name for the folder of each class: as it is where every file system takes it, and no two alike."""
    names: list[str] = []
    for label, name in enumerate(classes):
        # At most 60 characters: four bytes each still fit into the 255 of a name.
        safe = re.sub(r"[^\w .,+()'-]", "_", name)[:60].strip(" .")
        taken = {other.casefold() for other in names}
        names.append(f"{label}_{safe}" if not safe or safe.casefold() in taken else safe)
    return names
