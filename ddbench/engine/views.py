"""Views of training images: random windows, mirror images, and windows of other images (CutMix)."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from ddbench.errors import UsageError

RATIO = 4 / 3
"""Largest ratio of the sides of a random window to each other, and its inverse the smallest."""

Images = Float[Tensor, "n channels height width"]


def draw_windows(n: int, smallest: float, generator: torch.Generator, ratio: float = RATIO) -> Float[Tensor, "n 4"]:
    """Draw a random window for each of `n` images (Szegedy et al. 2015, arXiv 1409.4842, Section 6).

    The area of a window is uniform between the share `smallest` and 1 of the image. The logarithm of the ratio of its
    sides is uniform up to that of `ratio`; a side that would be longer than the image's is as long. A row holds the
    width and the height as shares of the image, then x and y of the centre in [-1, 1]; float64.
    """
    area, shape, *place = torch.rand(4, n, generator=generator, dtype=torch.float64)
    area, stretch = smallest + area * (1 - smallest), ((shape - 0.5) * math.log(ratio)).exp()
    sides = [(area.sqrt() * side).clamp(max=1) for side in (stretch, 1 / stretch)]
    x, y = ((1 - side) * (2 * u - 1) for side, u in zip(sides, place, strict=True))
    return torch.stack([*sides, x, y], 1)


def crop(images: Images, windows: Float[Tensor, "windows 4"]) -> Images:
    """Return the window of each image, resized to its size: bilinear, differentiable. One window serves all images."""
    width, height, x, y = windows.expand(len(images), 4).unbind(1)
    zero = torch.zeros_like(x)
    affine = torch.stack([width, zero, x, zero, height, y], 1).view(-1, 2, 3).to(images)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True, eq=False)
class Mix:
    """A draw of CutMix for a batch (Yun et al. 2019, arXiv 1905.04899, equation 1).

    Attributes:
        partners: the other image of each image, by its place in the batch.
        rows: first row of the window, and the row behind its last.
        columns: the same for columns.
    """

    partners: Int[Tensor, " n"]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @classmethod
    def draw(cls, n: int, side: tuple[int, int], generator: torch.Generator) -> "Mix":
        """Draw a window for `n` images of `side` (height, width).

        The share of the window is uniform in [0, 1] and its centre in the image, which cuts it off; both are the same
        for the whole batch.
        """
        partners = torch.randperm(n, generator=generator)
        share, *centre = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        spans = []
        for length, place in zip(side, centre, strict=True):
            half, middle = int(length * math.sqrt(share)) // 2, int(place * length)
            spans.append((max(middle - half, 0), min(middle + half, length)))
        return cls(partners, *spans)

    def apply(self, images: Images) -> Images:
        """Return the images, each with the window of its partner."""
        rows, columns = slice(*self.rows), slice(*self.columns)
        mixed = images.clone()
        mixed[:, :, rows, columns] = images[self.partners.to(images.device)][:, :, rows, columns]
        return mixed

    def share(self, side: tuple[int, int]) -> float:
        """Return the share of the window in the area of an image."""
        window = (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])
        return window / math.prod(side)


@dataclass(frozen=True, eq=False)
class Views:
    """The views of a set in several epochs: which images make each batch, and what networks see of them.

    Half a kilobyte an image holds them for some tens of epochs, so a set can store them beside the logits that a
    teacher gave to each (Shen and Xing 2022, arXiv 2112.01528, "fast knowledge distillation").

    Attributes:
        order: images of each epoch, in the order of its batches.
        windows: the window of each image in that order, as `draw_windows` gives it, in half precision.
        flips: True where the image is mirrored.
        partners: the image whose window is mixed in, by its place in the batch.
        spans: rows and columns of the window of each batch, the ends excluded.
        batch: images of a batch.
    """

    order: Int[Tensor, "epochs n"]
    windows: Float[Tensor, "epochs n 4"]
    flips: Bool[Tensor, "epochs n"]
    partners: Int[Tensor, "epochs n"]
    spans: Int[Tensor, "epochs batches 4"]

    @property
    def epochs(self) -> int:
        """The number of epochs."""
        return len(self.order)

    @property
    def batch(self) -> int:
        """Images of a batch; the last of an epoch may be smaller."""
        return math.ceil(self.order.shape[1] / self.spans.shape[1])

    @classmethod
    def draw(
        cls, n: int, side: tuple[int, int], epochs: int, batch: int, smallest: float, mirror: bool,
        generator: torch.Generator,
    ) -> "Views":  # fmt: skip
        """Draw the views of `n` images of `side` (height, width): windows from the share `smallest` on, and CutMix."""
        order = torch.stack([torch.randperm(n, generator=generator) for _ in range(epochs)])
        windows = torch.stack([draw_windows(n, smallest, generator) for _ in range(epochs)])
        flips = (torch.rand(epochs, n, generator=generator) < 0.5) & mirror
        partners, spans = [], []
        for _ in range(epochs):
            mixes = [Mix.draw(len(part), side, generator) for part in torch.split(order[0], batch)]
            partners.append(torch.cat([mix.partners for mix in mixes]))
            spans.append([[*mix.rows, *mix.columns] for mix in mixes])
        return cls(
            order.int(), windows.half(), flips, torch.stack(partners).int(), torch.tensor(spans, dtype=torch.int16)
        )

    def batches(self, images: Images, epoch: int) -> list[tuple[slice, Images]]:
        """Return the batches of an epoch as networks see them, each with its places in the order of the epoch."""
        result = []
        for number, span in enumerate(self.spans[epoch].tolist()):
            place = slice(number * self.batch, (number + 1) * self.batch)
            seen = images[self.order[epoch, place].to(images.device, torch.int64)]
            seen = torch.where(self.flips[epoch, place].to(images.device).view(-1, 1, 1, 1), seen.flip(3), seen)
            seen = crop(seen, self.windows[epoch, place].double())
            mix = Mix(self.partners[epoch, place].long(), tuple(span[:2]), tuple(span[2:]))
            result.append((place, mix.apply(seen)))
        return result

    def stored(self, logits: Float[Tensor, "epochs n classes"], images: Images) -> dict[str, Tensor]:
        """Return the views with the logits that a teacher gave to each, as extras of a set of these `images` hold them.

        Logits follow the order of each epoch, and are stored in half precision.
        """
        tensors = {f"view_{name}": getattr(self, name) for name in FIELDS}
        limit = torch.finfo(torch.float16).max
        answers = {"view_logits": logits.cpu().clamp(-limit, limit).half(), "view_images": fingerprint(images)}
        return {name: tensor.to(images.device) for name, tensor in {**tensors, **answers}.items()}


FIELDS = ("order", "windows", "flips", "partners", "spans")


def fingerprint(images: Images) -> UInt8[Tensor, "32"]:
    """Return the SHA-256 of images as bytes: labels of other images are noticed by it."""
    raw = hashlib.sha256(images.detach().cpu().contiguous().numpy().tobytes()).digest()
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).clone()


def read_views(
    tensors: Mapping[str, Tensor], images: Images, classes: int
) -> tuple[Views, Float[Tensor, "epochs n classes"]]:
    """Return the views among the extras of a set, and their logits, in single precision.

    Raises `UsageError` where there are none, where they are damaged, or where they were made for other images.
    """
    remedy = "Distil with a method that stores them, such as rded with --set labels=views."
    missing = [name for name in (*FIELDS, "logits", "images") if f"view_{name}" not in tensors]
    if missing:
        raise UsageError(f"the set has no stored labels of views: view_{missing[0]} is missing.", remedy)
    if not torch.equal(tensors["view_images"].cpu(), fingerprint(images)):
        raise UsageError("the stored labels of views belong to other images than those of the set.", remedy)
    views = Views(*(tensors[f"view_{name}"].cpu() for name in FIELDS))
    logits, n = tensors["view_logits"], len(images)
    shapes = [views.windows.shape, views.flips.shape, views.partners.shape, views.spans.shape[::2], logits.shape]
    epochs = len(views.order)
    right = [(epochs, n, 4), (epochs, n), (epochs, n), (epochs, 4), (epochs, n, classes)]
    whole = views.order.long().sort(1).values.eq(torch.arange(n)).all() if views.order.shape[1:] == (n,) else False
    if shapes != right or not whole:
        raise UsageError("the stored labels of views are damaged: they do not fit the images of the set.", remedy)
    return views, logits.float()
