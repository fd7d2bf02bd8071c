"""Layers of a chain, first those without weights: what each does to a value, to its derivative, and on the way back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ddbench.engine.cpu.operators import average, covered, spread, windows


class Layer(Protocol):
    """A layer: its output, the derivative of it along a direction, and the way back of both.

    `w`, `v` are flat weights and their direction, `g`, `h` where flat gradients are written; `kept` is what forward
    left. `x` or `dx` is None where the network's input ends and no derivative is asked for or comes in.
    """

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        """Output and what is needed later."""
        ...

    def backward(self, w: Tensor, kept: Any, delta: Tensor, g: Tensor) -> Tensor:
        """From the gradient of the output to that of the input; that of the weights goes to `g`."""
        ...

    def tangent(self, w: Tensor, v: Tensor, kept: Any, dx: Tensor) -> tuple[Tensor, Any]:
        """Derivative of the output along `v` and `dx`, and what is needed on the way back."""
        ...

    def tangent_backward(
        self, w: Tensor, v: Tensor, kept: Any, kept_tangent: Any, delta: Tensor, ddelta: Tensor, h: Tensor
    ) -> Tensor:
        """Derivative of `backward` along the direction; that of the weights' gradient goes to `h`."""
        ...


class AroundInput:
    """A map that is linear around its input: the derivative goes the way of the value.

    `along` takes a derivative forward, `back` a gradient back.
    """

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def along(self, kept: Any, dx: Tensor) -> Tensor:
        return self.forward(dx, dx)[0]

    def back(self, kept: Any, delta: Tensor) -> Tensor:
        raise NotImplementedError

    def backward(self, w: Tensor, kept: Any, delta: Tensor, g: Tensor) -> Tensor:
        return self.back(kept, delta)

    def tangent(self, w: Tensor, v: Tensor, kept: Any, dx: Tensor) -> tuple[Tensor, Any]:
        return self.along(kept, dx), None

    def tangent_backward(
        self, w: Tensor, v: Tensor, kept: Any, kept_tangent: Any, delta: Tensor, ddelta: Tensor, h: Tensor
    ) -> Tensor:
        return self.back(kept, ddelta)


@dataclass(frozen=True)
class Flatten(AroundInput):
    """`[nets, c, n, h, w]` to `[nets, n, c h w]`."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        return x.transpose(1, 2).flatten(2), x.shape

    def back(self, kept: Any, delta: Tensor) -> Tensor:
        _, channels, n, high, wide = kept
        return delta.view(-1, n, channels, high, wide).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class Windowed(AroundInput):
    """A layer that looks at its input through windows; rows and columns of each option."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def at(self, dim: int) -> tuple[int, int]:
        """Size and stride along rows (0) or columns (1)."""
        return self.size[dim], self.stride[dim]


@dataclass(frozen=True)
class Columns(Windowed):
    """What each place of a convolution's output sees: `[nets, c k k, n h' w']`."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        padded = _padded(x, self.padding)
        # One dimension after the other: far fewer short copies than both at once.
        wide = padded.unfold(4, self.size[1], self.stride[1]).permute(0, 1, 5, 2, 3, 4).contiguous()
        both = wide.unfold(4, self.size[0], self.stride[0]).permute(0, 1, 6, 2, 3, 4, 5)
        return both.reshape(x.shape[0], both.shape[1:4].numel(), -1), (padded.shape, wide.shape, both.shape)

    def back(self, kept: Any, delta: Tensor) -> Tensor:
        padded, wide, both = kept
        nets = delta.shape[0]
        parts = delta.view(nets, *both[1:])
        high = delta.new_zeros(nets, *wide[1:])
        for part, place in zip(parts.unbind(2), windows(high, 4, *self.at(0)), strict=True):
            place += part
        out = delta.new_zeros(nets, *padded[1:])
        for part, place in zip(high.unbind(2), windows(out, 4, *self.at(1)), strict=True):
            place += part
        return _cropped(out, self.padding)


@dataclass(frozen=True)
class Image(AroundInput):
    """The output of a product with columns, `[nets, c, n h w]`, as images of `height` by `width`."""

    height: int
    width: int

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        return x.view(*x.shape[:2], -1, self.height, self.width), None

    def back(self, kept: Any, delta: Tensor) -> Tensor:
        return delta.reshape(*delta.shape[:2], -1)


@dataclass(frozen=True)
class ReLU(AroundInput):
    """max(x, 0), with derivative zero at zero as in torch."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        y = x.clamp_min(0)
        return y, y

    def along(self, kept: Any, dx: Tensor) -> Tensor:
        return self.back(kept, dx)

    def back(self, kept: Any, delta: Tensor) -> Tensor:
        passed: Tensor = torch.ops.aten.threshold_backward(delta, kept, 0)
        return passed


@dataclass(frozen=True)
class MaxPool(Windowed):
    """Keeps, for each window, the flat place of its maximum (of equals, the first) in the padded plane."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        x = _padded(x, self.padding, -math.inf)
        # Along the rows and then down the columns: of equals the first in torch's order.
        best, column = _running_maximum(windows(x, 4, *self.at(1)))
        best, row = _running_maximum(windows(best, 3, *self.at(0)))
        columns = windows(column, 3, *self.at(0))
        column = columns[0]
        for i, its_column in enumerate(columns[1:], 1):
            column = torch.where(row == i, its_column, column)
        down = torch.arange(0, best.shape[3] * self.stride[0], self.stride[0], device=x.device)[:, None]
        right = torch.arange(0, best.shape[4] * self.stride[1], self.stride[1], device=x.device)
        place = torch.add(down * x.shape[4] + right, row, alpha=x.shape[4]).add_(column)
        return best, (place, x.shape)

    def along(self, kept: Any, dx: Tensor) -> Tensor:
        place, _ = kept
        planes = _padded(dx, self.padding).reshape(*dx.shape[:3], -1)
        return planes.gather(3, place.flatten(3)).view(place.shape)

    def back(self, kept: Any, delta: Tensor) -> Tensor:
        place, padded = kept
        out = delta.new_zeros(padded)
        if self.size == self.stride:
            out.flatten(3).scatter_(3, place.flatten(3), delta.flatten(3))
        else:
            out.flatten(3).scatter_add_(3, place.flatten(3), delta.flatten(3))
        return _cropped(out, self.padding)


def _running_maximum(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Maximum over `parts` and, as a byte, which of them it comes from; of equals the first."""
    best, which = parts[0], None
    for i, part in enumerate(parts[1:], 1):
        later = (part > best).view(torch.uint8)
        which = later if which is None else torch.maximum(which, later * i)
        best = torch.maximum(best, part)
    return best, torch.zeros_like(best, dtype=torch.uint8) if which is None else which


@dataclass(frozen=True)
class AveragePool(Windowed):
    """The mean of each window, padding counted in."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        if covered(x.shape, self.size, self.stride, self.padding):
            return average(x, self.size), x.shape
        y = F.avg_pool2d(x.flatten(0, 1), self.size, self.stride, self.padding)
        return y.view(*x.shape[:2], *y.shape[1:]), x.shape

    def back(self, kept: Any, delta: Tensor) -> Tensor:
        if covered(kept, self.size, self.stride, self.padding):
            return spread(delta, self.size)
        like = delta.new_empty(len(delta), *kept[1:]).flatten(0, 1)
        options = (self.size, self.stride, self.padding, False, True, None)
        back: Tensor = torch.ops.aten.avg_pool2d_backward(delta.flatten(0, 1), like, *options)
        return back.view(-1, *kept[1:])


def _padded(x: Tensor, padding: tuple[int, int], value: float = 0.0) -> Tensor:
    high, wide = padding
    return F.pad(x, (wide, wide, high, high), value=value) if high or wide else x


def _cropped(x: Tensor, padding: tuple[int, int]) -> Tensor:
    high, wide = padding
    return x[:, :, :, high : x.shape[3] - high, wide : x.shape[4] - wide].contiguous() if high or wide else x
