"""Real data: what a dataset plugin loads (`Splits`), facts about it, and the examples that methods are given."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from ddbench.contract.spec import Whitening
from ddbench.contract.stored_images import READ_AT_ONCE, StoredImages
from ddbench.errors import PluginError, UsageError
from ddbench.machine.files import sha256

IMAGE_AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate", "resized_crop", "cutmix")
"""The operations on images: those of `ddbench.augment`, and two of protocols."""


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a loaded dataset.

    Attributes:
        name: the registered name, such as "mnist".
        classes: names of the classes, in the order of their labels 0, 1, ...
        sample_shape: shape of one example, `(channels, height, width)` for images, `(words, dim)` for text.
        mean: mean of each channel over the training images in [0, 1]; (0,) where the modality keeps its own.
        std: standard deviation of each channel over the same images; (1,) where the modality keeps its own.
        modality: kind of data, the name of a modality such as "image".
        content_hash: SHA-256 over every example and label of both splits.
        partial: True unless this copy is known to be the full original.
        augmentations: operations that make sense for this kind of data; see `ddbench.augment.refuse`.
        metadata: what a user of a distilled set needs to read it, as text; every set of a run carries it.
    """

    name: str
    classes: tuple[str, ...]
    sample_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    modality: str
    content_hash: str
    partial: bool
    augmentations: tuple[str, ...] = IMAGE_AUGMENTATIONS
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """Name in rows; a partial copy adds its content hash, so that it never ranks with the full dataset."""
        return f"{self.name}@{self.content_hash[:8]}" if self.partial else self.name

    def pixels(self, inputs: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
        """Convert normalised `[..., channels, height, width]` to pixels, where real images lie in [0, 1]."""
        shape = (-1, *[1] * (len(self.sample_shape) - 1))
        return inputs * inputs.new_tensor(self.std).view(shape) + inputs.new_tensor(self.mean).view(shape)


@dataclass(frozen=True)
class Splits:
    """Examples of any kind in both splits, as a dataset plugin loads them; its modality makes inputs of them.

    Attributes:
        train_inputs: `[n, *shape]` of the type that the modality takes: token numbers, samples of sound, floats.
        train_labels: `[n]` int64, class numbers from 0.
        test_inputs: `[m, *shape]` of the same shape and type.
        test_labels: `[m]` int64.
        partial: False only where the plugin verified that this copy is the full original, as for `ImageSplits`.
        notices: a sentence for each change that loading made to the examples; a run prints them before it starts.
        tensors: tensors that all examples share, such as the word vectors `vectors [words, dim]` of text.
        metadata: what distilled sets need to be read, as text, such as a vocabulary; it belongs to the content.
    """

    train_inputs: Shaped[Tensor, " n *shape"]
    train_labels: Int[Tensor, " n"]
    test_inputs: Shaped[Tensor, " m *shape"]
    test_labels: Int[Tensor, " m"]
    partial: bool = True
    notices: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def content_hash(self) -> str:
        """Return the hexadecimal SHA-256 over inputs, labels, shared tensors and metadata."""
        parts = [self.train_inputs, self.train_labels, self.test_inputs, self.test_labels]
        digests = [_digest(tensor) for tensor in parts]
        digests += [f"{name} {_digest(tensor)}" for name, tensor in sorted(self.tensors.items())]
        digests += [f"{name} {sha256(text.encode())}" for name, text in sorted(self.metadata.items())]
        return sha256("".join(digests).encode())

    def validate(self, who: str, classes: int) -> None:
        """Check types, shapes and labels; the modality checks more. Raises `PluginError` with the first problem.

        `who` is the plugin's name in the message.
        """
        for problem, remedy in self._problems(classes):
            raise PluginError(f"{who} gives {problem}.", remedy)

    def _problems(self, classes: int) -> Iterator[tuple[str, str]]:
        splits = (("training", self.train_inputs, self.train_labels), ("test", self.test_inputs, self.test_labels))
        for split, inputs, labels in splits:
            if not isinstance(inputs, Tensor) or inputs.dim() < 2:
                yield f"{split} inputs {_type_and_shape(inputs)}", "Give a tensor [n, ...]."
            yield from _label_problems(split, "examples", inputs, labels, classes)
        if self.train_inputs.shape[1:] != self.test_inputs.shape[1:]:
            shapes = f"{list(self.train_inputs.shape[1:])} and {list(self.test_inputs.shape[1:])}"
            yield f"examples of shapes {shapes} in its splits", "Give all examples of both splits one shape."


@dataclass(frozen=True)
class ExamplesRequest:
    """The request to a modality, besides the data.

    Attributes:
        name: name of the dataset in records.
        classes: names of the classes.
        modality: name of the modality.
        augmentations: the operations that the modality declares.
        sample_shape: the shape that examples are to be converted to; None leaves them as they are.
        whitening: the kind of ZCA-whitening that takes the place of normalisation; None for none.
    """

    name: str
    classes: tuple[str, ...]
    modality: str = "image"
    augmentations: tuple[str, ...] = IMAGE_AUGMENTATIONS
    sample_shape: tuple[int, ...] | None = None
    whitening: Whitening | None = None

    def refuse_image_settings(self) -> None:
        """Raise `UsageError` where a conversion or a whitening is asked for, which are for images."""
        if self.sample_shape is not None:
            raise UsageError(
                f"{self.name} holds {self.modality}, which is not converted to another shape.",
                "Leave out sample_shape; options of the dataset decide about the shape.",
            )
        if self.whitening is not None:
            raise UsageError(f"{self.name} holds {self.modality}; whitening is for images.", "Leave out --whitening.")

    def examples(
        self,
        splits: Splits,
        train: Float[Tensor, " n *sample"],
        test: Float[Tensor, " m *sample"],
        *,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        metadata: Mapping[str, str] | None = None,
    ) -> "tuple[ExampleSet, ExampleSet]":
        """Return the inputs of both splits with labels and facts; `metadata` add to those of `splits`."""
        info = DatasetInfo(
            name=self.name,
            classes=self.classes,
            sample_shape=tuple(train.shape[1:]),
            mean=mean,
            std=std,
            modality=self.modality,
            content_hash=splits.content_hash(),
            partial=splits.partial,
            augmentations=self.augmentations,
            metadata={**splits.metadata, **(metadata or {})},
        )
        return ExampleSet(train, splits.train_labels, info), ExampleSet(test, splits.test_labels, info)


@dataclass(frozen=True)
class ImageSplits:
    """Images of both splits as a dataset plugin loads them.

    Attributes:
        train_images: `[n, channels, height, width]` uint8, pixels from 0 to 255; or `StoredImages` that stay in files.
        train_labels: `[n]` int64, class numbers from 0.
        test_images: `[m, channels, height, width]` uint8.
        test_labels: `[m]` int64.
        partial: False only where the plugin verified, by checksums for example, that this copy is the full original.
            Rows of partial copies carry their content hash.
        notices: a sentence for each change that loading made to the images; a run prints them before it starts.
    """

    train_images: UInt8[Tensor, "n c h w"] | StoredImages
    train_labels: Int[Tensor, " n"]
    test_images: UInt8[Tensor, "m c h w"] | StoredImages
    test_labels: Int[Tensor, " m"]
    partial: bool = True
    notices: tuple[str, ...] = ()

    def content_hash(self) -> str:
        """Return the hexadecimal SHA-256 over shapes, images and labels of both splits."""
        parts = []
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            if isinstance(tensor, StoredImages):
                parts.append(f"stored {tuple(tensor.shape)} {tensor.identity}")
            else:
                parts.append(_digest(tensor))
        return sha256("".join(parts).encode())

    def validate(self, who: str, classes: int, sample_shape: tuple[int, ...] | None = None) -> None:
        """Check types, shapes and labels. Raises `PluginError` with the first problem.

        `who` is the plugin's name in the message. `sample_shape` is the declared shape; without it the images of both
        splits must have one shape.
        """
        for problem, remedy in self._problems(classes, sample_shape):
            raise PluginError(f"{who} gives {problem}.", remedy)

    def _problems(self, classes: int, sample_shape: tuple[int, ...] | None) -> Iterator[tuple[str, str]]:
        for split, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if _dtype_and_dim(images) != (torch.uint8, 4):
                remedy = "Give a uint8 tensor [n, channels, height, width], pixels from 0 to 255."
                yield f"{split} images {_type_and_shape(images)}", remedy
            yield from _label_problems(split, "images", images, labels, classes)
            shape = tuple(images.shape[1:])
            sample_shape = sample_shape or shape
            if shape != sample_shape:
                remedy = "Give all images of both splits one shape, and declare it as sample_shape."
                yield f"{split} images of shape {list(shape)} where {list(sample_shape)} is expected", remedy


def _label_problems(split: str, noun: str, inputs: Tensor, labels: object, classes: int) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the labels of one split, each with a remedy."""
    if not isinstance(labels, Tensor) or _dtype_and_dim(labels) != (torch.int64, 1):
        remedy = f"Give each of the {noun} the number of its class: an int64 tensor [n]."
        yield f"{split} labels {_type_and_shape(labels)}", remedy
        return
    if len(inputs) != len(labels) or not len(inputs):
        remedy = f"Give {noun} in both splits, each with one label; check the files of the dataset."
        yield f"{len(inputs)} {split} {noun} and {len(labels)} labels", remedy
        return
    if not 0 <= labels.min() <= labels.max() < classes:
        remedy = f"Number the classes from 0 as the dataset declares them; it declares {classes}."
        yield f"{split} labels outside 0 .. {classes - 1}", remedy


def _digest(tensor: Tensor) -> str:
    """Return type, shape and SHA-256 of a tensor."""
    return f"{tensor.dtype}{tuple(tensor.shape)}{sha256(tensor.contiguous().numpy().tobytes())}"


def _dtype_and_dim(value: object) -> tuple[torch.dtype, int] | None:
    if isinstance(value, StoredImages):  # its pixels are uint8
        return torch.uint8, value.dim()
    return (value.dtype, value.dim()) if isinstance(value, Tensor) else None


def _type_and_shape(value: object) -> str:
    if isinstance(value, Tensor):
        return f"of type {value.dtype} and shape {list(value.shape)}"
    return f"of type {type(value).__name__}"


@dataclass(frozen=True)
class ExampleSet:
    """Real examples.

    Attributes:
        inputs: `[n, *sample_shape]` float32, normalised per channel by `info.mean` and `info.std`.
        labels: `[n]` int64, class numbers from 0.
        info: facts about the dataset that the examples belong to.
    """

    inputs: Float[Tensor, " n *sample"]
    labels: Int[Tensor, " n"]
    info: DatasetInfo

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> "ExampleSet":
        indices = indices.to(self.labels.device)
        inputs: Tensor
        if isinstance(self.inputs, StoredImages):
            # A subset that is small is read at once, a large one stays in its files.
            part = self.inputs.subset(indices)
            inputs = part.load() if 4 * part.numel() <= READ_AT_ONCE else part
        else:
            inputs = self.inputs[indices]
        return replace(self, inputs=inputs, labels=self.labels[indices])

    def to(self, device: torch.device) -> "ExampleSet":
        """Return the same examples on `device`."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))

    def checksum(self) -> str:
        """Return a checksum of inputs and labels, at the speed of memory, that a write into them changes.

        A change of one value always changes it, and so does a move of values between blocks of one kilobyte. A move
        within one block changes it only where it touches one of about 65 000 sampled words, or where the set is small.
        It finds accidents, not attacks; `info.content_hash` identifies content.
        """
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.labels):
            # Images in files cannot be written into by a method.
            digest.update(tensor.identity.encode() if isinstance(tensor, StoredImages) else _block_sums(tensor))
        return digest.hexdigest()

    def of_class(self, label: int, at_least: int = 0) -> Int[Tensor, " members"]:
        """Return the indices of the examples of one class, in order.

        Raises `UsageError` where the class has fewer than `at_least`.
        """
        members = self._members[label].clone()
        if len(members) < at_least:
            name = self.info.classes[label]
            if not len(members):
                raise UsageError(
                    f"class {name!r} of {self.info.label} is empty: it has no training images.",
                    "Add some, or remove the class from the dataset.",
                )
            raise UsageError(
                f"class {name!r} of {self.info.label} has {len(members)} training images, fewer than {at_least}.",
                f"Ask for at most {len(members)} of each class, by --ipc or in the method's own draws.",
            )
        return members

    @functools.cached_property
    def _members(self) -> tuple[Tensor, ...]:
        """The indices of the examples of each class, in order."""
        counts = torch.bincount(self.labels, minlength=len(self.info.classes))
        return torch.split(torch.argsort(self.labels, stable=True), counts.tolist())

    def minibatch(self, size: int, generator: torch.Generator, label: int | None = None) -> "ExampleSet":
        """Draw `size` examples without replacement, of the class `label` if it is given.

        Where there are fewer, return all of them, shuffled.
        """
        if label is None:
            return self[torch.randperm(len(self), generator=generator)[:size]]
        members = self._members[label]
        return self[members[torch.randperm(len(members), generator=generator)[:size].to(members.device)]]

    def batches(
        self, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Float[Tensor, " m *sample"], Int[Tensor, " m"]]]:
        """Yield inputs and labels of batches out of shuffled passes, without end.

        A last batch of a pass that is smaller than the others is left out. A set smaller than `size` is one batch.
        """
        while True:
            order = torch.randperm(len(self), generator=generator).to(self.labels.device)
            batches = torch.split(order, size)
            # From the back: the order that committed records were trained in.
            for batch in reversed([part for part in batches if len(part) == len(batches[0])]):
                yield self.inputs[batch], self.labels[batch]

    def in_steps(self, steps: int) -> tuple[Float[Tensor, "steps m *sample"], Int[Tensor, "steps m"]]:
        """Spread each class evenly over the steps of a distilled set.

        Inputs are `[steps, n / steps, *sample_shape]`, labels `[steps, n / steps]`. Example i of each
        class goes to step i modulo `steps`. Where the classes do not divide evenly, all examples stay in one step.
        """
        places: list[list[int]] = [[] for _ in range(steps)]
        for label in range(len(self.info.classes)):
            for position, index in enumerate(self.of_class(label).tolist()):
                places[position % steps].append(index)
        if len({len(place) for place in places}) > 1 or not places[0]:
            return self.inputs[None], self.labels[None]
        order = torch.tensor(places, device=self.labels.device)
        return self.inputs[order], self.labels[order]

    def random_subset(self, per_class: int, generator: torch.Generator, *, balanced: bool = True) -> "ExampleSet":
        """Draw `per_class` examples of each class without replacement, class by class.

        With `balanced=False`, draw as many in all from the whole set, whatever their class.
        Raises `UsageError` where a class has too few.
        """
        if not balanced:
            return self.minibatch(per_class * len(self.info.classes), generator)
        chosen = []
        for label in range(len(self.info.classes)):
            members = self.of_class(label, per_class)
            chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class].to(members.device)])
        return self[torch.cat(chosen)]


def _block_sums(tensor: Tensor) -> bytes:
    """Return the sums of all blocks of 128 words of 64 bits, the remaining bytes, and sampled words of `tensor`.

    Integers add up to the same sum in any order, on any device and number of threads; floats would not.
    """
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    if raw.storage_offset() % 8:  # Words must be aligned.
        raw = raw.clone()
    end = len(raw) // 1024 * 1024
    words = raw[:end].view(torch.int64)
    sampled = words[:: max(1, len(words) // 65_536)]
    return b"".join(part.cpu().numpy().tobytes() for part in (words.view(-1, 128).sum(1), raw[end:], sampled))
