"""Kernels of infinitely wide networks in closed form, and regression with them."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ddbench.errors import DdbenchError

WEIGHT_STD, BIAS_STD = math.sqrt(2), 0.1


def relu_ntk(
    rows: Float[Tensor, "n features"], columns: Float[Tensor, "m features"] | None = None, depth: int = 1
) -> Float[Tensor, "n m"]:
    """Return the neural tangent kernel of a fully connected ReLU network with `depth` hidden layers.

    `columns` are the second arguments; without them those are `rows` too, and the diagonal is exact, also for
    derivatives. Where other arguments are equal, the angle counts as constant: it has no derivative there.
    NTK parameterisation, weights of deviation sqrt 2, biases of deviation .1 (Jacot et al. 2018, arXiv 1806.07572;
    arc-cosine kernels of Cho and Saul 2009, eq. 7). With sw = sqrt 2, sb = .1 and d features:

        S = Theta = sw^2 <a, b> / d + sb^2
        cos t = S(a, b) / sqrt(S(a, a) S(b, b))
        S <- sw^2 sqrt(S(a, a) S(b, b)) (sin t + (pi - t) cos t) / (2 pi) + sb^2
        Theta <- S + sw^2 Theta (pi - t) / (2 pi)
    """
    symmetric, variance, bias = columns is None, WEIGHT_STD**2, BIAS_STD**2
    columns = rows if columns is None else columns
    features = rows.shape[1]
    sigma = variance * rows @ columns.T / features + bias
    theta = sigma
    left, right = (variance * part.square().sum(1) / features + bias for part in (rows, columns))
    same = torch.eye(len(rows), dtype=torch.bool, device=rows.device) if symmetric else None
    for _ in range(depth):
        scale = (left[:, None] * right).sqrt()
        cosine = (sigma / scale).clamp(-1, 1)
        # The angle is 0 there: that of a rounded cosine is off by 1e-8, and has an infinite derivative at 1.
        parallel = cosine >= 1 if same is None else same | (cosine >= 1)
        cosine = cosine.masked_fill(parallel, 0.0)
        angle = cosine.acos()
        slope = (math.pi - angle) / (2 * math.pi)
        height = scale * ((1 - cosine.square()).sqrt() / (2 * math.pi) + slope * cosine)
        slope, height = slope.masked_fill(parallel, 0.5), torch.where(parallel, sigma / 2, height)
        sigma = variance * height + bias
        theta = sigma + variance * theta * slope
        left, right = (variance * part / 2 + bias for part in (left, right))
    return theta


def ridge_coefficients(
    kernel: Float[Tensor, "n n"],
    targets: Float[Tensor, "n outputs"],
    ridge: float,
    weights: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "n outputs"]:
    """Return alpha = (K + ridge trace(K) / n I)^-1 y, so that K(x, rows) alpha predicts.

    `weights` of the examples, positive, divide their share of the ridge: the fit is the weighted least squares.
    Raises `DdbenchError` where the sum is not positive definite.
    """
    n = len(kernel)
    penalty = ridge * kernel.trace() / n * torch.ones(n, dtype=kernel.dtype, device=kernel.device)
    if weights is not None:
        penalty = penalty / weights
    factor, failed = torch.linalg.cholesky_ex(kernel + penalty.diag())
    if failed:
        raise DdbenchError(
            "the kernel of the examples cannot be inverted.",
            "Look for values that are very large, or not finite; a method that has a ridge may take a larger one.",
        )
    return torch.cholesky_solve(targets, factor)


def predictions(
    inputs: Float[Tensor, "n features"],
    rows: Float[Tensor, "m features"],
    coefficients: Float[Tensor, "m outputs"],
    depth: int = 1,
    block: int = 2_000_000,
) -> Float[Tensor, "n outputs"]:
    """Return K(inputs, rows) alpha in float64, in blocks of at most about `block` entries of the kernel."""
    ends = [*range(0, len(inputs), max(1, block // len(rows))), len(inputs)]
    parts = [relu_ntk(inputs[a:b].double(), rows, depth) @ coefficients for a, b in pairwise(ends)]
    return torch.cat(parts)
