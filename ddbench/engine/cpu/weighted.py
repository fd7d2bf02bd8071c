"""Layers of a chain with weights: linear layers, and convolutions as products with columns or by the library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Weighted:
    """A layer whose weight, a matrix `[rows, columns]`, and bias start at these offsets of the flat weights.

    The `first` layer of a chain has one x for all networks. Nobody needs its dL/dx, and the derivative of dL/dx along
    the direction is summed over the networks.
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
    """A linear layer y = x W' + b on `[nets, n, features]`."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        kernel, bias = self._weight(w).transpose(1, 2), self._bias(w)
        x = x.expand(len(w), -1, -1)
        return (torch.bmm(x, kernel) if bias is None else torch.baddbmm(bias[:, None], x, kernel)), x

    def backward(self, w: Tensor, residuals: Any, delta: Tensor, grad_w: Tensor) -> Tensor:
        torch.bmm(delta.transpose(1, 2), residuals, out=self._weight(grad_w))
        self._write_bias(grad_w, delta)
        return delta if self.first else torch.bmm(delta, self._weight(w))

    def tangent(self, w: Tensor, v: Tensor, residuals: Any, dx: Tensor | None) -> tuple[Tensor, Any]:
        dy = self.forward(v, residuals)[0]
        return dy if dx is None else dy.baddbmm_(dx, self._weight(w).transpose(1, 2)), dx

    def tangent_backward(
        self, w: Tensor, v: Tensor, residuals: Any, tangent_residuals: Any, delta: Tensor, ddelta: Tensor, hvp: Tensor
    ) -> Tensor:
        torch.bmm(ddelta.transpose(1, 2), residuals, out=self._weight(hvp))
        self._write_bias(hvp, ddelta)
        grad_x = torch.bmm(ddelta, self._weight(w)).baddbmm_(delta, self._weight(v))
        if self.first:
            return grad_x.sum(0, keepdim=True)
        self._weight(hvp).baddbmm_(delta.transpose(1, 2), tangent_residuals)
        return grad_x

    def _write_bias(self, flat: Tensor, delta: Tensor) -> None:
        bias = self._bias(flat)
        if bias is not None:
            torch.sum(delta, 1, out=bias)


@dataclass(frozen=True)
class Product(Weighted):
    """A convolution as a product y = W x + b with columns `[nets, features, places]`."""

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        weight, bias = self._weight(w), self._bias(w)
        if self.first:
            y = _rows_of_all(weight).mm(x[0]).view(-1, self.rows, x.shape[2])
            return (y if bias is None else y.add_(bias[:, :, None])), x
        return (torch.bmm(weight, x) if bias is None else torch.baddbmm(bias[:, :, None], weight, x)), x

    def backward(self, w: Tensor, residuals: Any, delta: Tensor, grad_w: Tensor) -> Tensor:
        self._write_weights(grad_w, delta, residuals)
        return delta if self.first else torch.bmm(self._weight(w).transpose(1, 2), delta)

    def tangent(self, w: Tensor, v: Tensor, residuals: Any, dx: Tensor | None) -> tuple[Tensor, Any]:
        dy = self.forward(v, residuals)[0]
        return dy if dx is None else dy.baddbmm_(self._weight(w), dx), dx

    def tangent_backward(
        self, w: Tensor, v: Tensor, residuals: Any, tangent_residuals: Any, delta: Tensor, ddelta: Tensor, hvp: Tensor
    ) -> Tensor:
        self._write_weights(hvp, ddelta, residuals)
        weight, direction = self._weight(w), self._weight(v)
        if self.first:
            grad_x = _rows_of_all(weight).T.mm(ddelta.flatten(0, 1))
            return grad_x.addmm_(_rows_of_all(direction).T, delta.flatten(0, 1))[None]
        self._weight(hvp).baddbmm_(delta, tangent_residuals.transpose(1, 2))
        return torch.bmm(weight.transpose(1, 2), ddelta).baddbmm_(direction.transpose(1, 2), delta)

    def _write_weights(self, flat: Tensor, delta: Tensor, x: Tensor) -> None:
        weight, bias = self._weight(flat), self._bias(flat)
        if self.first:
            weight.copy_(delta.flatten(0, 1).mm(x[0].T).view(weight.shape))
        else:
            torch.bmm(delta, x.transpose(1, 2), out=weight)
        if bias is not None:
            torch.sum(delta, 2, out=bias)


def _rows_of_all(weight: Tensor) -> Tensor:
    """Return the weights of all networks as one matrix `[nets * rows, columns]`."""
    return weight.reshape(-1, weight.shape[2])


@dataclass(frozen=True)
class Convolution:
    """A convolution of many channels: the library's operator, network by network."""

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
        return self._convolve(x, self._weight(w), self._bias(w)), x

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        biases: Sequence[Tensor | None] = [None] * len(x) if bias is None else list(bias)
        outputs = [
            F.conv2d(images.transpose(0, 1), kernel, bias, self.stride, self.padding).transpose(0, 1)
            for images, kernel, bias in zip(x, weight, biases, strict=True)
        ]
        return torch.stack(outputs)

    def _adjoint(self, delta: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> Any:
        """Return the gradients of one network's input and kernel, each only where `wanted` asks for it."""
        options = ([0], self.stride, self.padding, (1, 1), False, (0, 0), 1, (*wanted, False))
        return torch.ops.aten.convolution_backward(delta.transpose(0, 1), x.transpose(0, 1), weight, *options)

    def backward(self, w: Tensor, residuals: Any, delta: Tensor, grad_w: Tensor) -> Tensor:
        grad_x = []
        for net, (grad_y, x, weight) in enumerate(zip(delta, residuals, self._weight(w), strict=True)):
            grad_input, grad_kernel, _ = self._adjoint(grad_y, x, weight, (True, True))
            self._weight(grad_w)[net] = grad_kernel
            grad_x.append(grad_input.transpose(0, 1))
        self._write_bias(grad_w, delta)
        return torch.stack(grad_x)

    def tangent(self, w: Tensor, v: Tensor, residuals: Any, dx: Tensor) -> tuple[Tensor, Any]:
        # W dx + V x is one convolution of twice as many channels.
        kernels = torch.cat([self._weight(w), self._weight(v)], 2)
        return self._convolve(torch.cat([dx, residuals], 1), kernels, self._bias(v)), dx

    def tangent_backward(
        self, w: Tensor, v: Tensor, residuals: Any, tangent_residuals: Any, delta: Tensor, ddelta: Tensor, hvp: Tensor
    ) -> Tensor:
        grad_x = []
        for net in range(len(delta)):
            # Kernels: twice as many examples. Inputs: twice as many output channels.
            examples = torch.cat([ddelta[net], delta[net]], 1), torch.cat([residuals[net], tangent_residuals[net]], 1)
            kernel = self._weight(w)[net]
            self._weight(hvp)[net] = self._adjoint(*examples, kernel, (False, True))[1]
            channels = torch.cat([ddelta[net], delta[net]], 0)
            kernels = torch.cat([kernel, self._weight(v)[net]], 0)
            grad_x.append(self._adjoint(channels, residuals[net], kernels, (True, False))[0].transpose(0, 1))
        self._write_bias(hvp, ddelta)
        return torch.stack(grad_x)

    def _write_bias(self, flat: Tensor, delta: Tensor) -> None:
        bias = self._bias(flat)
        if bias is not None:
            torch.sum(delta, (2, 3, 4), out=bias)
