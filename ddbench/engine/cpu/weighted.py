"""Layers of a chain that have weights: linear layers, and convolutions as products with columns or by the library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Weighted:
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
class Dense(Weighted):
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
class Product(Weighted):
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
class Convolution:
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
