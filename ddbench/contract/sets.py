"""Real data as a method sees it (`ExampleSet`), and distilled data as it is scored and shared (`DistilledSet`)."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F

from ddbench.errors import PluginError, UsageError
from ddbench.machine.files import atomic_write, sha256

if TYPE_CHECKING:
    from torch.utils.data import TensorDataset

    from ddbench.contract.task import Task


@dataclass(frozen=True)
class DatasetInfo:
    """The facts of a loaded dataset.

    Attributes:
        name: the name in records.
        classes: names of the classes, in the order of the labels.
        sample_shape: `(channels, height, width)` of an image.
        mean: per channel, of the training images in [0, 1].
        std: standard deviation per channel, of the training images in [0, 1].
        modality: `image`.
        content_hash: SHA-256 over every image and label of both splits.
        partial: True unless this copy is known to be the full original.
    """

    name: str
    classes: tuple[str, ...]
    sample_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    modality: str
    content_hash: str
    partial: bool

    @property
    def label(self) -> str:
        """The name rows carry: that of a partial copy holds its content hash, so it never ranks with the full set."""
        return f"{self.name}@{self.content_hash[:8]}" if self.partial else self.name

    def pixels(self, inputs: Tensor) -> Tensor:
        """Normalised `[..., channels, height, width]` back to pixels, where real images lie in [0, 1]."""
        shape = (-1, *[1] * (len(self.sample_shape) - 1))
        return inputs * inputs.new_tensor(self.std).view(shape) + inputs.new_tensor(self.mean).view(shape)


@dataclass(frozen=True)
class ImageSplits:
    """The training and test images that a dataset plugin loads.

    Attributes:
        train_images: uint8 `[n, channels, height, width]`.
        train_labels: int64 `[n]`.
        test_images: uint8 `[m, channels, height, width]`.
        test_labels: int64 `[m]`.
        partial: False promises that this copy was verified to be the full original; rows of other copies carry their
            content hash.
    """

    train_images: UInt8[Tensor, "n c h w"]
    train_labels: Int[Tensor, " n"]
    test_images: UInt8[Tensor, "m c h w"]
    test_labels: Int[Tensor, " m"]
    partial: bool = True

    def content_hash(self) -> str:
        """SHA-256 over shapes, images and labels of both splits."""
        parts = []
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            parts.append(f"{tensor.dtype}{tuple(tensor.shape)}{sha256(tensor.contiguous().numpy().tobytes())}")
        return sha256("".join(parts).encode())

    def validate(self, who: str, classes: int, sample_shape: tuple[int, ...] | None = None) -> None:
        """Check types, shapes and labels; raises `PluginError` naming the plugin (`who`) and the first fault.

        `sample_shape` is the one that was declared; without it the images of both splits must have one shape.
        """
        for fault, remedy in self._faults(classes, sample_shape):
            raise PluginError(f"{who} gives {fault}.", remedy)

    def _faults(self, classes: int, sample_shape: tuple[int, ...] | None) -> Iterator[tuple[str, str]]:
        for split, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if _kind(images) != (torch.uint8, 4):
                remedy = "Give a uint8 tensor [n, channels, height, width], pixels from 0 to 255."
                yield f"{split} images {_described(images)}", remedy
            if _kind(labels) != (torch.int64, 1):
                remedy = "Give the number of its class for each image: an int64 tensor [n]."
                yield f"{split} labels {_described(labels)}", remedy
            if len(images) != len(labels) or not len(images):
                remedy = "Give images in both splits, with one label each; check the files of the dataset."
                yield f"{len(images)} {split} images and {len(labels)} labels", remedy
            shape = tuple(images.shape[1:])
            sample_shape = sample_shape or shape
            if shape != sample_shape:
                remedy = "Give all images of both splits one shape, and declare it as sample_shape."
                yield f"{split} images of shape {list(shape)} where {list(sample_shape)} is expected", remedy
            if not 0 <= labels.min() <= labels.max() < classes:
                remedy = f"Number the classes from 0 as the dataset declares them; it declares {classes}."
                yield f"{split} labels outside 0 .. {classes - 1}", remedy


def _kind(thing: object) -> tuple[torch.dtype, int] | None:
    return (thing.dtype, thing.dim()) if isinstance(thing, Tensor) else None


def _described(thing: object) -> str:
    if isinstance(thing, Tensor):
        return f"of type {thing.dtype} and shape {list(thing.shape)}"
    return f"of type {type(thing).__name__}"


@dataclass(frozen=True)
class ExampleSet:
    """Real examples.

    Attributes:
        inputs: float32 `[n, *sample_shape]`, normalised per channel.
        labels: int64 `[n]`.
        info: the facts of the dataset.
    """

    inputs: Float[Tensor, " n *sample"]
    labels: Int[Tensor, " n"]
    info: DatasetInfo

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> Self:
        indices = indices.to(self.labels.device)
        return replace(self, inputs=self.inputs[indices], labels=self.labels[indices])

    def to(self, device: torch.device) -> Self:
        """The same examples on `device`."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))

    def of_class(self, label: int, at_least: int = 0) -> Tensor:
        """Indices of the examples of one class, in their order. Raises `UsageError` where it has too few."""
        members = torch.nonzero(self.labels == label).flatten()
        if len(members) < at_least:
            name = self.info.classes[label]
            if not len(members):
                raise UsageError(
                    f"class {name!r} of {self.info.label} is empty: it has no training images.",
                    "Give it some, or take it out of the classes of the dataset.",
                )
            raise UsageError(
                f"class {name!r} of {self.info.label} has {len(members)} training images, fewer than {at_least}.",
                f"Ask for at most --ipc {len(members)}.",
            )
        return members

    def minibatch(self, size: int, generator: torch.Generator) -> Self:
        """`size` examples drawn without replacement (all of them, shuffled, where there are fewer)."""
        return self[torch.randperm(len(self), generator=generator)[:size]]

    def in_steps(self, steps: int) -> tuple[Tensor, Tensor]:
        """Inputs `[steps, n / steps, *sample_shape]` and labels `[steps, n / steps]`: classes spread over the steps.

        Example i of each class goes to step i modulo `steps`. Where the classes do not divide evenly, all examples
        stay in one step.
        """
        places: list[list[int]] = [[] for _ in range(steps)]
        for label in range(len(self.info.classes)):
            for position, index in enumerate(self.of_class(label).tolist()):
                places[position % steps].append(index)
        if len({len(place) for place in places}) > 1 or not places[0]:
            return self.inputs[None], self.labels[None]
        order = torch.tensor(places, device=self.labels.device)
        return self.inputs[order], self.labels[order]

    def random_subset(self, per_class: int, generator: torch.Generator, *, balanced: bool = True) -> Self:
        """`per_class` examples of each class (or as many in all, whatever their class), drawn without replacement.

        Examples come class by class when `balanced`. Raises `UsageError` where a class has too few.
        """
        if not balanced:
            return self.minibatch(per_class * len(self.info.classes), generator)
        chosen = []
        for label in range(len(self.info.classes)):
            members = self.of_class(label, per_class)
            chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class].to(members.device)])
        return self[torch.cat(chosen)]


@dataclass(frozen=True)
class DistilledSet:
    """The result of a method: a few synthetic or chosen examples, and how to train on them.

    A set with `steps=1` and `lrs=None` is a plain subset.

    Attributes:
        inputs: float32 `[steps, n, *sample_shape]`, normalised like the training data.
        labels: int64 `[steps, n]`, or probabilities `[steps, n, classes]`.
        lrs: learning rate of each gradient-descent step `[epochs, steps]`, or None.
        metadata: what a stranger needs in order to use the file; see `described`.
    """

    inputs: Float[Tensor, "steps n *sample"]
    labels: Shaped[Tensor, "steps n *classes"]
    lrs: Float[Tensor, "epochs steps"] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many examples there are in all."""
        return self.inputs.shape[0] * self.inputs.shape[1]

    @property
    def soft(self) -> bool:
        """Whether labels are probabilities."""
        return self.labels.is_floating_point()

    @property
    def nbytes(self) -> int:
        """Bytes stored: images, labels and rates."""
        return sum(t.numel() * t.element_size() for t in (self.inputs, self.labels, self.lrs) if t is not None)

    def flat(self) -> tuple[Tensor, Tensor]:
        """Plain images `[steps * n, *sample_shape]` and labels, for anybody's training loop."""
        return self.inputs.flatten(0, 1), self.labels.flatten(0, 1)

    def pixels(self) -> Tensor:
        """The images as pixels in [0, 1], `[steps * n, *sample_shape]`: what `metadata` says of mean and std undone.

        What lies outside is clipped: distilled images are not bound to the range of real ones.
        """
        shape = (-1, *[1] * (self.inputs.dim() - 3))
        mean, std = (
            self.inputs.new_tensor(json.loads(self.metadata.get(name, default))).view(shape)
            for name, default in (("mean", "[0.0]"), ("std", "[1.0]"))
        )
        return (self.flat()[0] * std + mean).clamp(0, 1)

    def dataset(self) -> "TensorDataset":
        """A `torch.utils.data` view of `flat`: for a DataLoader, items are pairs of image and label."""
        from torch.utils.data import TensorDataset

        return TensorDataset(*self.flat())

    def to(self, device: torch.device) -> Self:
        """The same set on `device`, without a graph."""
        lrs = None if self.lrs is None else self.lrs.detach().to(device)
        inputs, labels = (t.detach().to(device).contiguous() for t in (self.inputs, self.labels))
        return replace(self, inputs=inputs, labels=labels, lrs=lrs)

    def validate(self, task: "Task", whence: str = "the method returned") -> None:
        """Check shape, dtype, finiteness and budget against `task`; raises `PluginError` naming the first fault."""
        for fault in self._faults(task):
            raise PluginError(
                f"{whence} {fault}.",
                "A set has inputs [steps, n, *sample_shape], labels [steps, n] and lrs [epochs, steps] or None.",
            )

    def _faults(self, task: "Task") -> list[str]:
        classes, budget = len(task.info.classes), task.budget
        tensors = {"inputs": self.inputs, "labels": self.labels, "lrs": self.lrs}
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) and not (name == "lrs" and tensor is None):
                return [f"{name} of type {type(tensor).__name__} instead of a tensor"]
        faults = []
        shape, sample = tuple(self.inputs.shape), tuple(task.info.sample_shape)
        if self.inputs.dim() != 2 + len(sample) or shape[2:] != sample:
            return [f"inputs of shape {list(shape)} where [steps, n, {', '.join(map(str, sample))}] is expected"]
        if self.inputs.dtype != torch.float32:
            faults.append(f"inputs of type {self.inputs.dtype} instead of torch.float32")
        wanted = (*shape[:2], classes) if self.soft else shape[:2]
        if tuple(self.labels.shape) != wanted:
            return [*faults, f"labels of shape {list(self.labels.shape)} where {list(wanted)} is expected"]
        if not self.soft and self.labels.dtype != torch.int64:
            faults.append(f"labels of type {self.labels.dtype} instead of torch.int64")
        for name, tensor in tensors.items():
            if tensor is not None and not torch.isfinite(tensor).all():
                faults.append(f"{name} with NaN or infinite values")
        sums = self.labels.sum(-1) if self.soft else None
        # Targets of a regression may be any numbers.
        classifies = task.objective.inner_loss is F.cross_entropy
        if classifies and sums is not None and not ((sums - 1).abs().le(1e-4).all() and self.labels.ge(0).all()):
            faults.append("soft labels that are not distributions: they must not be negative and sum to one")
        if not self.soft and self.labels.numel() and not 0 <= self.labels.min() <= self.labels.max() < classes:
            faults.append(f"labels outside 0 .. {classes - 1}")
        if not 1 <= self.count <= budget.images_per_class * classes:
            faults.append(
                f"{self.count} images where the budget is {budget.images_per_class} for each of {classes} classes"
            )
        if self.lrs is None:
            if budget.total_steps % shape[0]:
                faults.append(
                    f"{shape[0]} batches without rates, which {budget.total_steps} steps cannot cycle through"
                )
        else:
            if self.lrs.dim() != 2 or self.lrs.shape[1] != shape[0]:
                return [*faults, f"lrs of shape {list(self.lrs.shape)} where [epochs, {shape[0]}] is expected"]
            if not 1 <= self.lrs.numel() <= budget.total_steps:
                faults.append(f"{self.lrs.numel()} gradient steps where the budget is {budget.total_steps}")
        return faults

    def described(self, **more: object) -> Self:
        """The same set with more metadata; what is not text is stored as JSON."""
        text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in more.items()}
        return replace(self, metadata={**self.metadata, **text})

    def save(self, path: Path) -> str:
        """Write a safetensors file atomically and return its SHA-256. The same set gives the same bytes."""
        tensors = {"inputs": self.inputs, "labels": self.labels}
        if self.lrs is not None:
            tensors["lrs"] = self.lrs
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        raw = _canonical(safetensors.torch.save(plain, metadata=dict(self.metadata)))
        atomic_write(path, raw)
        return sha256(raw)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote; runs no code from it. Raises `UsageError` where it is not one."""
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"there is no file {path}.", "Give the path of a distilled.safetensors file.")
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(tensors["inputs"], tensors["labels"], tensors.get("lrs"), metadata)
        except (safetensors.SafetensorError, KeyError, OSError) as error:
            raise UsageError(
                f"{path} is damaged or not a distilled set: {error}.",
                "Take an intact distilled.safetensors file from a run folder.",
            ) from error


def _canonical(raw: bytes) -> bytes:
    """The same safetensors file with its header in sorted order, which the library leaves to chance.

    The format is eight bytes of header length, little-endian, the header as JSON padded with spaces, then the data.
    """
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]
