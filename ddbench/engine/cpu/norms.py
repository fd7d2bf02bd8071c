"""Normalising layers of a chain: local response normalisation, and group (so instance and layer) normalisation."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddbench.engine.cpu.operators import channel_sum, denominator


@dataclass(frozen=True)
class ResponseNorm:
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

    def backward(self, w: Tensor, residuals: Any, delta: Tensor, grad_w: Tensor) -> Tensor:
        # dL/dx = delta p - 2 s beta x S'(u), u = delta x p / d
        x, d, p = residuals
        spread = self._sum(delta * x * p / d, adjoint=True)
        grad_x: Tensor = delta * p - (2 * self.alpha / self.size * self.beta) * x * spread
        return grad_x

    def tangent(self, w: Tensor, v: Tensor, residuals: Any, dx: Tensor) -> tuple[Tensor, Any]:
        # dd = 2 s S(x dx), dp = -beta p dd / d
        x, d, p = residuals
        dd = self._sum(x * dx) * (2 * self.alpha / self.size)
        dp = -self.beta * p * dd / d
        return dx * p + x * dp, (dx, dd, dp)

    def tangent_backward(
        self, w: Tensor, v: Tensor, residuals: Any, tangent_residuals: Any, delta: Tensor, ddelta: Tensor, hvp: Tensor
    ) -> Tensor:
        # The derivative of `backward`: of u, du = (ddelta x p + delta dx p + delta x (dp - p dd / d)) / d.
        x, d, p = residuals
        dx, dd, dp = tangent_residuals
        spread = self._sum(delta * x * p / d, adjoint=True)
        du = ((ddelta * x + delta * dx) * p + delta * x * (dp - p * dd / d)) / d
        spread = dx * spread + x * self._sum(du, adjoint=True)
        grad_x: Tensor = ddelta * p + delta * dp - (2 * self.alpha / self.size * self.beta) * spread
        return grad_x


@dataclass(frozen=True)
class GroupNorm:
    """y = gamma z + beta, z = (x - m) / s, with mean m and deviation s of each example over each group of channels."""

    start: int | None
    channels: int
    groups: int
    eps: float

    def _scale(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma and beta, which are adjacent in the flat weights."""
        assert self.start is not None
        pair = flat[:, self.start : self.start + 2 * self.channels].view(-1, 2, self.channels, 1, 1, 1)
        return pair[:, 0], pair[:, 1]

    def _mean(self, x: Tensor) -> Tensor:
        """Return the mean over each group, in a shape that broadcasts with x."""
        grouped = x.view(x.shape[0], self.groups, -1, *x.shape[2:]).mean((2, 4, 5), keepdim=True)
        return grouped.expand(-1, -1, self.channels // self.groups, -1, -1, -1).flatten(1, 2)

    def _centred(self, x: Tensor, z: Tensor, r: Tensor, xz: Tensor | None = None) -> Tensor:
        """Return (x - mean(x) - z mean(x z)) r with r = 1 / s: the derivative of z along x, a self-adjoint map.

        `xz` is mean(x z) where it is known. Large tensors are few, and each operation has one small operand at most:
        those are the fast ones.
        """
        xz = self._mean(x * z) if xz is None else xz
        return (x * r).addcmul_(z, xz * r, value=-1).sub_(self._mean(x) * r)

    def forward(self, w: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        z = x - self._mean(x)
        r = (self._mean(z * z) + self.eps).rsqrt()
        z.mul_(r)
        if self.start is None:
            return z, (z, r)
        gamma, beta = self._scale(w)
        return (z * gamma).add_(beta), (z, r)

    def backward(self, w: Tensor, residuals: Any, delta: Tensor, grad_w: Tensor) -> Tensor:
        z, r = residuals
        if self.start is not None:
            self._write_scale(grad_w, delta * z, delta)
            delta = delta * self._scale(w)[0]
        return self._centred(delta, z, r)

    def tangent(self, w: Tensor, v: Tensor, residuals: Any, dx: Tensor) -> tuple[Tensor, Any]:
        # ds = mean(dx z), the derivative of s.
        z, r = residuals
        ds = self._mean(dx * z)
        dz = self._centred(dx, z, r, ds)
        if self.start is None:
            return dz, (dz, ds)
        (gamma, _), (dgamma, dbeta) = self._scale(w), self._scale(v)
        return (z * dgamma).add_(dbeta).addcmul_(dz, gamma), (dz, ds)

    def tangent_backward(
        self, w: Tensor, v: Tensor, residuals: Any, tangent_residuals: Any, delta: Tensor, ddelta: Tensor, hvp: Tensor
    ) -> Tensor:
        (z, r), (dz, ds) = residuals, tangent_residuals
        if self.start is not None:
            self._write_scale(hvp, (ddelta * z).addcmul_(delta, dz), ddelta)
            gamma, dgamma = self._scale(w)[0], self._scale(v)[0]
            ddelta = (ddelta * gamma).addcmul_(delta, dgamma)
            delta = delta * gamma
        # The derivative of `_centred(delta)`: of delta, of z twice, and of r, where dr = -ds r^2.
        delta_z = self._mean(delta * z)
        grad_x = self._centred(ddelta, z, r).addcmul_(dz, delta_z * r, value=-1)
        grad_x.addcmul_(z, self._mean(delta * dz) * r, value=-1)
        return grad_x.addcmul_(self._centred(delta, z, r, delta_z), ds * r, value=-1)

    def _write_scale(self, flat: Tensor, grad_gamma: Tensor, grad_beta: Tensor) -> None:
        gamma, beta = self._scale(flat)
        torch.sum(grad_gamma, (2, 3, 4), keepdim=True, out=gamma)
        torch.sum(grad_beta, (2, 3, 4), keepdim=True, out=beta)
