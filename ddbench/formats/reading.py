"""Readings of released files: the way of each family, and what the user says otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ddbench.contract.set_checks import LabelKind
from ddbench.contract.spec import Whitening
from ddbench.errors import UsageError
from ddbench.formats.released_set import ReleasedSet
from ddbench.formats.scales import Scale


@dataclass(frozen=True)
class Source:
    """A file to read, and what it is to be scored on.

    Attributes:
        path: the file or folder.
        dataset: the name of the dataset.
        classes: the names of its classes.
        sample_shape: the shape of its examples.
        repetition: which set of a file that holds several; None where it was not said.
    """

    path: Path
    dataset: str
    classes: tuple[str, ...]
    sample_shape: tuple[int, ...]
    repetition: int | None = None

    def one_set(self) -> None:
        """Raise `UsageError` where a repetition is asked for: the file holds one set."""
        if self.repetition:
            raise UsageError(f"{self.path} holds one set.", "Leave out --repetition.")


@dataclass(frozen=True)
class Reading:
    """A way to take the content of a file.

    Attributes:
        scale: what the images were normalised by; None: by the mean and std of the dataset.
        whitening: the images are whitened, and so are the data they are scored on.
        undo: the images are whitened by `zca`, which is undone; the data stay as they are.
        labels: the kind of the labels; None: class numbers, or probabilities.
        tiles: each stored image holds tiles x tiles images.
        rate: the learning rate; None: the one in the file, or none.
        protocol: the protocol closest to how the authors score.
        resize: images of another size are resized to that of the dataset.
        notes: sentences on where this differs from what the authors do.
    """

    scale: Scale | None = None
    whitening: Whitening | None = None
    undo: bool = False
    labels: LabelKind | None = None
    tiles: int = 1
    rate: float | None = None
    protocol: str = "train/v1"
    resize: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overrides:
    """Facts about a file that the user states; None leaves one to the family.

    Attributes:
        repetition: which set of a file that holds several.
        mean: the mean that normalised the images, one number or one for each channel.
        std: the standard deviation, likewise.
        whitening: `none`, a kind of `Whitening`, or `undo`.
        labels: the kind of the labels.
        tiles: tiles along each side of a stored image.
        rate: the learning rate.
        resize: what is resized where sizes differ, `images` or `dataset`.
    """

    repetition: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    whitening: Literal["none", "undo", "zca", "zca-kip"] | None = None
    labels: LabelKind | None = None
    tiles: int | None = None
    rate: float | None = None
    resize: Literal["images", "dataset"] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise UsageError(
                "--file-mean and --file-std go together.",
                "Such as --file-mean 0.491,0.482,0.447 --file-std 0.247,0.243,0.262",
            )
        if self.mean is not None and self.whitening not in (None, "none"):
            raise UsageError(
                "--file-whitening goes without --file-mean and --file-std.", "Whitened images have neither."
            )

    @property
    def flags(self) -> list[str]:
        """The flags of the fields that are set."""
        options = {
            "--repetition": self.repetition,
            "--file-mean": self.mean,
            "--file-std": self.std,
            "--file-whitening": self.whitening,
            "--file-labels": self.labels,
            "--file-tiles": self.tiles,
            "--file-rate": self.rate,
            "--resize": self.resize,
        }
        return [flag for flag, value in options.items() if value is not None]

    def applied(self, reading: Reading) -> Reading:
        """Return a reading with what the user says in place of what the family is known to do."""
        changed: dict[str, Any] = {}
        if self.mean is not None and self.std is not None:
            changed |= dict(scale=Scale(self.mean, self.std, "as you say"), whitening=None, undo=False)
        if self.whitening is not None:
            undo = self.whitening == "undo"
            changed |= dict(whitening=None if undo or self.whitening == "none" else self.whitening, undo=undo)
        for name in ("labels", "tiles", "rate"):
            if getattr(self, name) is not None:
                changed[name] = getattr(self, name)
        if self.resize is not None:
            changed["resize"] = self.resize == "images"
        return replace(reading, **changed)


@dataclass(frozen=True)
class Family:
    """One kind of release: how its files are laid out, and what its authors do with them.

    Attributes:
        name: such as `dc`.
        summary: what it is, in a few words.
        read: read the content of a file. Raises `UsageError` for content that cannot be scored.
        reading: return how that content is taken on the dataset of the source.
    """

    name: str
    summary: str
    read: Callable[[Source], ReleasedSet]
    reading: Callable[[Source, ReleasedSet], Reading]
