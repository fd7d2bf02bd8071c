"""Pooling and local response normalisation on the CPU: equal to torch's, and faster.

On a CPU torch takes planar pooling one scalar at a time and response normalisation by way of 3-d average pooling; in
the networks of this field they can cost as much as the convolutions. `FastOperators()` replaces them inside a
`with` block, whatever network is called; a call of a kind that is not covered goes to torch's own operator.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MANY_VALUES = 2**17
"""Values from which on pooling by whole windows is faster than torch's."""


class _WindowMaximum(torch.autograd.Function):
    """The maximum over windows of `size` at distance `stride` along one dimension; of equals, the first.

    Along rows and then along columns that is max-pooling, and among equals the first in torch's order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, stride: int) -> Tensor:
        parts = windows(x, dim, size, stride)
        best, choice = parts[0], []
        for part in parts[1:]:
            # Not `part > best` alone: NaN must win, as it does in torch.
            choice.append(torch.gt(part, best))
            best = torch.maximum(best, part)
        ctx.save_for_backward(*choice)
        ctx.of = (x.shape, dim, size, stride)
        return best

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Scatter.apply(grad, ctx.of, *ctx.saved_tensors), None, None, None


class _Scatter(torch.autograd.Function):
    """The adjoint of picking: each value goes to the place its window's maximum came from."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, of: Any, *choice: Tensor) -> Tensor:
        ctx.save_for_backward(*choice)
        ctx.of = of
        shape, dim, size, stride = of
        whole = stride == size and shape[dim] % size == 0
        out = grad.new_empty(shape) if whole else grad.new_zeros(shape)
        places = windows(out, dim, size, stride)
        left = grad
        for place, later in zip(reversed(places[1:]), reversed(choice), strict=True):
            taken = left * later
            left = left - taken
            place.copy_(taken) if whole else place.add_(taken)
        places[0].copy_(left) if whole else places[0].add_(left)
        return out

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        return _Pick.apply(v, ctx.of, *ctx.saved_tensors), None, *[None] * len(ctx.saved_tensors)


class _Pick(torch.autograd.Function):
    """From each window, what stands where its maximum came from."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, of: Any, *choice: Tensor) -> Tensor:
        ctx.save_for_backward(*choice)
        ctx.of = of
        first, *others = windows(v, *of[1:])
        for part, later in zip(others, choice, strict=True):
            first = torch.where(later, part, first)
        return first

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Scatter.apply(grad, ctx.of, *ctx.saved_tensors), None, *[None] * len(ctx.saved_tensors)


def windows(x: Tensor, dim: int, size: int, stride: int) -> list[Tensor]:
    """The i-th element of every window along `dim`, for i = 0 .. size - 1, as views."""
    count = (x.shape[dim] - size) // stride + 1
    index: list[Any] = [slice(None)] * x.dim()
    views = []
    for i in range(size):
        index[dim] = slice(i, i + stride * (count - 1) + 1, stride)
        views.append(x[tuple(index)])
    return views


class _Average(torch.autograd.Function):
    """`average`, twice differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.size = size
        return average(x, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Spread.apply(grad, ctx.size), None


class _Spread(torch.autograd.Function):
    """`spread`, twice differentiable."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.size = size
        return spread(grad, size)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        return _Average.apply(v, ctx.size), None


def covered(shape: torch.Size, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    """Whether windows of `size` (rows, columns) lie side by side and cover planes of `shape` exactly."""
    return size == stride and padding == (0, 0) and not shape[-2] % size[0] and not shape[-1] % size[1]


def average(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean over windows of `size` (rows, columns) that cover the planes of `x`."""
    high, wide = size
    # Down the columns first: whole rows are added, and half of the values or fewer are left to pick from.
    total = sum_of(windows(x, x.dim() - 2, high, high))
    return sum_of(windows(total, x.dim() - 1, wide, wide)).mul_(1 / (high * wide))


def spread(grad: Tensor, size: tuple[int, int]) -> Tensor:
    """The adjoint of `average`: each value's share goes to all places of its window."""
    high, wide = size
    share = grad * (1 / (high * wide))
    for dim, count in ((grad.dim() - 1, wide), (grad.dim() - 2, high)):
        shape = list(share.shape)
        shape[dim] *= count
        out = grad.new_empty(shape)
        for place in windows(out, dim, count, count):
            place.copy_(share)
        share = out
    return share


def sum_of(parts: list[Tensor]) -> Tensor:
    """Their sum, in a tensor of its own."""
    if len(parts) == 1:
        return parts[0].clone()
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total


class _ResponseNorm(torch.autograd.Function):
    """y = x d^-beta with d = k + (alpha / size) S(x^2), where S sums a window of `size` channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.options = (size, alpha, beta, k)
        return x * denominator(x, *ctx.options)[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # dL/dx = g d^-beta - 2 (alpha / size) beta x S'(g x d^(-beta-1)), with S' the adjoint of S.
        [x] = ctx.saved_tensors
        size, alpha, beta, _ = ctx.options
        d, power = denominator(x, *ctx.options)
        of_power = grad * power
        spread = channel_sum(of_power * x / d, size, adjoint=True)
        return of_power - (2 * alpha * beta / size) * x * spread, None, None, None, None


def denominator(x: Tensor, size: int, alpha: float, beta: float, k: float) -> tuple[Tensor, Tensor]:
    """d and d^-beta; the usual beta of 3/4 needs no logarithm."""
    d = channel_sum(x * x, size) * (alpha / size) + k
    root = torch.rsqrt(d) if beta == 0.75 else None
    return d, d.pow(-beta) if root is None else root * root.sqrt()


def channel_sum(x: Tensor, size: int, *, adjoint: bool = False) -> Tensor:
    """Sum over a window of `size` channels, `size // 2` of them below the middle (above it for the adjoint)."""
    before, after = size // 2, (size - 1) // 2
    if adjoint:
        before, after = after, before
    channels = x.shape[1]
    if torch.is_grad_enabled() and x.requires_grad:
        padded = F.pad(x, (*[0, 0] * (x.dim() - 2), before, after))
        return torch.stack([padded[:, i : i + channels] for i in range(size)]).sum(0)
    total = x.clone()
    for shift in range(1, before + 1):
        total[:, shift:] += x[:, :-shift]
    for shift in range(1, after + 1):
        total[:, :-shift] += x[:, shift:]
    return total


def pair(value: Any) -> tuple[int, int]:
    """A size, stride or padding as (rows, columns)."""
    return (value, value) if isinstance(value, int) else tuple(value)


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    (high, wide), strides, (pad_h, pad_w) = pair(kernel_size), pair(stride or kernel_size), pair(padding)
    if input.dim() != 4 or input.numel() < MANY_VALUES or pair(dilation) != (1, 1) or ceil_mode or return_indices:
        return None
    if pad_h or pad_w:
        input = F.pad(input, (pad_w, pad_w, pad_h, pad_h), value=-torch.inf)
    rows: Tensor = _WindowMaximum.apply(input, 3, wide, strides[1])
    result: Tensor = _WindowMaximum.apply(rows, 2, high, strides[0])
    return result


def _avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor | None:
    size = pair(kernel_size)
    if input.dim() != 4 or input.numel() < MANY_VALUES or divisor_override:
        return None
    if not covered(input.shape, size, pair(stride or kernel_size), pair(padding)):
        return None
    result: Tensor = _Average.apply(input, size)
    return result


def _local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor | None:
    if input.dim() != 4 or size > input.shape[1]:
        return None
    result: Tensor = _ResponseNorm.apply(input, size, alpha, beta, k)
    return result


_REPLACED: Mapping[Any, Callable[..., Tensor | None]] = {
    F.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
    F.local_response_norm: _local_response_norm,
}


class FastOperators(TorchFunctionMode):
    """Replace the operators of this module inside a `with` block."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        replacement = _REPLACED.get(func)
        if replacement is not None and args and args[0].device.type == "cpu":
            result = replacement(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)
