"""The state of networks (weights and running statistics), their modes, and their answers on examples."""

from collections.abc import Callable, Iterator, Sequence
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
MOST_BYTES = 2**29
"""Bytes of the largest activation, by estimate, up to which examples share a pass without a graph."""
PART_BYTES = 2**23
"""Bytes of the largest activation, by estimate, up to which examples share a pass on the CPU; more leave the cache."""


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


def cut(network: nn.Module, inputs: Float[Tensor, " n *sample"]) -> Sequence[Tensor]:
    """Return the batch in parts `[part, *sample]` whose activations stay in the cache of a CPU.

    On other devices it stays whole. A batch that batch normalisation takes statistics of is not cut.
    """
    whole = any(isinstance(m, nn.modules.batchnorm._NormBase) and m.training for m in network.modules())
    if whole or inputs.device.type not in ("cpu", "meta") or inputs.dim() < 4:
        return [inputs]
    return torch.split(inputs, max(1, PART_BYTES // _largest_activation(network, inputs)))


def _largest_activation(network: nn.Module, inputs: Float[Tensor, " n *sample"]) -> int:
    """Return an upper bound on the bytes of one example's largest activation, as if nothing were pooled."""
    channels = max((m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)), default=1)
    return channels * inputs.shape[2:].numel() * inputs.element_size()


def in_parts(
    network: nn.Module, inputs: Float[Tensor, " n *sample"], call: Callable[[Tensor], Tensor]
) -> Float[Tensor, " n *outputs"]:
    """Return `call(inputs)`, a pass of `network`, part by part (`cut`); gradients of the outputs are the same too."""
    parts = cut(network, inputs)
    return torch.cat([call(part) for part in parts]) if len(parts) > 1 else call(inputs)


def buffers_of(network: nn.Module, state: State) -> dict[str, Tensor]:
    """Return every buffer of one network: those of `state`, and the module's own where it has none."""
    return {name: state.buffers.get(name, own) for name, own in network.named_buffers()}


def unstack(network: nn.Module, start: State | Params) -> Iterator[State]:
    """Yield the state of each network, `{name: shape}`, from a stack `{name: [nets, *shape]}`.

    A single network, without the leading dimension, is yielded as it is. From parameters alone, and where buffers are
    missing, each network gets the module's own buffers; they are not copied.
    Raises `ValueError` where names or shapes are not those of `network`.
    """
    state = start if isinstance(start, State) else State(dict(start))
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    own = dict(network.named_buffers())
    params, buffers = state.params, state.buffers
    if params.keys() != shapes.keys():
        raise ValueError(f"params name {sorted(params)}; the network has {sorted(shapes)}")
    if not buffers.keys() <= own.keys():
        raise ValueError(f"buffers name {sorted(buffers)}; the network has {sorted(own)}")
    expected = [*shapes.values(), *(own[name].shape for name in buffers)]
    tensors = [*(params[name] for name in shapes), *buffers.values()]
    if all(tensor.shape == shape for tensor, shape in zip(tensors, expected, strict=True)):
        yield State(dict(params), buffers_of(network, state))
        return
    counts = {tensor.shape[:1] for tensor in tensors}
    if len(counts) != 1 or any(tensor.shape[1:] != shape for tensor, shape in zip(tensors, expected, strict=True)):
        raise ValueError("params must have the network's shapes, or those with the same leading [nets] dimension")
    for index in range(len(tensors[0])):
        single = state.network(index)
        yield State(single.params, buffers_of(network, single))


def forward(
    network: nn.Module, state: State, inputs: Float[Tensor, " n *sample"], batch: int = BATCH
) -> Float[Tensor, " n *outputs"]:
    """Return the network's outputs on `inputs` in evaluation mode, without a graph, `batch` examples at a time.

    Large images go through in smaller batches, so that an activation takes at most `MOST_BYTES`.
    """
    if inputs.dim() == 4:
        batch = max(1, min(batch, MOST_BYTES // _largest_activation(network, inputs)))
    with torch.no_grad(), evaluation_mode(network):
        tensors = (state.params, buffers_of(network, state))
        parts = [functional_call(network, tensors, (x,)) for x in torch.split(inputs, batch)]
        return torch.cat(parts)


def measure(network: nn.Module, state: State, examples: ExampleSet, objective: Objective) -> dict[str, float]:
    """Return the objective's metrics of one network on `examples`, in evaluation mode."""
    logits = forward(network, state, examples.inputs, BATCH)
    with torch.no_grad():
        return objective.measure(logits, examples.labels)
