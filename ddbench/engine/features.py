"""One differentiable pass of a network at given states: logits, features, and the gradient by every parameter."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from ddbench.contract.state import State
from ddbench.contract.task import Loss, cross_entropy
from ddbench.engine.networks import buffers_of, evaluation_mode, in_parts, inner_mode
from ddbench.errors import Unsupported
from ddbench.machine import passes


def logits(
    network: nn.Module, state: State, inputs: Float[Tensor, " n *sample"], *, batch_statistics: bool = True
) -> Float[Tensor, " n *outputs"]:
    """Return the network's outputs at `state`, differentiable by inputs and parameters; `state` itself stays as it is.

    With `batch_statistics` the pass is that of a training step: normalised by the statistics of the batch, dropout off
    (`inner_mode`). Without, it is that of evaluation, normalised by the running statistics.
    """
    return _call(network, network, state, inputs, batch_statistics)


def features(
    network: nn.Module, state: State, inputs: Float[Tensor, " n *sample"], *, batch_statistics: bool = True
) -> Float[Tensor, "n d"]:
    """Return the penultimate activations, flattened and differentiable: the input of the last linear layer called.

    A network with a method `features(inputs)` of its own is asked for them instead. `batch_statistics` as in `logits`.
    Raises `Unsupported` for a network whose outputs do not come out of a linear layer.
    """
    return _call(_Features(network), network, state, inputs, batch_statistics, "network.").flatten(1)


def gradient(
    network: nn.Module,
    state: State,
    inputs: Float[Tensor, " n *sample"],
    labels: Shaped[Tensor, " n *classes"],
    loss: Loss = cross_entropy,
    *,
    create_graph: bool = False,
    batch_statistics: bool = True,
) -> dict[str, Tensor]:
    """Return the gradient of `loss(logits, labels)` by every parameter, `{name: shape}`; zero for an unused one.

    With `create_graph` it is differentiable: by inputs and labels, and by parameters that require a gradient.
    `batch_statistics` as in `logits`.
    """
    leaves = {name: w if w.requires_grad else w.detach().requires_grad_() for name, w in state.params.items()}
    with torch.enable_grad():
        outputs = logits(network, State(leaves, state.buffers), inputs, batch_statistics=batch_statistics)
        grads = torch.autograd.grad(
            loss(outputs, labels),
            list(leaves.values()),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    return dict(zip(leaves, grads, strict=True))


class _Features(nn.Module):
    """A network whose forward pass returns its features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the network's own features, or else the input of the last linear layer that it calls."""
        if callable(getattr(type(self.network), "features", None)):
            method: Callable[[Tensor], Tensor] = self.network.features  # type: ignore[assignment]
            passes.add_for(self.network, inputs)
            return method(inputs)
        calls: list[tuple[nn.Linear, Tensor]] = []

        def remember(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, nn.Linear)
            calls.append((layer, arguments[0]))

        layers = [layer for layer in self.network.modules() if isinstance(layer, nn.Linear)]
        handles = [layer.register_forward_pre_hook(remember) for layer in layers]
        try:
            outputs = self.network(inputs)
        finally:
            for handle in handles:
                handle.remove()
        if not calls or calls[-1][0].out_features != outputs.shape[-1]:
            raise Unsupported(
                "the network has no last linear layer whose input could serve as features.",
                "Choose another --network, or give the network's class a method features(inputs).",
            )
        return calls[-1][1]


def _call(
    callee: nn.Module, network: nn.Module, state: State, inputs: Tensor, batch_statistics: bool, prefix: str = ""
) -> Tensor:
    """Return the outputs of `callee`, which is `network` or holds it under `prefix`, at `state`."""
    # A training step writes running statistics: they are copies.
    buffers = {name: buffer.clone() for name, buffer in buffers_of(network, state).items()}
    tensors = {f"{prefix}{name}": tensor for name, tensor in {**state.params, **buffers}.items()}
    with inner_mode(network) if batch_statistics else evaluation_mode(network):
        return in_parts(network, inputs, lambda part: functional_call(callee, tensors, (part,)))
