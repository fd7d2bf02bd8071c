"""Layers of a chain without weights: forward pass, reverse pass, and the derivatives of both along a direction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ddbench.engine.cpu.operators import average, offsets, spread, tiles


class Layer(Protocol):
    """A layer y = f(x; w) of several networks, with hand-derived first and second derivatives.

    `w` `[nets, parameters]` are the flat weights and `v` a direction for them; `dx` and `dy` are derivatives along it.
    `delta` is dL/dy and `ddelta` its derivative along the direction. Gradients of the weights are written into
    `grad_w`, their derivatives into `hvp`, both flat. `residuals` are the values that `forward` saved.
    `dx` is None at the first weights: the network's input does not depend on the direction.
    """

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        """Return y and the residuals."""
        ...

    def backward(self, w: Tensor, residuals: Any, delta: Tensor, grad_w: Tensor) -> Tensor:
        """Return dL/dx and write dL/dw into `grad_w`."""
        ...

    def tangent(self, w: Tensor, v: Tensor, residuals: Any, dx: Tensor) -> tuple[Tensor, Any]:
        """Return dy along `(v, dx)`, and the residuals of `tangent_backward`."""
        ...

    def tangent_backward(
        self, w: Tensor, v: Tensor, residuals: Any, tangent_residuals: Any, delta: Tensor, ddelta: Tensor, hvp: Tensor
    ) -> Tensor:
        """Return the derivative of `backward` along the direction and write that of dL/dw into `hvp`."""
        ...


class PiecewiseLinear:
    """A layer without weights that is linear around its input, y = A x: `jvp` applies A, `vjp` its transpose."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def jvp(self, residuals: Any, dx: Tensor) -> Tensor:
        return self.forward(dx, dx)[0]

    def vjp(self, residuals: Any, delta: Tensor) -> Tensor:
        raise NotImplementedError

    def backward(self, w: Tensor, residuals: Any, delta: Tensor, grad_w: Tensor) -> Tensor:
        return self.vjp(residuals, delta)

    def tangent(self, w: Tensor, v: Tensor, residuals: Any, dx: Tensor) -> tuple[Tensor, Any]:
        return self.jvp(residuals, dx), None

    def tangent_backward(
        self, w: Tensor, v: Tensor, residuals: Any, tangent_residuals: Any, delta: Tensor, ddelta: Tensor, hvp: Tensor
    ) -> Tensor:
        return self.vjp(residuals, ddelta)


@dataclass(frozen=True)
class Flatten(PiecewiseLinear):
    """`[nets, c, n, h, w]` to `[nets, n, c h w]`."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        return x.transpose(1, 2).flatten(2), x.shape

    def vjp(self, residuals: Any, delta: Tensor) -> Tensor:
        _, channels, n, height, width = residuals
        return delta.view(-1, n, channels, height, width).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class Windowed(PiecewiseLinear):
    """A layer that sees its input through windows; each option is (rows, columns)."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def along(self, dim: int) -> tuple[int, int]:
        """Return size and stride along rows (0) or columns (1)."""
        return self.size[dim], self.stride[dim]


@dataclass(frozen=True)
class Columns(Windowed):
    """Windows of a convolution as columns, one for each place of its output: `[nets, c k k, n h' w']`."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        padded = _pad(x, self.padding)
        # One dimension after the other: far fewer short copies than both at once.
        rows = padded.unfold(4, self.size[1], self.stride[1]).permute(0, 1, 5, 2, 3, 4).contiguous()
        windows = rows.unfold(4, self.size[0], self.stride[0]).permute(0, 1, 6, 2, 3, 4, 5)
        return windows.reshape(x.shape[0], windows.shape[1:4].numel(), -1), (padded.shape, rows.shape, windows.shape)

    def vjp(self, residuals: Any, delta: Tensor) -> Tensor:
        padded, rows, windows = residuals
        nets = delta.shape[0]
        grad_rows = delta.new_zeros(nets, *rows[1:])
        for part, view in zip(
            delta.view(nets, *windows[1:]).unbind(2), offsets(grad_rows, 4, *self.along(0)), strict=True
        ):
            view += part
        grad_x = delta.new_zeros(nets, *padded[1:])
        for part, view in zip(grad_rows.unbind(2), offsets(grad_x, 4, *self.along(1)), strict=True):
            view += part
        return _crop(grad_x, self.padding)


@dataclass(frozen=True)
class Image(PiecewiseLinear):
    """The output of a product with columns, `[nets, c, n h w]`, as images of `height` by `width`."""

    height: int
    width: int

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        return x.view(*x.shape[:2], -1, self.height, self.width), None

    def vjp(self, residuals: Any, delta: Tensor) -> Tensor:
        return delta.reshape(*delta.shape[:2], -1)


@dataclass(frozen=True)
class ReLU(PiecewiseLinear):
    """max(x, 0), with derivative zero at zero as in torch."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        y = x.clamp_min(0)
        return y, y

    def jvp(self, residuals: Any, dx: Tensor) -> Tensor:
        return self.vjp(residuals, dx)

    def vjp(self, residuals: Any, delta: Tensor) -> Tensor:
        grad_x: Tensor = torch.ops.aten.threshold_backward(delta, residuals, 0)
        return grad_x


@dataclass(frozen=True)
class MaxPool(Windowed):
    """Max-pooling; the residual is, for each window, the flat index of the maximum (the first of ties) in its plane."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        x = _pad(x, self.padding, -math.inf)
        # Along the rows and then down the columns: of ties, the first in torch's order.
        best, column = _running_maximum(offsets(x, 4, *self.along(1)))
        best, row = _running_maximum(offsets(best, 3, *self.along(0)))
        columns = offsets(column, 3, *self.along(0))
        column = columns[0]
        for i, candidate in enumerate(columns[1:], 1):
            column = torch.where(row == i, candidate, column)
        top = torch.arange(0, best.shape[3] * self.stride[0], self.stride[0], device=x.device)[:, None]
        left = torch.arange(0, best.shape[4] * self.stride[1], self.stride[1], device=x.device)
        index = torch.add(top * x.shape[4] + left, row, alpha=x.shape[4]).add_(column)
        return best, (index, x.shape)

    def jvp(self, residuals: Any, dx: Tensor) -> Tensor:
        index, _ = residuals
        planes = _pad(dx, self.padding).reshape(*dx.shape[:3], -1)
        return planes.gather(3, index.flatten(3)).view(index.shape)

    def vjp(self, residuals: Any, delta: Tensor) -> Tensor:
        index, padded = residuals
        grad_x = delta.new_zeros(padded)
        if self.size == self.stride:
            grad_x.flatten(3).scatter_(3, index.flatten(3), delta.flatten(3))
        else:
            grad_x.flatten(3).scatter_add_(3, index.flatten(3), delta.flatten(3))
        return _crop(grad_x, self.padding)


def _running_maximum(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the maximum over `parts` and, as a byte, the number of the part it comes from (the first of ties)."""
    best, which = parts[0], None
    for i, part in enumerate(parts[1:], 1):
        later = (part > best).view(torch.uint8)
        which = later if which is None else torch.maximum(which, later * i)
        best = torch.maximum(best, part)
    return best, torch.zeros_like(best, dtype=torch.uint8) if which is None else which


@dataclass(frozen=True)
class AveragePool(Windowed):
    """Average pooling; padding counts as zeros."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        if tiles(x.shape, self.size, self.stride, self.padding):
            return average(x, self.size), x.shape
        y = F.avg_pool2d(x.flatten(0, 1), self.size, self.stride, self.padding)
        return y.view(*x.shape[:2], *y.shape[1:]), x.shape

    def vjp(self, residuals: Any, delta: Tensor) -> Tensor:
        if tiles(residuals, self.size, self.stride, self.padding):
            return spread(delta, self.size)
        like = delta.new_empty(len(delta), *residuals[1:]).flatten(0, 1)
        options = (self.size, self.stride, self.padding, False, True, None)
        grad_x: Tensor = torch.ops.aten.avg_pool2d_backward(delta.flatten(0, 1), like, *options)
        return grad_x.view(-1, *residuals[1:])


def _pad(x: Tensor, padding: tuple[int, int], value: float = 0.0) -> Tensor:
    rows, columns = padding
    return F.pad(x, (columns, columns, rows, rows), value=value) if rows or columns else x


def _crop(x: Tensor, padding: tuple[int, int]) -> Tensor:
    rows, columns = padding
    if not rows and not columns:
        return x
    return x[:, :, :, rows : x.shape[3] - rows, columns : x.shape[4] - columns].contiguous()
