"""Networks as everybody writes them, for the references that benchmarks hold the harness against."""

import itertools
from collections import OrderedDict

from torch import nn


def as_usual(module: nn.Module) -> nn.Module:
    """The same layers, weights and names in the usual order: ReLU, then max-pooling."""
    assert isinstance(module, nn.Sequential)
    layers = list(module._modules.items())
    for i, ((_, one), (_, two)) in enumerate(itertools.pairwise(layers)):
        if isinstance(one, nn.MaxPool2d) and isinstance(two, nn.ReLU):
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    return nn.Sequential(OrderedDict(layers))
