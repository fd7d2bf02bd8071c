"""Stacks: many networks of one architecture in one call, which keeps an accelerator busy.

The networks of this field are small. One step of one network is some hundred kernels of a few microseconds, and an
accelerator waits for the host between them. A stack has weights `[nets, *shape]`, and `torch.func.vmap` makes each
kernel compute all of its networks. On the CPU networks run side by side on its threads instead (`engine.workers`), and
only DDBENCH_STACKED=1 stacks them. A stack gives the numbers of its networks one by one, but for rounding.
"""

import copy
import os
import weakref
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ddbench.contract.state import State
from ddbench.contract.task import Loss, cross_entropy
from ddbench.engine.allocations import allocated
from ddbench.engine.networks import buffers_of, inner_mode
from ddbench.machine import passes, processes
from ddbench.machine.environment import free_memory

VARIABLE = "DDBENCH_STACKED"
"""Environment variable: 1 stacks networks on any device, 0 on none; unset, on accelerators."""
SHARE = 0.5
"""Share of the free memory that a training step of a stack may take, by estimate."""

_checked: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int | None]]" = weakref.WeakKeyDictionary()
"""Bytes of a training step of one network by module and shape of the batch; None for a module that does not stack."""


def stacking(device: torch.device) -> bool:
    """Return True where networks on `device` are stacked."""
    asked = os.environ.get(VARIABLE, "")
    return asked == "1" if asked in ("0", "1") else device.type not in ("cpu", "meta")


def stack_size(network: nn.Module, batch: Sequence[int], networks: int) -> int:
    """Return how many of `networks` to train in one call, each on a batch of this shape `[n, *sample]`.

    It is 1 where networks are not stacked, and for a network that `vmap` cannot take. A stack's training step fits
    into memory, by the bytes that one network's step allocates.
    """
    device = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    # Networks that several processes share are not stacked: a run must not depend on the number of its processes.
    if networks == 1 or processes.started() or not stacking(device):
        return 1
    step = _bytes_of_a_step(network, tuple(batch))
    if step is None:
        return 1
    return max(1, min(networks, int(SHARE * free_memory(device)) // max(1, step)))


def stack_states(network: nn.Module, states: Sequence[State]) -> State:
    """Return the stack of networks, with a copy of every buffer of each; one that a state lacks is the module's own."""
    return State.stack([State(state.params, buffers_of(network, state)) for state in states])


def stacked_gradient(
    network: nn.Module,
    params: dict[str, Tensor],
    buffers: dict[str, Tensor],
    inputs: Float[Tensor, " *batch"],
    labels: Shaped[Tensor, " *batch_labels"],
    loss: Loss,
    *,
    shared: bool = False,
    create_graph: bool = False,
) -> tuple[Float[Tensor, " nets"], Sequence[Tensor]]:
    """Return the loss of each network of a stack, and the gradients by its parameters, `[nets, *shape]` each.

    `params` require gradients; `buffers` follow the training in place. `inputs` are `[nets, n, *sample]` and `labels`
    `[nets, n]` or `[nets, n, classes]`. With `shared` all networks see one batch, without the dimension of networks.
    A sum over the networks has each one's own gradient: no network's loss depends on another's parameters.
    """

    def call(params: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        return loss(functional_call(network, (params, buffers), (inputs,)), labels)

    # The call of the module counts the batch of one network.
    one = inputs if shared else inputs[0]
    passes.add_for(network, one, times=len(next(iter(params.values()))) - 1)
    place = None if shared else 0
    with torch.enable_grad(), inner_mode(network):
        losses: Tensor = vmap(call, (0, 0, place, place))(params, buffers, inputs, labels)
        gradient = torch.autograd.grad(
            losses.sum(), list(params.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    return losses.detach(), gradient


def _bytes_of_a_step(network: nn.Module, batch: tuple[int, ...]) -> int | None:
    """Return what a training step of one network allocates, or None where two of them cannot be stacked."""
    known = _checked.setdefault(network, {})
    if batch not in known:
        try:
            known[batch] = allocated(lambda: _empty_step(network, batch))[2] // 2
        except Exception:  # a network of others may do anything that vmap or tensors without data do not allow
            known[batch] = None
    return known[batch]


def _empty_step(network: nn.Module, batch: tuple[int, ...]) -> None:
    """Take a training step of two networks with tensors that have no data."""
    module = copy.deepcopy(network).to("meta")
    pair = stack_states(module, [State({name: p.detach() for name, p in module.named_parameters()})] * 2)
    params = {name: tensor.requires_grad_() for name, tensor in pair.params.items()}
    dtype = next(iter(params.values())).dtype
    inputs = torch.empty((2, *batch), device="meta", dtype=dtype)
    labels = torch.empty((2, batch[0]), device="meta", dtype=torch.int64)
    stacked_gradient(module, params, pair.buffers, inputs, labels, cross_entropy)
