"""Networks in the usual order of layers, for the references of the benchmarks."""

import itertools
from collections import OrderedDict

from torch import nn


def as_usual(module: nn.Module) -> nn.Module:
    """Return the same layers, weights and names in the usual order: ReLU, then max-pooling."""
    assert isinstance(module, nn.Sequential)
    layers = list(module._modules.items())
    for i, ((_, module), (_, following)) in enumerate(itertools.pairwise(layers)):
        if isinstance(module, nn.MaxPool2d) and isinstance(following, nn.ReLU):
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    return nn.Sequential(OrderedDict(layers))
