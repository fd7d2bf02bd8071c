"""Pooling and local response normalisation on the CPU: equal to torch's, and faster.

On a CPU torch computes planar pooling one scalar at a time and response normalisation by way of 3-d average pooling.
In the networks of this field they can cost as much as the convolutions. `fast_operators()` replaces them inside a
`with` block, whatever network is called; a call of a kind that is not supported goes to torch's own operator.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MANY_VALUES = 2**17
"""Minimum number of values for pooling by whole windows; torch is faster below."""


class _WindowMaximum(torch.autograd.Function):
    """The maximum over windows of `size` at distance `stride` along one dimension; of ties, the first.

    Along rows and then along columns that is max-pooling with torch's order of ties.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, stride: int) -> Tensor:
        parts = offsets(x, dim, size, stride)
        best, choice = parts[0], []
        for part in parts[1:]:
            # Not `part > best` alone: NaN must win, as it does in torch.
            choice.append(torch.gt(part, best))
            best = torch.maximum(best, part)
        ctx.save_for_backward(*choice)
        ctx.geometry = (x.shape, dim, size, stride)
        return best

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Scatter.apply(grad, ctx.geometry, *ctx.saved_tensors), None, None, None


class _Scatter(torch.autograd.Function):
    """The adjoint of `_Pick`: each value goes to the position of its window's maximum."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, geometry: Any, *choice: Tensor) -> Tensor:
        ctx.save_for_backward(*choice)
        ctx.geometry = geometry
        shape, dim, size, stride = geometry
        whole = stride == size and shape[dim] % size == 0
        out = grad.new_empty(shape) if whole else grad.new_zeros(shape)
        views = offsets(out, dim, size, stride)
        rest = grad
        for view, later in zip(reversed(views[1:]), reversed(choice), strict=True):
            share = rest * later
            rest = rest - share
            view.copy_(share) if whole else view.add_(share)
        views[0].copy_(rest) if whole else views[0].add_(rest)
        return out

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        return _Pick.apply(v, ctx.geometry, *ctx.saved_tensors), None, *[None] * len(ctx.saved_tensors)


class _Pick(torch.autograd.Function):
    """From each window, the value at the position of its maximum."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, geometry: Any, *choice: Tensor) -> Tensor:
        ctx.save_for_backward(*choice)
        ctx.geometry = geometry
        first, *others = offsets(v, *geometry[1:])
        for part, later in zip(others, choice, strict=True):
            first = torch.where(later, part, first)
        return first

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Scatter.apply(grad, ctx.geometry, *ctx.saved_tensors), None, *[None] * len(ctx.saved_tensors)


def offsets(x: Tensor, dim: int, size: int, stride: int) -> list[Tensor]:
    """Return, for i = 0 .. size - 1, the i-th element of every window along `dim`, as views."""
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


def tiles(shape: torch.Size, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    """Return True where windows of `size` (rows, columns) lie side by side and cover planes of `shape` exactly."""
    return size == stride and padding == (0, 0) and not shape[-2] % size[0] and not shape[-1] % size[1]


def average(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mean over windows of `size` (rows, columns) that cover the planes of `x`."""
    height, width = size
    # Down the columns first: whole rows are added, and half of the values or fewer are left to pick from.
    total = add_up(offsets(x, x.dim() - 2, height, height))
    return add_up(offsets(total, x.dim() - 1, width, width)).mul_(1 / (height * width))


def spread(grad: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the adjoint of `average`: an equal share of each value at all positions of its window."""
    height, width = size
    share = grad * (1 / (height * width))
    for dim, count in ((grad.dim() - 1, width), (grad.dim() - 2, height)):
        shape = list(share.shape)
        shape[dim] *= count
        out = grad.new_empty(shape)
        for view in offsets(out, dim, count, count):
            view.copy_(share)
        share = out
    return share


def add_up(parts: list[Tensor]) -> Tensor:
    """Return the sum of `parts` as a new tensor."""
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
        scaled = grad * power
        spread = channel_sum(scaled * x / d, size, adjoint=True)
        return scaled - (2 * alpha * beta / size) * x * spread, None, None, None, None


def denominator(x: Tensor, size: int, alpha: float, beta: float, k: float) -> tuple[Tensor, Tensor]:
    """Return d and d^-beta; the usual beta of 3/4 needs no logarithm."""
    d = channel_sum(x * x, size) * (alpha / size) + k
    root = torch.rsqrt(d) if beta == 0.75 else None
    return d, d.pow(-beta) if root is None else root * root.sqrt()


def channel_sum(x: Tensor, size: int, *, adjoint: bool = False) -> Tensor:
    """Return sums over windows of `size` channels, `size // 2` below the middle one (above it for the adjoint)."""
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
    """Return a size, stride or padding as (rows, columns)."""
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
    (height, width), strides, (pad_h, pad_w) = pair(kernel_size), pair(stride or kernel_size), pair(padding)
    if input.dim() != 4 or input.numel() < MANY_VALUES or pair(dilation) != (1, 1) or ceil_mode or return_indices:
        return None
    if pad_h or pad_w:
        input = F.pad(input, (pad_w, pad_w, pad_h, pad_h), value=-torch.inf)
    rows: Tensor = _WindowMaximum.apply(input, 3, width, strides[1])
    result: Tensor = _WindowMaximum.apply(rows, 2, height, strides[0])
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
    if not tiles(input.shape, size, pair(stride or kernel_size), pair(padding)):
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


def fast_operators() -> AbstractContextManager[object]:
    """Return a context in which networks on the CPU use the operators of this module, in this thread."""
    return _FastOperators()


class _FastOperators(TorchFunctionMode):
    """A mode that sends calls of torch's operators to those of this module."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        replacement = _REPLACED.get(func)
        if replacement is not None and args and args[0].device.type == "cpu":
            result = replacement(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)
