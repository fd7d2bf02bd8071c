"""Networks that are chains of simple layers: several at a time, with first and second derivatives written out.

Most of the field's networks are convolutions, linear layers, ReLU, pooling and normalisation one after the other, and
an inner step trains them on ten images: calls, not arithmetic, are what such a step costs. So networks share calls,
convolutions of few channels are one product with the columns of their input, and the product of the Hessian with a
direction v comes from dual numbers (Pearlmutter 1994): each layer is given its input and its input's derivative along
v, and gives back the same of its output; the way back does likewise with the derivative of the loss. The network's own
input is one for all networks and all epochs: its columns are taken once, and the gradients that all networks and epochs
have for it are summed before they are put together.

Layout: images `[nets, channels, n, height, width]`, so that a product with columns gives them as they are; features
`[nets, n, features]`; weights flat, `[nets, parameters]`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddbench.operators import channel_sum, denominator, pair, windows

FEW_CHANNELS = 32
"""Output channels up to which a convolution is a product with columns rather than the library's convolution."""
MOST_COLUMNS = 2**26
"""Values in the columns of all distilled examples up to which they are taken at once."""


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


class _Linear:
    """A map that is linear around its input: the derivative goes the way of the value."""

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
class _Flatten(_Linear):
    """`[nets, c, n, h, w]` to `[nets, n, c h w]`."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        return x.transpose(1, 2).flatten(2), x.shape

    def back(self, kept: Any, delta: Tensor) -> Tensor:
        _, channels, n, high, wide = kept
        return delta.view(-1, n, channels, high, wide).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class _Columns(_Linear):
    """What each place of a convolution's output sees: `[nets, c k k, n h' w']`."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

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
        for part, place in zip(parts.unbind(2), windows(high, 4, *_at(self, 0)), strict=True):
            place += part
        out = delta.new_zeros(nets, *padded[1:])
        for part, place in zip(high.unbind(2), windows(out, 4, *_at(self, 1)), strict=True):
            place += part
        return _cropped(out, self.padding)


def _at(columns: _Columns, dim: int) -> tuple[int, int]:
    return columns.size[dim], columns.stride[dim]


@dataclass(frozen=True)
class _Image(_Linear):
    """The output of a product with columns, `[nets, c, n h w]`, as images of `height` by `width`."""

    height: int
    width: int

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        return x.view(*x.shape[:2], -1, self.height, self.width), None

    def back(self, kept: Any, delta: Tensor) -> Tensor:
        return delta.reshape(*delta.shape[:2], -1)


@dataclass(frozen=True)
class _ReLU(_Linear):
    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        y = x.clamp_min(0)
        return y, y

    def along(self, kept: Any, dx: Tensor) -> Tensor:
        return self.back(kept, dx)

    def back(self, kept: Any, delta: Tensor) -> Tensor:
        passed: Tensor = torch.ops.aten.threshold_backward(delta, kept, 0)
        return passed


@dataclass(frozen=True)
class _MaxPool(_Linear):
    """Keeps, for each window, the flat place of its maximum (of equals, the first) in the padded plane."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        x = _padded(x, self.padding, -math.inf)
        # Along the rows and then down the columns: of equals the first in torch's order.
        best, column = _running_maximum(windows(x, 4, self.size[1], self.stride[1]))
        best, row = _running_maximum(windows(best, 3, self.size[0], self.stride[0]))
        columns = windows(column, 3, self.size[0], self.stride[0])
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
class _AveragePool(_Linear):
    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        y = F.avg_pool2d(x.flatten(0, 1), self.size, self.stride, self.padding)
        return y.view(*x.shape[:2], *y.shape[1:]), x.shape

    def back(self, kept: Any, delta: Tensor) -> Tensor:
        like = delta.new_empty(len(delta), *kept[1:]).flatten(0, 1)
        options = (self.size, self.stride, self.padding, False, True, None)
        back: Tensor = torch.ops.aten.avg_pool2d_backward(delta.flatten(0, 1), like, *options)
        return back.view(-1, *kept[1:])


@dataclass(frozen=True)
class _Weighted:
    """Where a layer's weight, as a matrix, and its bias stand in the flat weights.

    The `first` of a chain has one x for all networks; the derivative of its gradient is summed over them, and the
    gradient itself nobody asks for.
    """

    start: int
    rows: int
    columns: int
    bias: int | None
    first: bool

    def _weight(self, flat: Tensor) -> Tensor:
        return flat[:, self.start : self.start + self.rows * self.columns].view(-1, self.rows, self.columns)

    def _bias(self, flat: Tensor) -> Tensor | None:
        return None if self.bias is None else flat[:, self.bias : self.bias + self.rows]


@dataclass(frozen=True)
class _Dense(_Weighted):
    """y = x W' + b on `[nets, n, features]`."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        kernel, bias = self._weight(w).transpose(1, 2), self._bias(w)
        x = x.expand(len(w), -1, -1)
        return (torch.bmm(x, kernel) if bias is None else torch.baddbmm(bias[:, None], x, kernel)), x

    def backward(self, w: Tensor, kept: Any, delta: Tensor, g: Tensor) -> Tensor:
        torch.bmm(delta.transpose(1, 2), kept, out=self._weight(g))
        self._sum_bias(g, delta)
        return delta if self.first else torch.bmm(delta, self._weight(w))

    def tangent(self, w: Tensor, v: Tensor, kept: Any, dx: Tensor | None) -> tuple[Tensor, Any]:
        dy = self.forward(v, kept)[0]
        return dy if dx is None else dy.baddbmm_(dx, self._weight(w).transpose(1, 2)), dx

    def tangent_backward(
        self, w: Tensor, v: Tensor, kept: Any, kept_tangent: Any, delta: Tensor, ddelta: Tensor, h: Tensor
    ) -> Tensor:
        torch.bmm(ddelta.transpose(1, 2), kept, out=self._weight(h))
        self._sum_bias(h, ddelta)
        back = torch.bmm(ddelta, self._weight(w)).baddbmm_(delta, self._weight(v))
        if self.first:
            return back.sum(0, keepdim=True)
        self._weight(h).baddbmm_(delta.transpose(1, 2), kept_tangent)
        return back

    def _sum_bias(self, g: Tensor, delta: Tensor) -> None:
        bias = self._bias(g)
        if bias is not None:
            torch.sum(delta, 1, out=bias)


@dataclass(frozen=True)
class _Product(_Weighted):
    """y = W x + b on columns `[nets, features, places]`."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        weight, bias = self._weight(w), self._bias(w)
        if self.first:
            y = _stacked(weight).mm(x[0]).view(-1, self.rows, x.shape[2])
            return (y if bias is None else y.add_(bias[:, :, None])), x
        return (torch.bmm(weight, x) if bias is None else torch.baddbmm(bias[:, :, None], weight, x)), x

    def backward(self, w: Tensor, kept: Any, delta: Tensor, g: Tensor) -> Tensor:
        self._of_weights(g, delta, kept)
        return delta if self.first else torch.bmm(self._weight(w).transpose(1, 2), delta)

    def tangent(self, w: Tensor, v: Tensor, kept: Any, dx: Tensor | None) -> tuple[Tensor, Any]:
        dy = self.forward(v, kept)[0]
        return dy if dx is None else dy.baddbmm_(self._weight(w), dx), dx

    def tangent_backward(
        self, w: Tensor, v: Tensor, kept: Any, kept_tangent: Any, delta: Tensor, ddelta: Tensor, h: Tensor
    ) -> Tensor:
        self._of_weights(h, ddelta, kept)
        weight, along = self._weight(w), self._weight(v)
        if self.first:
            back = _stacked(weight).T.mm(ddelta.flatten(0, 1))
            return back.addmm_(_stacked(along).T, delta.flatten(0, 1))[None]
        self._weight(h).baddbmm_(delta, kept_tangent.transpose(1, 2))
        return torch.bmm(weight.transpose(1, 2), ddelta).baddbmm_(along.transpose(1, 2), delta)

    def _of_weights(self, g: Tensor, delta: Tensor, x: Tensor) -> None:
        weight, bias = self._weight(g), self._bias(g)
        if self.first:
            weight.copy_(delta.flatten(0, 1).mm(x[0].T).view(weight.shape))
        else:
            torch.bmm(delta, x.transpose(1, 2), out=weight)
        if bias is not None:
            torch.sum(delta, 2, out=bias)


def _stacked(weight: Tensor) -> Tensor:
    """The rows of all networks' weights one below the other."""
    return weight.reshape(-1, weight.shape[2])


@dataclass(frozen=True)
class _Convolution:
    """A convolution of many channels: the library's own, network by network."""

    start: int
    shape: tuple[int, ...]
    bias: int | None
    stride: tuple[int, int]
    padding: tuple[int, int]

    def _weight(self, flat: Tensor) -> Tensor:
        return flat[:, self.start : self.start + math.prod(self.shape)].view(-1, *self.shape)

    def _bias(self, flat: Tensor) -> Tensor | None:
        return None if self.bias is None else flat[:, self.bias : self.bias + self.shape[0]]

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        return self._convolved(x, self._weight(w), self._bias(w)), x

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        biases: Sequence[Tensor | None] = [None] * len(x) if bias is None else list(bias)
        each = [
            F.conv2d(its.transpose(0, 1), kernel, offset, self.stride, self.padding).transpose(0, 1)
            for its, kernel, offset in zip(x, weight, biases, strict=True)
        ]
        return torch.stack(each)

    def _adjoint(self, delta: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> Any:
        """Gradients of one network's input and kernel, as wanted."""
        options = ([0], self.stride, self.padding, (1, 1), False, (0, 0), 1, (*wanted, False))
        return torch.ops.aten.convolution_backward(delta.transpose(0, 1), x.transpose(0, 1), weight, *options)

    def backward(self, w: Tensor, kept: Any, delta: Tensor, g: Tensor) -> Tensor:
        back = []
        for net, (its, x, weight) in enumerate(zip(delta, kept, self._weight(w), strict=True)):
            of_input, of_kernel, _ = self._adjoint(its, x, weight, (True, True))
            self._weight(g)[net] = of_kernel
            back.append(of_input.transpose(0, 1))
        self._sum_bias(g, delta)
        return torch.stack(back)

    def tangent(self, w: Tensor, v: Tensor, kept: Any, dx: Tensor) -> tuple[Tensor, Any]:
        # W dx + V x is one convolution of twice as many channels.
        both = torch.cat([self._weight(w), self._weight(v)], 2)
        return self._convolved(torch.cat([dx, kept], 1), both, self._bias(v)), dx

    def tangent_backward(
        self, w: Tensor, v: Tensor, kept: Any, kept_tangent: Any, delta: Tensor, ddelta: Tensor, h: Tensor
    ) -> Tensor:
        back = []
        for net in range(len(delta)):
            # Kernels: twice as many examples. Inputs: twice as many output channels.
            examples = torch.cat([ddelta[net], delta[net]], 1), torch.cat([kept[net], kept_tangent[net]], 1)
            kernel = self._weight(w)[net]
            self._weight(h)[net] = self._adjoint(*examples, kernel, (False, True))[1]
            channels = torch.cat([ddelta[net], delta[net]], 0)
            both = torch.cat([kernel, self._weight(v)[net]], 0)
            back.append(self._adjoint(channels, kept[net], both, (True, False))[0].transpose(0, 1))
        self._sum_bias(h, ddelta)
        return torch.stack(back)

    def _sum_bias(self, g: Tensor, delta: Tensor) -> None:
        bias = self._bias(g)
        if bias is not None:
            torch.sum(delta, (2, 3, 4), out=bias)


@dataclass(frozen=True)
class _ResponseNorm:
    """y = x p, p = d^-beta, d = k + s S(x^2) with s = alpha / size and S the sum over a window of channels."""

    size: int
    alpha: float
    beta: float
    k: float

    def _sum(self, x: Tensor, *, adjoint: bool = False) -> Tensor:
        return channel_sum(x, self.size, adjoint=adjoint)

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        d, p = denominator(x, self.size, self.alpha, self.beta, self.k)
        return x * p, (x, d, p)

    def backward(self, w: Tensor, kept: Any, delta: Tensor, g: Tensor) -> Tensor:
        # dL/dx = delta p - 2 s beta x S'(u), u = delta x p / d
        x, d, p = kept
        spread = self._sum(delta * x * p / d, adjoint=True)
        result: Tensor = delta * p - (2 * self.alpha / self.size * self.beta) * x * spread
        return result

    def tangent(self, w: Tensor, v: Tensor, kept: Any, dx: Tensor) -> tuple[Tensor, Any]:
        # dd = 2 s S(x dx), dp = -beta p dd / d
        x, d, p = kept
        dd = self._sum(x * dx) * (2 * self.alpha / self.size)
        dp = -self.beta * p * dd / d
        return dx * p + x * dp, (dx, dd, dp)

    def tangent_backward(
        self, w: Tensor, v: Tensor, kept: Any, kept_tangent: Any, delta: Tensor, ddelta: Tensor, h: Tensor
    ) -> Tensor:
        # The derivative of `backward`: of u, du = (ddelta x p + delta dx p + delta x (dp - p dd / d)) / d.
        x, d, p = kept
        dx, dd, dp = kept_tangent
        spread = self._sum(delta * x * p / d, adjoint=True)
        du = ((ddelta * x + delta * dx) * p + delta * x * (dp - p * dd / d)) / d
        spread = dx * spread + x * self._sum(du, adjoint=True)
        result: Tensor = ddelta * p + delta * dp - (2 * self.alpha / self.size * self.beta) * spread
        return result


@dataclass(frozen=True)
class _GroupNorm:
    """y = gamma z + beta, z = (x - m) / s, with mean m and deviation s of each example over each group of channels."""

    start: int | None
    channels: int
    groups: int
    eps: float

    def _scale(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """gamma and beta, which stand one behind the other."""
        assert self.start is not None
        both = flat[:, self.start : self.start + 2 * self.channels].view(-1, 2, self.channels, 1, 1, 1)
        return both[:, 0], both[:, 1]

    def _mean(self, x: Tensor) -> Tensor:
        """Over each group, in a shape that goes with x."""
        grouped = x.view(x.shape[0], self.groups, -1, *x.shape[2:]).mean((2, 4, 5), keepdim=True)
        return grouped.expand(-1, -1, self.channels // self.groups, -1, -1, -1).flatten(1, 2)

    def _centred(self, x: Tensor, z: Tensor, s: Tensor) -> Tensor:
        """(x - mean(x) - z mean(x z)) / s: the derivative of z along x, which is its own adjoint."""
        return (x - self._mean(x) - z * self._mean(x * z)) / s

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        centred = x - self._mean(x)
        s = (self._mean(centred * centred) + self.eps).sqrt()
        z = centred / s
        if self.start is None:
            return z, (z, s)
        gamma, beta = self._scale(w)
        return torch.addcmul(beta, gamma, z), (z, s)

    def backward(self, w: Tensor, kept: Any, delta: Tensor, g: Tensor) -> Tensor:
        z, s = kept
        if self.start is not None:
            self._of_scale(g, delta * z, delta)
            delta = delta * self._scale(w)[0]
        return self._centred(delta, z, s)

    def tangent(self, w: Tensor, v: Tensor, kept: Any, dx: Tensor) -> tuple[Tensor, Any]:
        z, s = kept
        dz, ds = self._centred(dx, z, s), self._mean(dx * z)
        if self.start is None:
            return dz, (dz, ds)
        (gamma, _), (dgamma, dbeta) = self._scale(w), self._scale(v)
        return torch.addcmul(torch.addcmul(dbeta, dgamma, z), gamma, dz), (dz, ds)

    def tangent_backward(
        self, w: Tensor, v: Tensor, kept: Any, kept_tangent: Any, delta: Tensor, ddelta: Tensor, h: Tensor
    ) -> Tensor:
        (z, s), (dz, ds) = kept, kept_tangent
        if self.start is not None:
            self._of_scale(h, ddelta * z + delta * dz, ddelta)
            gamma, dgamma = self._scale(w)[0], self._scale(v)[0]
            delta, ddelta = delta * gamma, ddelta * gamma + delta * dgamma
        # The derivative of `_centred(delta)`: of delta, of z twice, and of 1 / s.
        along_z = dz * self._mean(delta * z) + z * self._mean(delta * dz)
        result: Tensor = self._centred(ddelta, z, s) - (along_z + ds * self._centred(delta, z, s)) / s
        return result

    def _of_scale(self, g: Tensor, of_gamma: Tensor, of_beta: Tensor) -> None:
        gamma, beta = self._scale(g)
        torch.sum(of_gamma, (2, 3, 4), keepdim=True, out=gamma)
        torch.sum(of_beta, (2, 3, 4), keepdim=True, out=beta)


def _padded(x: Tensor, padding: tuple[int, int], value: float = 0.0) -> Tensor:
    high, wide = padding
    return F.pad(x, (wide, wide, high, high), value=value) if high or wide else x


def _cropped(x: Tensor, padding: tuple[int, int]) -> Tensor:
    high, wide = padding
    return x[:, :, :, high : x.shape[3] - high, wide : x.shape[4] - wide].contiguous() if high or wide else x


@dataclass
class ChainStep:
    """One inner step of all networks, gone through forward and back, from which the second derivatives start."""

    layers: Sequence[Layer]
    weights: Tensor
    targets: Tensor
    kept: Sequence[Any]
    deltas: Sequence[Tensor]
    log_p: Tensor
    gradient: Sequence[Tensor]

    def pull(self, v: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Gradient of <gradient, v> with respect to weights, first inputs and soft labels (both summed over nets)."""
        [along] = v
        value: Any = None
        tangents = []
        for layer, kept in zip(self.layers, self.kept, strict=True):
            value, tangent = layer.tangent(self.weights, along, kept, value)
            tangents.append(tangent)
        # d log p = dz - <p, dz>, and of delta = (p sum(y) - y) / n the derivative is p d(log p) sum(y) / n.
        n, p = len(self.targets), self.log_p.exp()
        dlog_p = value - (p * value).sum(2, keepdim=True)
        ddelta = p * dlog_p * self.targets.sum(1, keepdim=True) / n
        h = torch.empty_like(self.weights)
        parts = zip(self.layers, self.kept, tangents, self.deltas, strict=True)
        for layer, kept, tangent, delta in reversed(list(parts)):
            ddelta = layer.tangent_backward(self.weights, along, kept, tangent, delta, ddelta, h)
        return [h], ddelta, (-dlog_p / n).sum(0)


class Chain:
    """The layers of a network, those before the first weights apart: they see the same images always."""

    def __init__(self, before: Sequence[_Linear], layers: Sequence[Layer], names: Sequence[str]) -> None:
        self.before, self.layers, self.names = before, layers, names

    @classmethod
    def of(cls, network: nn.Module, inputs: Tensor) -> "Chain | None":
        """The chain that `network` is on `inputs` `[steps, n, *sample]`, or None: then it is not of this kind."""
        if type(network) is not nn.Sequential:
            return None
        # Not named_children, which leaves out a layer that stands there twice.
        modules = [(name, module) for name, module in network._modules.items() if module is not None]
        if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for _, m in [("", network), *modules]):
            return None
        return _Builder(inputs).build(modules)

    def first_inputs(self, inputs: Tensor) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Tensor]]:
        """What the first weights see of each batch of `inputs` `[steps, n, *sample]`, and the way back of gradients."""
        results, ways = [], []
        for batch in inputs:
            value = (batch.transpose(0, 1).contiguous() if batch.dim() == 4 else batch)[None]
            way: list[Any] = []
            for layer in self.before:
                value, kept = layer.forward(value, value)
                way.append(kept)
            results.append(value)
            ways.append(way)

        def back(gradients: Sequence[Tensor]) -> Tensor:
            found = []
            for delta, way in zip(gradients, ways, strict=True):
                for layer, kept in reversed(list(zip(self.before, way, strict=True))):
                    delta = layer.back(kept, delta)
                found.append(delta[0].transpose(0, 1) if inputs.dim() == 5 else delta[0])
            return torch.stack(found)

        return results, back

    def step(self, w: Tensor, first: Tensor, labels: Tensor) -> ChainStep:
        """The gradient of the mean cross-entropy of every network, `[nets, parameters]`, and what follows from it."""
        value, kept = first, []
        for layer in self.layers:
            value, its = layer.forward(w, value)
            kept.append(its)
        log_p = value.log_softmax(2)
        targets = labels if labels.is_floating_point() else F.one_hot(labels, value.shape[2]).to(value.dtype)
        delta = (log_p.exp() * targets.sum(1, keepdim=True) - targets) / len(targets)
        g, deltas = torch.empty_like(w), []
        for layer, its in reversed(list(zip(self.layers, kept, strict=True))):
            deltas.append(delta)
            delta = layer.backward(w, its, delta, g)
        return ChainStep(self.layers, w, targets, kept, deltas[::-1], log_p, [g])


class _Builder:
    """Layers from modules, following the shape of one batch through them."""

    def __init__(self, inputs: Tensor) -> None:
        self.count = inputs.shape[0] * inputs.shape[1]
        self.shape = tuple(inputs.shape[2:])
        self.before: list[_Linear] = []
        self.layers: list[Layer] = []
        self.names: list[str] = []
        self.offset = 0

    def build(self, modules: Sequence[tuple[str, nn.Module]]) -> Chain | None:
        """The chain, or None where a module is of another kind or stands where it cannot."""
        if len({id(module) for _, module in modules}) < len(modules):
            return None
        modules = list(modules)
        for i, ((_, one), (_, two)) in enumerate(itertools.pairwise(modules)):
            # The maximum of what is positive: pooling first leaves less to do, and the same values and gradients.
            if type(one) is nn.ReLU and type(two) is nn.MaxPool2d:
                modules[i], modules[i + 1] = modules[i + 1], modules[i]
        if not all(self._add(name, module) for name, module in modules) or len(self.shape) != 1:
            return None
        return Chain(self.before, self.layers, self.names) if self.layers else None

    def _add(self, name: str, module: Any) -> bool:
        kind = type(module)
        if kind in (nn.Identity, nn.Dropout):  # off in an inner step
            return True
        if kind is nn.Linear:
            return self._linear(name, module)
        if kind is nn.Flatten:
            return self._flatten(module)
        if kind is nn.ReLU:
            return self._put(_ReLU(), self.shape)
        if len(self.shape) != 3:
            return False
        if kind is nn.Conv2d:
            return self._convolution(name, module)
        if kind is nn.LocalResponseNorm:
            norm = _ResponseNorm(module.size, module.alpha, module.beta, module.k)
            return bool(module.size <= self.shape[0]) and self._put(norm, self.shape)
        if kind is nn.GroupNorm:
            start, _ = self._weights(name, module) if module.affine else (None, None)
            return self._put(_GroupNorm(start, module.num_channels, module.num_groups, module.eps), self.shape)
        if kind is nn.MaxPool2d and pair(module.dilation) == (1, 1) and not module.return_indices:
            return self._pool(_MaxPool, module)
        if kind is nn.AvgPool2d and module.count_include_pad and module.divisor_override is None:
            return self._pool(_AveragePool, module)
        return False

    def _put(self, layer: Any, shape: tuple[int, ...]) -> bool:
        """Add a layer that gives `shape`; before the first weights it must be linear whatever the images."""
        self.shape = shape
        if self.layers:
            self.layers.append(layer)
        elif isinstance(layer, _Flatten | _Columns | _AveragePool):
            self.before.append(layer)
        else:
            return False
        return True

    def _linear(self, name: str, module: Any) -> bool:
        if len(self.shape) != 1 or self.shape[0] != module.in_features:
            return False
        start, bias = self._weights(name, module)
        self.layers.append(_Dense(start, module.out_features, module.in_features, bias, not self.layers))
        self.shape = (module.out_features,)
        return True

    def _weights(self, name: str, module: Any) -> tuple[int, int | None]:
        """Where the module's weight and bias start in the flat weights."""
        start = self.offset
        self.names.append(f"{name}.weight")
        self.offset += module.weight.numel()
        if module.bias is None:
            return start, None
        self.names.append(f"{name}.bias")
        self.offset += module.bias.numel()
        return start, self.offset - module.bias.numel()

    def _flatten(self, module: Any) -> bool:
        if module.start_dim != 1 or module.end_dim != -1:
            return False
        return len(self.shape) == 1 or (len(self.shape) == 3 and self._put(_Flatten(), (math.prod(self.shape),)))

    def _pool(self, kind: Any, module: Any) -> bool:
        size, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
        if module.ceil_mode:
            return False
        return self._put(kind(size, stride, padding), (self.shape[0], *self._places(size, stride, padding)))

    def _places(self, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int]:
        high, wide = (
            (length + 2 * p - k) // s + 1 for length, k, s, p in zip(self.shape[1:], size, stride, padding, strict=True)
        )
        return high, wide

    def _convolution(self, name: str, module: Any) -> bool:
        plain = module.groups == 1 and pair(module.dilation) == (1, 1) and module.padding_mode == "zeros"
        if not plain or isinstance(module.padding, str) or self.shape[0] != module.in_channels:
            return False
        size, stride, padding = module.kernel_size, module.stride, module.padding
        high, wide = self._places(size, stride, padding)
        rows, columns = module.out_channels, module.in_channels * math.prod(size)
        if not self.layers and columns * high * wide * self.count > MOST_COLUMNS:
            return False
        first = not self.layers
        if first or rows <= FEW_CHANNELS:
            self._put(_Columns(size, stride, padding), self.shape)
            start, bias = self._weights(name, module)
            self.layers.append(_Product(start, rows, columns, bias, first))
            self.layers.append(_Image(high, wide))
        else:
            start, bias = self._weights(name, module)
            self.layers.append(_Convolution(start, (rows, module.in_channels, *size), bias, stride, padding))
        self.shape = (rows, high, wide)
        return True
