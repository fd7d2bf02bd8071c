"""Layers of a chain that normalise: local response normalisation, and group (so instance and layer) normalisation."""

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
class GroupNorm:
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
