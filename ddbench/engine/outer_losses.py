"""Outer losses: numbers by which trained networks are judged, each with its gradient by the last weights."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from ddbench.contract.state import Params, State
from ddbench.contract.task import Loss
from ddbench.engine.cpu.operators import fast_operators
from ddbench.engine.networks import evaluation_mode

OUTER_VALUES = 100_000
"""Values of real examples per forward pass of the outer loss on the CPU: the graph of a pass stays in the cache."""


class OuterLoss(ABC):
    """A loss of a network after its last inner step."""

    @abstractmethod
    def check(self, starts: Sequence[State]) -> None:
        """Raise `ValueError`, before training, where networks that begin at `starts` cannot have this loss."""

    @abstractmethod
    def gradient(self, network: nn.Module, state: State, index: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss of network number `index` at its last `state`, and its gradient `a_T` by the parameters.

        On the CPU several networks are trained at a time, so this may be called from several threads at once.
        """


class _LossOn(OuterLoss):
    """A loss of the network's outputs on real examples."""

    def __init__(self, loss: Loss, inputs: Tensor, labels: Tensor) -> None:
        self.loss, self.inputs, self.labels = loss, inputs, labels

    def check(self, starts: Sequence[State]) -> None:
        if len(self.inputs) != len(self.labels) or not len(self.inputs):
            raise ValueError(f"{len(self.inputs)} real inputs have {len(self.labels)} labels")

    def gradient(self, network: nn.Module, state: State, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        leaves = {name: w.detach().requires_grad_() for name, w in state.params.items()}
        on_cpu = self.inputs.device.type == "cpu"
        size = max(8, OUTER_VALUES // self.inputs[0].numel()) if on_cpu else len(self.inputs)
        with torch.enable_grad(), evaluation_mode(network), fast_operators():
            parts = [functional_call(network, (leaves, state.buffers), (x,)) for x in torch.split(self.inputs, size)]
            loss = self.loss(torch.cat(parts), self.labels)
            gradient = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return loss.detach(), dict(zip(leaves, gradient, strict=True))


class _DistanceTo(OuterLoss):
    """The squared distance of the parameters to a target, as a share of a squared distance before training."""

    def __init__(self, target: dict[str, Tensor], start: dict[str, Tensor] | None) -> None:
        self.target, self.start = target, start

    def check(self, starts: Sequence[State]) -> None:
        for params in (self.target, *([] if self.start is None else [self.start])):
            for index, state in enumerate(starts):
                _single(params, state, index)

    def gradient(self, network: nn.Module, state: State, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            target = _single(self.target, state, index)
            scale: Tensor | float = 1.0
            if self.start is not None:
                start = _single(self.start, state, index)
                scale = 1 / _squares({name: start[name] - w for name, w in target.items()})
            differences = {name: w.detach() - target[name] for name, w in state.params.items()}
            return scale * _squares(differences), {name: 2 * scale * d for name, d in differences.items()}


def loss_on(
    loss: Loss, real_inputs: Float[Tensor, " batch *sample"], real_labels: Shaped[Tensor, " batch *classes"]
) -> OuterLoss:
    """Return the outer loss `loss(logits, real_labels)` of a network on real examples, in evaluation mode.

    `loss` may be called from several threads at once.
    """
    return _LossOn(loss, real_inputs.detach(), real_labels.detach())


def distance_to(target: State | Params, start: State | Params | None = None) -> OuterLoss:
    """Return the outer loss `||w_T - target||^2`, as a share of `||start - target||^2` where `start` is present.

    Both hold parameters, `{name: shape}` for all networks or `{name: [nets, *shape]}` with those of each. This is the
    matching of training trajectories (Cazenavette et al. 2022, arXiv 2203.11932, equation 2), where `target` lies
    further along the trajectory that `start` is on. No network is run. Both are constants.
    A meta-gradient raises `ValueError` for parameters of another network.
    """
    return _DistanceTo(_parameters(target), None if start is None else _parameters(start))


def _parameters(tensors: State | Params) -> dict[str, Tensor]:
    params = tensors.params if isinstance(tensors, State) else tensors
    return {name: tensor.detach() for name, tensor in params.items()}


def _single(params: dict[str, Tensor], state: State, index: int) -> dict[str, Tensor]:
    """Return the parameters that belong to network number `index` with this `state`."""
    if params.keys() != state.params.keys():
        raise ValueError(f"the distance is between parameters {sorted(params)}; the network has {sorted(state.params)}")
    if all(params[name].shape == w.shape for name, w in state.params.items()):
        return params
    if any(params[name].shape[1:] != w.shape or len(params[name]) <= index for name, w in state.params.items()):
        raise ValueError("target and start must have the network's shapes, or those with a leading [nets] dimension")
    return {name: tensor[index] for name, tensor in params.items()}


def _squares(tensors: dict[str, Tensor]) -> Float[Tensor, ""]:
    return torch.stack([tensor.square().sum() for tensor in tensors.values()]).sum()
