"""The state of networks (weights and running statistics), their modes, and their answers on examples."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from ddbench.contract.examples import ExampleSet
from ddbench.contract.state import Params, State
from ddbench.contract.task import Objective

BATCH = 1000
"""Examples per forward pass when a network is measured."""


@contextmanager
def inner_mode(network: nn.Module) -> Iterator[None]:
    """Normalise by the statistics of the batch within a `with` block; dropout and stochastic depth are off.

    A training step is then a function of weights and batch alone and can be repeated.
    """
    with _restored_modes(network):
        for module in network.modules():
            module.training = isinstance(module, nn.modules.batchnorm._NormBase)
        yield


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put the network into evaluation mode within a `with` block."""
    with _restored_modes(network):
        network.eval()
        yield


@contextmanager
def _restored_modes(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def unstack(network: nn.Module, params: Params) -> Iterator[dict[str, Tensor]]:
    """Yield the parameters of each network, `{name: shape}`, from `{name: [nets, *shape]}`.

    Parameters of a single network, without the leading dimension, are yielded as they are.
    Raises `ValueError` where names or shapes are not those of `network`.
    """
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    if params.keys() != shapes.keys():
        raise ValueError(f"params name {sorted(params)}; the network has {sorted(shapes)}")
    if all(params[name].shape == shape for name, shape in shapes.items()):
        yield dict(params)
        return
    counts = {tensor.shape[0] for tensor in params.values()}
    if len(counts) != 1 or any(params[name].shape[1:] != shape for name, shape in shapes.items()):
        raise ValueError("params must have the network's shapes, or those with the same leading [nets] dimension")
    for index in range(counts.pop()):
        yield {name: tensor[index] for name, tensor in params.items()}


def forward(
    network: nn.Module, state: State, inputs: Float[Tensor, " n *sample"], batch: int = BATCH
) -> Float[Tensor, " n *outputs"]:
    """Return the network's outputs on `inputs` in evaluation mode, without a graph, `batch` examples at a time."""
    with torch.no_grad(), evaluation_mode(network):
        parts = [functional_call(network, (state.params, state.buffers), (x,)) for x in torch.split(inputs, batch)]
        return torch.cat(parts)


def measure(network: nn.Module, state: State, examples: ExampleSet, objective: Objective) -> dict[str, float]:
    """Return the objective's metrics of one network on `examples`, in evaluation mode."""
    logits = forward(network, state, examples.inputs, BATCH)
    with torch.no_grad():
        return objective.measure(logits, examples.labels)
