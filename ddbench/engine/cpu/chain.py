"""The chain itself: which networks are one, and an inner step of several of them with its second derivatives."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddbench.engine.cpu.layers import AroundInput, AveragePool, Columns, Flatten, Image, Layer, MaxPool, ReLU
from ddbench.engine.cpu.norms import GroupNorm, ResponseNorm
from ddbench.engine.cpu.operators import pair
from ddbench.engine.cpu.weighted import Convolution, Dense, Product

FEW_CHANNELS = 32
"""Output channels up to which a convolution is a product with columns rather than the library's convolution."""
MOST_COLUMNS = 2**26
"""Values in the columns of all distilled examples up to which they are taken at once."""


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

    def __init__(self, before: Sequence[AroundInput], layers: Sequence[Layer], names: Sequence[str]) -> None:
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
        self.before: list[AroundInput] = []
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
            return self._put(ReLU(), self.shape)
        if len(self.shape) != 3:
            return False
        if kind is nn.Conv2d:
            return self._convolution(name, module)
        if kind is nn.LocalResponseNorm:
            norm = ResponseNorm(module.size, module.alpha, module.beta, module.k)
            return bool(module.size <= self.shape[0]) and self._put(norm, self.shape)
        if kind is nn.GroupNorm:
            start, _ = self._weights(name, module) if module.affine else (None, None)
            return self._put(GroupNorm(start, module.num_channels, module.num_groups, module.eps), self.shape)
        if kind is nn.MaxPool2d and pair(module.dilation) == (1, 1) and not module.return_indices:
            return self._pool(MaxPool, module)
        if kind is nn.AvgPool2d and module.count_include_pad and module.divisor_override is None:
            return self._pool(AveragePool, module)
        return False

    def _put(self, layer: Any, shape: tuple[int, ...]) -> bool:
        """Add a layer that gives `shape`; before the first weights it must be linear whatever the images."""
        self.shape = shape
        if self.layers:
            self.layers.append(layer)
        elif isinstance(layer, Flatten | Columns | AveragePool):
            self.before.append(layer)
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
        return len(self.shape) == 1 or (len(self.shape) == 3 and self._put(Flatten(), (math.prod(self.shape),)))

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
            self._put(Columns(size, stride, padding), self.shape)
            start, bias = self._weights(name, module)
            self.layers.append(Product(start, rows, columns, bias, first))
            self.layers.append(Image(high, wide))
        else:
            start, bias = self._weights(name, module)
            self.layers.append(Convolution(start, (rows, module.in_channels, *size), bias, stride, padding))
        self.shape = (rows, high, wide)
        return True
