"""The chain: recognition of networks that are one, and an inner step of several of them with second derivatives."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from ddbench.engine.cpu.layers import AveragePool, Columns, Flatten, Image, Layer, MaxPool, PiecewiseLinear, ReLU
from ddbench.engine.cpu.norms import GroupNorm, ResponseNorm
from ddbench.engine.cpu.operators import pair
from ddbench.engine.cpu.weighted import Convolution, Dense, Product
from ddbench.machine import passes

FEW_CHANNELS = 32
"""Maximum number of output channels for a convolution as a product with columns; the library is faster beyond."""
MOST_COLUMNS = 2**26
"""Maximum number of values in the columns of all distilled examples; beyond it a network is left to autograd."""


@dataclass
class ChainStep:
    """One inner step of all networks: the gradient, and all that the second derivatives need."""

    layers: Sequence[Layer]
    weights: Tensor
    targets: Tensor
    residuals: Sequence[Any]
    deltas: Sequence[Tensor]
    log_p: Tensor
    gradient: Sequence[Tensor]

    def vjp(self, v: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the gradients of <gradient, v>: for weights, and, summed over nets, for first inputs and labels."""
        [direction] = v
        dy: Any = None
        tangents = []
        for layer, residuals in zip(self.layers, self.residuals, strict=True):
            dy, tangent = layer.tangent(self.weights, direction, residuals, dy)
            tangents.append(tangent)
        # d log p = dz - <p, dz>, and of delta = (p sum(y) - y) / n the derivative is p d(log p) sum(y) / n.
        n, p = len(self.targets), self.log_p.exp()
        dlog_p = dy - (p * dy).sum(2, keepdim=True)
        ddelta = p * dlog_p * self.targets.sum(1, keepdim=True) / n
        hvp = torch.empty_like(self.weights)
        parts = zip(self.layers, self.residuals, tangents, self.deltas, strict=True)
        for layer, residuals, tangent, delta in reversed(list(parts)):
            ddelta = layer.tangent_backward(self.weights, direction, residuals, tangent, delta, ddelta, hvp)
        return [hvp], ddelta, (-dlog_p / n).sum(0)


class Chain:
    """The layers of a network: a stem in front of the first weights, which sees the same images always, and the rest.

    `names` are the parameters in the order of the flat weights.
    """

    def __init__(self, stem: Sequence[PiecewiseLinear], layers: Sequence[Layer], names: Sequence[str]) -> None:
        self.stem, self.layers, self.names = stem, layers, names

    @classmethod
    def from_network(cls, network: nn.Module, inputs: Shaped[Tensor, "steps n *sample"]) -> "Chain | None":
        """Return `network` on such `inputs` as a chain, or None where it has a layer of another kind."""
        if type(network) is not nn.Sequential:
            return None
        # Not named_children, which leaves out a layer that stands there twice.
        modules = [(name, module) for name, module in network._modules.items() if module is not None]
        if any(_is_hooked(module) for module in (network, *(module for _, module in modules))):
            return None
        return _Builder(inputs).build(modules)

    def first_inputs(
        self, inputs: Float[Tensor, "steps n *sample"]
    ) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Tensor]]:
        """Return the stem's output for each batch, and the function from their gradients to that of `inputs`."""
        outputs, saved = [], []
        for batch in inputs:
            x = (batch.transpose(0, 1).contiguous() if batch.dim() == 4 else batch)[None]
            residuals: list[Any] = []
            for layer in self.stem:
                x, residual = layer.forward(x, x)
                residuals.append(residual)
            outputs.append(x)
            saved.append(residuals)

        def vjp(deltas: Sequence[Tensor]) -> Tensor:
            grad_inputs = []
            for delta, residuals in zip(deltas, saved, strict=True):
                for layer, residual in reversed(list(zip(self.stem, residuals, strict=True))):
                    delta = layer.vjp(residual, delta)
                grad_inputs.append(delta[0].transpose(0, 1) if inputs.dim() == 5 else delta[0])
            return torch.stack(grad_inputs)

        return outputs, vjp

    def step(
        self,
        w: Float[Tensor, "nets parameters"],
        first: Float[Tensor, " 1 *stem"],
        labels: Shaped[Tensor, " n *classes"],
    ) -> ChainStep:
        """Take the step of every network under mean cross-entropy on one batch, as the stem leaves it."""
        passes.add(labels, times=len(w))
        y, residuals = first, []
        for layer in self.layers:
            y, residual = layer.forward(w, y)
            residuals.append(residual)
        log_p = y.log_softmax(2)
        targets = labels if labels.is_floating_point() else F.one_hot(labels, y.shape[2]).to(y.dtype)
        delta = (log_p.exp() * targets.sum(1, keepdim=True) - targets) / len(targets)
        grad_w, deltas = torch.empty_like(w), []
        for layer, residual in reversed(list(zip(self.layers, residuals, strict=True))):
            deltas.append(delta)
            delta = layer.backward(w, residual, delta, grad_w)
        return ChainStep(self.layers, w, targets, residuals, deltas[::-1], log_p, [grad_w])


def _is_hooked(module: nn.Module) -> bool:
    """Return whether a call of the module does something else too; the count of passes is kept by the chain itself."""
    before = [hook for hook in module._forward_pre_hooks.values() if hook is not passes.count]
    return bool(before or module._forward_hooks or module._backward_hooks)


class _Builder:
    """A builder of layers from modules; it follows the shape of one batch through them."""

    def __init__(self, inputs: Tensor) -> None:
        self.count = inputs.shape[0] * inputs.shape[1]
        self.shape = tuple(inputs.shape[2:])
        self.stem: list[PiecewiseLinear] = []
        self.layers: list[Layer] = []
        self.names: list[str] = []
        self.offset = 0

    def build(self, modules: Sequence[tuple[str, nn.Module]]) -> Chain | None:
        """Return the chain, or None where a module is of another kind or in a place that is not supported."""
        if len({id(module) for _, module in modules}) < len(modules):
            return None
        modules = list(modules)
        for i, ((_, module), (_, following)) in enumerate(itertools.pairwise(modules)):
            # The two commute: pooling first gives the same values and gradients, and leaves less to do.
            if type(module) is nn.ReLU and type(following) is nn.MaxPool2d:
                modules[i], modules[i + 1] = modules[i + 1], modules[i]
        if not all(self._add(name, module) for name, module in modules) or len(self.shape) != 1:
            return None
        return Chain(self.stem, self.layers, self.names) if self.layers else None

    def _add(self, name: str, module: Any) -> bool:
        kind = type(module)
        if kind in (nn.Identity, nn.Dropout):  # off in an inner step
            return True
        if kind is nn.Linear:
            return self._linear(name, module)
        if kind is nn.Flatten:
            return self._flatten(module)
        if kind is nn.ReLU:
            return self._append(ReLU(), self.shape)
        if len(self.shape) != 3:
            return False
        if kind is nn.Conv2d:
            return self._convolution(name, module)
        if kind is nn.LocalResponseNorm:
            norm = ResponseNorm(module.size, module.alpha, module.beta, module.k)
            return bool(module.size <= self.shape[0]) and self._append(norm, self.shape)
        if kind is nn.GroupNorm:
            start, _ = self._weights(name, module) if module.affine else (None, None)
            return self._append(GroupNorm(start, module.num_channels, module.num_groups, module.eps), self.shape)
        if kind is nn.MaxPool2d and pair(module.dilation) == (1, 1) and not module.return_indices:
            return self._pool(MaxPool, module)
        if kind is nn.AvgPool2d and module.count_include_pad and module.divisor_override is None:
            return self._pool(AveragePool, module)
        return False

    def _append(self, layer: Any, shape: tuple[int, ...]) -> bool:
        """Append a layer with output `shape`; in the stem, only one whose derivative does not depend on the images."""
        self.shape = shape
        if self.layers:
            self.layers.append(layer)
        elif isinstance(layer, Flatten | Columns | AveragePool):
            self.stem.append(layer)
        else:
            return False
        return True

    def _linear(self, name: str, module: Any) -> bool:
        if len(self.shape) != 1 or self.shape[0] != module.in_features:
            return False
        start, bias = self._weights(name, module)
        self.layers.append(Dense(start, module.out_features, module.in_features, bias, not self.layers))
        self.shape = (module.out_features,)
        return True

    def _weights(self, name: str, module: Any) -> tuple[int, int | None]:
        """Return the offsets of the module's weight and bias in the flat weights."""
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
        return len(self.shape) == 1 or (len(self.shape) == 3 and self._append(Flatten(), (math.prod(self.shape),)))

    def _pool(self, kind: Any, module: Any) -> bool:
        size, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
        if module.ceil_mode:
            return False
        return self._append(kind(size, stride, padding), (self.shape[0], *self._output_size(size, stride, padding)))

    def _output_size(self, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of the output of windows."""
        height, width = (
            (length + 2 * p - k) // s + 1 for length, k, s, p in zip(self.shape[1:], size, stride, padding, strict=True)
        )
        return height, width

    def _convolution(self, name: str, module: Any) -> bool:
        plain = module.groups == 1 and pair(module.dilation) == (1, 1) and module.padding_mode == "zeros"
        if not plain or isinstance(module.padding, str) or self.shape[0] != module.in_channels:
            return False
        size, stride, padding = module.kernel_size, module.stride, module.padding
        height, width = self._output_size(size, stride, padding)
        rows, columns = module.out_channels, module.in_channels * math.prod(size)
        if not self.layers and columns * height * width * self.count > MOST_COLUMNS:
            return False
        first = not self.layers
        if first or rows <= FEW_CHANNELS:
            self._append(Columns(size, stride, padding), self.shape)
            start, bias = self._weights(name, module)
            self.layers.append(Product(start, rows, columns, bias, first))
            self.layers.append(Image(height, width))
        else:
            start, bias = self._weights(name, module)
            self.layers.append(Convolution(start, (rows, module.in_channels, *size), bias, stride, padding))
        self.shape = (rows, height, width)
        return True
