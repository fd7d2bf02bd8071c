"""The examples of each inner step, and the sums of the gradients that the steps give by them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Transform = Callable[[Tensor, int], Tensor]
"""`(images [n, *sample], t)` to the images that step `t` trains on: a differentiable, pure function of both."""


@dataclass(frozen=True)
class Batches:
    """The examples of each inner step.

    Without `rows`, step `t` takes batch `t % steps` of `inputs [steps, n, *sample]`: the batches are cycled.
    With `rows`, it takes the examples `rows[t]` of `inputs [n, *sample]`.
    `labels` are classes, one dimension longer than steps and examples where they are soft.
    """

    inputs: Shaped[Tensor, " *inputs"]
    labels: Shaped[Tensor, " *labels"]
    rows: Sequence[Tensor] | None = None
    transform: Transform | None = None

    @classmethod
    def from_arguments(
        cls,
        inputs: Shaped[Tensor, " *inputs"],
        labels: Shaped[Tensor, " *labels"],
        indices: Int[Tensor, "T b"] | None,
        transform: Transform | None,
    ) -> "Batches":
        """Return the batches that the arguments of `meta_gradient` describe. Raises `ValueError` where they disagree.

        An index of -1 leaves a place of a batch empty.
        """
        lead = 1 if indices is not None else 2
        if inputs.dim() <= lead or labels.shape[:lead] != inputs.shape[:lead] or labels.dim() != lead + _soft(labels):
            shape = "n" if indices is not None else "steps, n"
            raise ValueError(
                f"labels {tuple(labels.shape)} do not fit inputs {tuple(inputs.shape)}: "
                f"[{shape}] integers or [{shape}, classes] floats are needed"
            )
        rows = None
        if indices is not None:
            if indices.dim() != 2 or not ((indices >= -1) & (indices < len(inputs))).all():
                raise ValueError(f"indices must be [T, b] whole numbers from -1 to {len(inputs) - 1}")
            rows = [row[row >= 0].to(inputs.device, torch.int64) for row in indices]
            if not all(len(row) for row in rows):
                raise ValueError("indices leave a step without examples")
        return cls(inputs.detach(), labels.detach(), rows, transform)

    @property
    def soft(self) -> bool:
        """True where labels are numbers for each class."""
        return _soft(self.labels)

    @property
    def fixed(self) -> bool:
        """True where each step sees one of few batches, exactly as it is stored."""
        return self.rows is None and self.transform is None

    @property
    def length(self) -> int:
        """The number of steps in one pass: all batches once, or the rows of the indices."""
        return len(self.inputs) if self.rows is None else len(self.rows)

    def like(self) -> Shaped[Tensor, "1 n *sample"]:
        """Return a tensor without data in the shape of the largest batch, as the network sees it."""
        if self.fixed:
            return self.inputs[:1].to("meta")
        t = 0 if self.rows is None else max(range(len(self.rows)), key=lambda t: len(self.rows[t]))  # type: ignore[index]
        return self.transformed(self.examples(t)[0], t)[None].detach().to("meta")

    def place(self, t: int) -> int | Tensor:
        """Return the place of the examples of step `t` along the first dimension."""
        return t % len(self.inputs) if self.rows is None else self.rows[t]

    def examples(self, t: int) -> tuple[Float[Tensor, " n *sample"], Shaped[Tensor, " n *classes"]]:
        """Return the examples of step `t` as they are stored, and their labels."""
        place = self.place(t)
        return self.inputs[place].detach(), self.labels[place].detach()

    def transformed(self, inputs: Float[Tensor, " n *sample"], t: int) -> Float[Tensor, " n *view"]:
        """Return what the networks see of `inputs` in step `t`."""
        return inputs if self.transform is None else self.transform(inputs, t)


class Totals:
    """Gradients by all inputs and, where soft, by all labels: sums over steps and networks."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.labels = torch.zeros_like(batches.labels) if batches.soft else None
        self._inputs: Tensor | None = None

    def add(self, t: int, grad_x: Float[Tensor, " n *sample"], grad_y: Float[Tensor, " n classes"] | None) -> None:
        """Add the gradients of step `t`."""
        if self._inputs is None:
            self._inputs = torch.zeros_like(self.batches.inputs)
        self._add(self._inputs, t, grad_x)
        self.add_labels(t, grad_y)

    def add_labels(self, t: int, grad_y: Float[Tensor, " n classes"] | None) -> None:
        """Add the gradient of step `t` by labels, which counts where they are soft."""
        if self.labels is not None and grad_y is not None:
            self._add(self.labels, t, grad_y)

    def inputs(self) -> Float[Tensor, " *inputs"]:
        """Return the gradient by all inputs: zero for examples that no step used."""
        return torch.zeros_like(self.batches.inputs) if self._inputs is None else self._inputs

    def _add(self, total: Tensor, t: int, part: Tensor) -> None:
        place = self.batches.place(t)
        if isinstance(place, int):
            total[place].add_(part)
        else:
            total.index_add_(0, place, part)


def _soft(labels: Tensor) -> bool:
    return labels.is_floating_point()
