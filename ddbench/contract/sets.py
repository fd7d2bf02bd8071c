"""Distilled data to score and share: `DistilledSet`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ddbench.errors import PluginError, UsageError
from ddbench.machine.files import atomic_write, sha256

if TYPE_CHECKING:
    from torch.utils.data import TensorDataset

    from ddbench.contract.task import Task


@dataclass(frozen=True)
class DistilledSet:
    """A handful of synthetic or selected examples and the way to train on them. Every method returns one.

    `DistilledSet(inputs[None], labels[None])` is a plain subset: one step, no rates.

    Attributes:
        inputs: `[steps, n, *sample_shape]` float32, normalised like the training data.
        labels: `[steps, n]` int64 class numbers, or `[steps, n, classes]` float32: probabilities, or any targets where
            the objective is a regression.
        lrs: `[epochs, steps]` float32, the rate of each step of gradient descent, or None to let the protocol choose.
        metadata: facts that a user of the file needs, as text (see `described`).
    """

    inputs: Float[Tensor, "steps n *sample"]
    labels: Shaped[Tensor, "steps n *classes"]
    lrs: Float[Tensor, "epochs steps"] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of examples in all steps."""
        return self.inputs.shape[0] * self.inputs.shape[1]

    @property
    def soft(self) -> bool:
        """True where labels are vectors over the classes, not class numbers."""
        return self.labels.is_floating_point()

    @property
    def nbytes(self) -> int:
        """Size in bytes of images, labels and rates."""
        return sum(t.numel() * t.element_size() for t in (self.inputs, self.labels, self.lrs) if t is not None)

    def flat(self) -> tuple[Float[Tensor, " total *sample"], Shaped[Tensor, " total *classes"]]:
        """Return images `[steps * n, *sample_shape]` and labels `[steps * n]`, for any training loop."""
        return self.inputs.flatten(0, 1), self.labels.flatten(0, 1)

    def pixels(self) -> Float[Tensor, " total *sample"]:
        """Return the images `[steps * n, *sample_shape]` as pixels in [0, 1], by mean and std of `metadata`.

        Values outside are clipped, because distilled images may leave the range of real ones.
        """
        shape = (-1, *[1] * (self.inputs.dim() - 3))
        mean, std = (
            self.inputs.new_tensor(json.loads(self.metadata.get(name, default))).view(shape)
            for name, default in (("mean", "[0.0]"), ("std", "[1.0]"))
        )
        return (self.flat()[0] * std + mean).clamp(0, 1)

    def dataset(self) -> "TensorDataset":
        """Return `flat` as a `torch.utils.data` dataset for a DataLoader, of pairs of image and label."""
        from torch.utils.data import TensorDataset

        return TensorDataset(*self.flat())

    def to(self, device: torch.device) -> "DistilledSet":
        """Return the same set on `device`, detached from any graph."""
        lrs = None if self.lrs is None else self.lrs.detach().to(device)
        inputs, labels = (t.detach().to(device).contiguous() for t in (self.inputs, self.labels))
        return replace(self, inputs=inputs, labels=labels, lrs=lrs)

    def validate(self, task: "Task", origin: str = "the method returned") -> None:
        """Check shape, dtype, finiteness and budget against `task`. Raises `PluginError` with the first problem."""
        for problem in self._problems(task):
            raise PluginError(
                f"{origin} {problem}.",
                "A set has inputs [steps, n, *sample_shape], labels [steps, n] and lrs [epochs, steps] or None.",
            )

    def _problems(self, task: "Task") -> list[str]:
        classes, budget = len(task.info.classes), task.budget
        tensors = {"inputs": self.inputs, "labels": self.labels, "lrs": self.lrs}
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) and not (name == "lrs" and tensor is None):
                return [f"{name} of type {type(tensor).__name__} instead of a tensor"]
        problems = []
        shape, sample = tuple(self.inputs.shape), tuple(task.info.sample_shape)
        if self.inputs.dim() != 2 + len(sample) or shape[2:] != sample:
            return [f"inputs of shape {list(shape)} where [steps, n, {', '.join(map(str, sample))}] is expected"]
        if self.inputs.dtype != torch.float32:
            problems.append(f"inputs of type {self.inputs.dtype} instead of torch.float32")
        expected = (*shape[:2], classes) if self.soft else shape[:2]
        if tuple(self.labels.shape) != expected:
            return [*problems, f"labels of shape {list(self.labels.shape)} where {list(expected)} is expected"]
        if not self.soft and self.labels.dtype != torch.int64:
            problems.append(f"labels of type {self.labels.dtype} instead of torch.int64")
        for name, tensor in tensors.items():
            if tensor is not None and not torch.isfinite(tensor).all():
                problems.append(f"{name} with NaN or infinite values")
        sums = self.labels.sum(-1) if self.soft else None
        # Targets of a regression may be any numbers.
        classifies = task.objective.kind == "classification"
        if classifies and sums is not None and not ((sums - 1).abs().le(1e-4).all() and self.labels.ge(0).all()):
            problems.append("soft labels that are not distributions: they must not be negative and sum to one")
        if not self.soft and self.labels.numel() and not 0 <= self.labels.min() <= self.labels.max() < classes:
            problems.append(f"labels outside 0 .. {classes - 1}")
        if not 1 <= self.count <= budget.images_per_class * classes:
            problems.append(
                f"{self.count} images where the budget is {budget.images_per_class} for each of {classes} classes"
            )
        if self.lrs is None:
            if budget.total_steps % shape[0]:
                problems.append(
                    f"{shape[0]} batches without rates, which {budget.total_steps} steps cannot cycle through"
                )
        else:
            if self.lrs.dim() != 2 or self.lrs.shape[1] != shape[0]:
                return [*problems, f"lrs of shape {list(self.lrs.shape)} where [epochs, {shape[0]}] is expected"]
            if not 1 <= self.lrs.numel() <= budget.total_steps:
                problems.append(f"{self.lrs.numel()} gradient steps where the budget is {budget.total_steps}")
        return problems

    def described(self, **more: object) -> "DistilledSet":
        """Return the same set with more metadata. Values that are not text become JSON."""
        text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in more.items()}
        return replace(self, metadata={**self.metadata, **text})

    def save(self, path: Path) -> str:
        """Write a safetensors file atomically and return its SHA-256. Equal sets give equal bytes."""
        tensors = {"inputs": self.inputs, "labels": self.labels}
        if self.lrs is not None:
            tensors["lrs"] = self.lrs
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        raw = _canonical(safetensors.torch.save(plain, metadata=dict(self.metadata)))
        atomic_write(path, raw)
        return sha256(raw)

    @classmethod
    def load(cls, path: str | Path) -> "DistilledSet":
        """Read a file of `save` without running code from it. Raises `UsageError` for any other file."""
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
    """Return the same safetensors file with its header sorted: the library leaves the order to chance.

    The format is eight bytes of header length, little-endian, the header as JSON padded with spaces, then the data.
    """
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]
