"""Write a distilled set in a layout that other programs read."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ddbench.contract.set_checks import LABEL_KINDS
from ddbench.contract.sets import DistilledSet
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.decoders import decode
from ddbench.errors import UsageError
from ddbench.formats.scales import Scale
from ddbench.formats.writers import LAYOUTS, PixelSet
from ddbench.machine.files import atomic_write, explained_os_errors, sha256
from ddbench.records.result import RunFolder


@dataclass(frozen=True)
class Export:
    """An export: the files, and what a reader of them has to know.

    Attributes:
        path: the file or folder.
        layout: the name of its layout.
        files: the SHA-256 of each file by its path.
        notes: a sentence for each thing that a reader of the files has to know.
        lost: each part of the set that the layout does not hold, as the end of a sentence.
    """

    path: Path
    layout: str
    files: Mapping[str, str]
    notes: tuple[str, ...]
    lost: tuple[str, ...]


def export(run: Path, layout: str, catalog: Catalog, out: Path | None = None, *, force: bool = False) -> Export:
    """Write the set of `run`, a run folder or a file of a set, in a layout of `LAYOUTS` to `out`.

    `out` is by default `export-LAYOUT` beside the set. What exists there is replaced only by `force`, and a folder only
    where an export wrote it. Raises `UsageError` for a set that cannot be read or that the layout cannot hold, and
    `DdbenchError` where it cannot be written.
    """
    source, writer = _source(run), LAYOUTS[layout]
    path = out or source.with_name(f"export-{layout}{writer.suffix}")
    _check_free(path, source, is_folder=not writer.suffix, force=force)
    stored = DistilledSet.load(source)
    distilled = decode(stored, catalog)
    written = writer.write(_pixel_set(distilled, source))
    if writer.suffix:
        atomic_write(path, written.files[""])
    else:
        _write_folder(path, written.files)
    files = {str(path / name if name else path): sha256(content) for name, content in written.files.items()}
    return Export(
        path, layout, files, (*_decoding(stored, distilled), *written.notes), tuple(_lost(distilled, written.holds))
    )


def _source(run: Path) -> Path:
    """Return the file of the set: of a folder, or of a name below runs/, its distilled.safetensors."""
    folder = RunFolder(run if run.exists() else Path("runs") / run)
    if not folder.path.is_dir():
        return run
    if folder.artifact.exists():
        return folder.artifact
    if folder.spec.exists():
        raise UsageError(
            f"the run in {folder.path} has no distilled set yet.", f"Continue it: ddbench resume {folder.path}"
        )
    raise UsageError(
        f"{folder.path} is not a run folder: it has no distilled.safetensors.", "See the folders in runs/."
    )


def _check_free(path: Path, source: Path, *, is_folder: bool, force: bool) -> None:
    """Raise `UsageError` where something that is to be kept stands at `path`."""
    with explained_os_errors(path):
        if not path.exists():
            return
        if path.resolve() == source.resolve():
            raise UsageError(f"{path} is the set itself.", "Choose another --out.")
        if not force:
            raise UsageError(f"{path} exists.", "Replace it with --force, or choose another --out.")
        if path.is_dir() != is_folder or (is_folder and not _is_export(path)):
            what = "a folder with other files" if path.is_dir() else "a file"
            raise UsageError(f"{path} is {what}, which --force does not replace.", "Choose another --out.")


def _is_export(folder: Path) -> bool:
    """Return True for a folder that holds nothing but what a layout of this module puts into one."""
    content = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    tensors = {"images_best.pt", "labels_best.pt", "lr_best.pt"}
    return all(str(path) in tensors for path in content) or all(
        len(path.parts) == 2 and path.suffix == ".png" and path.stem.isdigit() for path in content
    )


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Replace the folder `path` by one with `files`, or leave it unchanged."""
    with explained_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as work:
            new, old = Path(work, "new"), Path(work, "old")
            for name, content in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(content)
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except BaseException:
                if old.exists():
                    old.rename(path)
                raise


def _pixel_set(distilled: DistilledSet, source: Path) -> PixelSet:
    """Return the set as writers take it. Raises `UsageError` for a set that is damaged or does not hold images."""
    inputs, labels, weights = distilled.inputs, distilled.labels, distilled.weights
    modality = distilled.metadata.get("modality", "image")
    if modality != "image":
        raise UsageError(
            f"{source} holds {modality}, not images.",
            "The layouts hold pixels; read others with ddbench.DistilledSet.load.",
        )
    if inputs.dim() != 5:
        raise UsageError(
            f"{source} holds examples of shape {list(inputs.shape[2:])}, not images.",
            "The layouts hold images [channels, height, width]; read others with ddbench.DistilledSet.load.",
        )
    shapes = [tensor.shape[:2] for tensor in (labels, weights) if tensor is not None]
    tensors = [tensor for tensor in (inputs, labels, weights, distilled.lrs) if tensor is not None]
    if (
        any(shape != inputs.shape[:2] for shape in shapes)
        or labels.dim() != 2 + distilled.soft
        or distilled.kind not in LABEL_KINDS
        or distilled.soft == (distilled.kind == "class")
        or not inputs.numel()
        or not all(torch.isfinite(tensor).all() for tensor in tensors)
    ):
        raise UsageError(
            f"{source} is damaged: it has no finite images with a label each.",
            "Take an intact distilled.safetensors file from a run folder.",
        )
    classes = _classes(distilled, source)
    if not distilled.soft and not 0 <= labels.min() <= labels.max() < (len(classes) or math.inf):
        raise UsageError(
            f"{source} has labels {int(labels.min())} to {int(labels.max())} and names {len(classes)} classes.",
            "Take a file as ddbench wrote it.",
        )
    if "whitening" in distilled.metadata:
        raise UsageError(
            f"{source} holds whitened images ({distilled.metadata['whitening']}), which no numbers turn into pixels.",
            "Distil without --whitening for a set to export.",
        )
    scale = _scale(distilled, source)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (scale.mean, scale.std))
    return PixelSet(
        images=inputs.flatten(0, 1).double() * std + mean,
        labels=labels.flatten(0, 1).float() if distilled.soft else labels.flatten(0, 1).long(),
        kind=distilled.kind,
        dataset=distilled.metadata.get("dataset", "").partition("@")[0],
        scale=scale,
        classes=classes,
        lrs=None if distilled.lrs is None else distilled.lrs.float(),
        weights=None if weights is None else weights.flatten().float(),
    )


def _scale(distilled: DistilledSet, source: Path) -> Scale:
    """Return the mean and the std that the metadata state, a number for each channel."""
    channels = distilled.inputs.shape[2]
    try:
        mean, std = (tuple(map(float, json.loads(distilled.metadata[name]))) for name in ("mean", "std"))
        if any(len(values) not in (1, channels) or not all(map(math.isfinite, values)) for values in (mean, std)):
            raise ValueError
        if min(std) <= 0:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{source} does not say by which mean and std its {channels} channels were normalised.",
            "Add them and save the set again: distilled.described(mean=[...], std=[...]).save(path)",
        ) from error
    means, stds = (values * (channels // len(values)) for values in (mean, std))
    return Scale(means, stds)


def _classes(distilled: DistilledSet, source: Path) -> tuple[str, ...]:
    """Return the names of the classes that the metadata state; none where they do not."""
    try:
        return tuple(map(str, json.loads(distilled.metadata.get("classes", "[]"))))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{source} does not say what its classes are.", "Take a file as ddbench wrote it.") from error


def _decoding(stored: DistilledSet, distilled: DistilledSet) -> Iterator[str]:
    """Yield what decoding did to the set."""
    if stored.decoder:
        before = sum(tensor.numel() * tensor.element_size() for tensor in stored.payload.values())
        after = distilled.inputs.numel() * distilled.inputs.element_size()
        yield f"The payload of {stored.decoder}, {before} bytes, is decoded to images of {after} bytes as float32."


def _lost(distilled: DistilledSet, holds: frozenset[str]) -> Iterator[str]:
    """Yield each part of the set that files which hold `holds` lack."""
    steps, n = distilled.labels.shape[:2]
    rates, optimiser = distilled.lrs, distilled.metadata.get("inner_optimiser")
    if steps > 1:
        yield f"the order of the {steps} steps, of {n} images each"
    if rates is not None:
        if not holds & {"lrs", "rate"}:
            yield f"the learning rates of the {rates.numel()} gradient steps" if rates.dim() else "the learning rate"
        elif rates.dim() and "lrs" not in holds:
            yield f"the number of gradient steps, {rates.numel()}"
        if optimiser:
            yield f"the optimiser that the rates were made for, {optimiser}"
    if distilled.weights is not None and "weights" not in holds:
        yield "the weights of the examples"
    if distilled.extras:
        yield f"the extras {', '.join(sorted(distilled.extras))}"
