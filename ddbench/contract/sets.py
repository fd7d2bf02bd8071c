"""Distilled data to score and share: `DistilledSet`."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ddbench.contract.set_checks import LabelKind, problems
from ddbench.contract.set_files import read_set, write_set
from ddbench.errors import PluginError, UsageError

if TYPE_CHECKING:
    from torch.utils.data import TensorDataset

    from ddbench.contract.task import Task

Decode = Callable[..., Tensor]
"""`decode(name, payload, **options)`, the inputs `[n, *sample_shape]` that a decoder makes of a payload."""


@dataclass(frozen=True)
class DistilledSet:
    """A handful of synthetic or selected examples and the way to train on them. Every method returns one.

    `DistilledSet(inputs[None], labels[None])` is a plain subset: one step, no rates. A parametrised set stores a
    payload in place of inputs; `DistilledSet.encoded` makes one.

    Attributes:
        inputs: `[steps, n, *sample_shape]` float32, normalised like the training data; `[steps, n, 0]`, without a
            value, in a set with a payload.
        labels: `[steps, n]` int64 class numbers, or `[steps, n, classes]` float32 of a kind of `label_kind`.
        lrs: `[epochs, steps]` float32, the rate of each step of gradient descent; a scalar, one rate for any number of
            steps; or None to let the protocol choose.
        metadata: facts that a user of the file needs, as text (see `described`). `inner_optimiser`, such as
            `sgd momentum=0`, names the optimiser that `lrs` were made for.
        label_kind: `class`, a class number; `distribution`, probabilities of the classes; `logits`, whose softmax
            networks train on; `regression`, any numbers, used as they are. None: `class` for whole numbers,
            `distribution` for others.
        weights: `[steps, n]` float32, the weight of each example in the loss, not negative; only their ratios count,
            as they are scaled to mean 1. None: all weigh the same.
        payload: the tensors that are stored in place of inputs.
        decoder: name and version of the decoder that makes inputs of the payload, such as `tiles/v1`.
        decoder_options: options of the decoder.
        extras: further tensors that belong to the set, such as labels of a teacher for each epoch and crop. They
            count as bytes; no protocol reads them by itself.
    """

    inputs: Float[Tensor, "steps n *sample"]
    labels: Shaped[Tensor, "steps n *classes"]
    lrs: Float[Tensor, "epochs steps"] | Float[Tensor, ""] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    label_kind: LabelKind | None = None
    weights: Float[Tensor, "steps n"] | None = None
    payload: Mapping[str, Tensor] = field(default_factory=dict)
    decoder: str = ""
    decoder_options: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def encoded(
        cls,
        decoder: str,
        payload: Mapping[str, Tensor],
        labels: Shaped[Tensor, "steps n *classes"],
        options: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> "DistilledSet":
        """Return a parametrised set: `decoder` makes `steps * n` inputs of the payload, in the order of `labels`.

        `fields` are further fields of the set, such as `lrs` and `weights`.
        """
        inputs = torch.empty((*labels.shape[:2], 0), device=labels.device)
        return cls(inputs, labels, payload=payload, decoder=decoder, decoder_options=options or {}, **fields)

    @property
    def count(self) -> int:
        """Number of examples in all steps that networks train on: of a payload, once it is decoded."""
        return self.labels.shape[0] * self.labels.shape[1]

    @property
    def kind(self) -> LabelKind:
        """The kind of the labels: `label_kind`, or what follows from their type."""
        return self.label_kind or ("distribution" if self.labels.is_floating_point() else "class")

    @property
    def soft(self) -> bool:
        """True where labels are vectors over the classes, not class numbers."""
        return self.labels.is_floating_point()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of an example; of a set with a payload as `metadata` states it, () where that does not."""
        if not self.decoder:
            return tuple(self.inputs.shape[2:])
        return tuple(json.loads(self.metadata.get("sample_shape", "[]")))

    @property
    def stored(self) -> int:
        """Number of examples as the budget counts them: those of a payload before it is decoded."""
        return self.stored_examples(self.sample_shape)

    def stored_examples(self, sample_shape: tuple[int, ...]) -> int:
        """Return `stored` for examples of `sample_shape`.

        A payload stores as many examples as its values would fill, rounded up, whatever they decode to. A value of
        eight bytes counts as two.
        """
        if not self.decoder:
            return self.count
        values = sum(tensor.numel() * max(1.0, tensor.element_size() / 4) for tensor in self.payload.values())
        return math.ceil(values / math.prod(sample_shape))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the set stores, by the name it has in a file."""
        named = {"inputs": None if self.decoder else self.inputs, "labels": self.labels, "lrs": self.lrs}
        named["weights"] = self.weights
        named |= {f"payload.{name}": tensor for name, tensor in self.payload.items()}
        named |= {f"extras.{name}": tensor for name, tensor in self.extras.items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def nbytes(self) -> int:
        """Size in bytes of every tensor that the set stores: of a payload, before it is decoded."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def label_nbytes(self) -> int:
        """Size in bytes of the labels, those of views included."""
        views = (tensor for name, tensor in self.extras.items() if name.startswith("view_"))
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.labels, *views))

    def targets(self) -> Shaped[Tensor, "steps n *classes"]:
        """Return what networks train on: the labels as they are, of logits their softmax."""
        return self.labels.softmax(-1) if self.kind == "logits" else self.labels

    def relative_weights(self) -> Float[Tensor, "steps n"] | None:
        """Return the weights scaled to mean 1 over the whole set; None where all weigh the same."""
        return None if self.weights is None else self.weights * (self.weights.numel() / self.weights.sum())

    def flat(self) -> tuple[Float[Tensor, " total *sample"], Shaped[Tensor, " total *classes"]]:
        """Return images `[steps * n, *sample_shape]` and labels `[steps * n]` as they are, for any training loop.

        Raises `UsageError` for a set with a payload.
        """
        if self.decoder:
            raise UsageError(
                f"the set holds a payload of the decoder {self.decoder}, not images.",
                "Decode it first: ddbench.decode(distilled)",
            )
        return self.inputs.flatten(0, 1), self.labels.flatten(0, 1)

    def pixels(self) -> Float[Tensor, " total *sample"]:
        """Return the images `[steps * n, *sample_shape]` as pixels in [0, 1], by mean and std of `metadata`.

        Values outside are clipped, because distilled images may leave the range of real ones. Whitened images have no
        pixels: theirs are spread over [0, 1] from the smallest to the largest value. Raises as `flat`, and for a set of
        another modality, which `ddbench show` presents.
        """
        modality = self.metadata.get("modality", "image")
        if modality != "image":
            raise UsageError(
                f"the set holds {modality}, which has no pixels.", "See it in its run folder: ddbench show RUN"
            )
        images = self.flat()[0]
        if "whitening" in self.metadata:
            low, high = images.aminmax()
            return (images - low) / (high - low).clamp_min(1e-12)
        shape = (-1, *[1] * (images.dim() - 2))
        mean, std = (
            images.new_tensor(json.loads(self.metadata.get(name, default))).view(shape)
            for name, default in (("mean", "[0.0]"), ("std", "[1.0]"))
        )
        return (images * std + mean).clamp(0, 1)

    def dataset(self) -> "TensorDataset":
        """Return a `torch.utils.data` dataset for a DataLoader, of pairs of image and target.

        A set with weights gives triples, the weight of the example behind its target. Raises as `flat`.
        """
        from torch.utils.data import TensorDataset

        parts, weights = [self.flat()[0], self.targets().flatten(0, 1)], self.relative_weights()
        return TensorDataset(*parts, *([] if weights is None else [weights.flatten()]))

    def decoded(self, decode: Decode) -> "DistilledSet":
        """Return the set with the inputs that `decode` makes of its payload; the set itself where it has none.

        Raises `UsageError` where there is not one input for each label.
        """
        if not self.decoder:
            return self
        inputs = decode(self.decoder, self.payload, **self.decoder_options).detach()
        if len(inputs) != self.count:
            raise UsageError(
                f"{self.decoder} makes {len(inputs)} inputs of the payload, which has {self.count} labels.",
                "A parametrised set has a label for each input that it decodes to.",
            )
        inputs = inputs.reshape(*self.labels.shape[:2], *inputs.shape[1:])
        return replace(self, inputs=inputs, payload={}, decoder="", decoder_options={})

    def to(self, device: torch.device) -> "DistilledSet":
        """Return the same set on `device`, detached from any graph."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device).contiguous()

        return replace(
            self,
            inputs=moved(self.inputs),
            labels=moved(self.labels),
            lrs=None if self.lrs is None else moved(self.lrs),
            weights=None if self.weights is None else moved(self.weights),
            payload={name: moved(tensor) for name, tensor in self.payload.items()},
            extras={name: moved(tensor) for name, tensor in self.extras.items()},
        )

    def validate(self, task: "Task", origin: str = "the method returned") -> None:
        """Check every field, and the budget, against `task`. Raises `PluginError` with the first problem.

        A payload is decoded, and its inputs are checked too. Raises as `Task.decode` where that fails.
        """
        for problem in problems(self, task):
            raise PluginError(
                f"{origin} {problem}.",
                "A set has inputs [steps, n, *sample_shape] or a payload, labels [steps, n], lrs [epochs, steps] or "
                "None and weights [steps, n] from zero on or None, and it keeps to the budget.",
            )

    def described(self, **more: object) -> "DistilledSet":
        """Return the same set with more metadata. Values that are not text become JSON."""
        text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in more.items()}
        return replace(self, metadata={**self.metadata, **text})

    def save(self, path: Path) -> str:
        """Write a safetensors file atomically and return its SHA-256. Equal sets give equal bytes."""
        kept: dict[str, str] = {} if self.label_kind is None else {"label_kind": self.label_kind}
        if self.decoder:
            kept |= {"decoder": self.decoder, "decoder_options": json.dumps(self.decoder_options, sort_keys=True)}
        return write_set(path, self.tensors, {**self.metadata, **kept})

    @classmethod
    def load(cls, path: str | Path) -> "DistilledSet":
        """Read a file of `save` without running code from it. Raises `UsageError` for any other file.

        A payload is left as it is stored: see `ddbench.decode`.
        """
        tensors, metadata = read_set(Path(path))
        try:
            kind: Any = metadata.pop("label_kind", None)
            decoder, options = metadata.pop("decoder", ""), json.loads(metadata.pop("decoder_options", "{}"))
            groups: dict[str, dict[str, Tensor]] = {"payload": {}, "extras": {}}
            for name in list(tensors):
                group, dot, rest = name.partition(".")
                if dot and group in groups:
                    groups[group][rest] = tensors.pop(name)
            labels = tensors["labels"]
            inputs = torch.empty((*labels.shape[:2], 0)) if decoder else tensors["inputs"]
            if not isinstance(options, dict) or bool(decoder) != bool(groups["payload"]):
                raise ValueError("its payload and its decoder do not belong together")
            return cls(
                inputs,
                labels,
                tensors.get("lrs"),
                metadata,
                label_kind=kind,
                weights=tensors.get("weights"),
                payload=groups["payload"],
                decoder=decoder,
                decoder_options=options,
                extras=groups["extras"],
            )
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"{path} is damaged or not a distilled set: {error}.",
                "Take an intact distilled.safetensors file from a run folder.",
            ) from error
