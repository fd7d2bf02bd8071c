"""Networks in the usual order of layers, and shapes of data, for the baselines of the benchmarks."""

import itertools
from collections import OrderedDict

from torch import nn

from ddbench import DatasetInfo


def as_usual(module: nn.Module) -> nn.Module:
    """Return the same layers, weights and names in the usual order: ReLU, then max-pooling."""
    assert isinstance(module, nn.Sequential)
    layers = list(module._modules.items())
    for i, ((_, module), (_, following)) in enumerate(itertools.pairwise(layers)):
        if isinstance(module, nn.MaxPool2d) and isinstance(following, nn.ReLU):
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    return nn.Sequential(OrderedDict(layers))


def info_of(network: str) -> DatasetInfo:
    """Return ten classes of MNIST's shape for LeNet, of CIFAR-10's for the others."""
    shape = (1, 28, 28) if network == "lenet" else (3, 32, 32)
    return DatasetInfo(
        "benchmark", tuple("0123456789"), shape, (0.0,) * shape[0], (1.0,) * shape[0], "image", "", False
    )
