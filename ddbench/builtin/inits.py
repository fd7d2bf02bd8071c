"""Init distributions without pretraining: `random` draws new weights, `fixed` always returns the same network."""

import copy
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import InitRequest

Scheme = Annotated[
    Literal["xavier", "kaiming", "orthogonal", "default"],
    Field(description="initialisation of weights with two or more dimensions; default: PyTorch's, layer by layer"),
]
Distribution = Annotated[Literal["normal", "uniform"], Field(description="distribution of xavier and kaiming weights")]


@ddbench.init
def random(
    request: InitRequest,
    *,
    scheme: Scheme = "xavier",
    distribution: Distribution = "normal",
) -> dict[str, Tensor]:
    """Draw new random weights for each network: xavier (as in Wang et al. 2018), kaiming, orthogonal or PyTorch's own.

    `scheme` applies to weights of two or more dimensions; biases are zero, normalisation scales are one.
    `scheme=default` calls the `reset_parameters` of each layer instead.
    """
    drawn = [_draw(request.network, request.generator, scheme, distribution) for _ in range(request.n)]
    return {name: torch.stack([weights[name] for weights in drawn]) for name in drawn[0]}


@ddbench.init
def fixed(
    request: InitRequest,
    *,
    seed: Annotated[int, Field(description="seed of the weights")] = 0,
    scheme: Scheme = "xavier",
    distribution: Distribution = "normal",
) -> dict[str, Tensor]:
    """Return one network with the same weights for distilling and for scoring, drawn like `random` from `seed`."""
    own_generator = torch.Generator().manual_seed(seed)
    drawn = _draw(request.network, own_generator, scheme, distribution)
    return {name: weights[None] for name, weights in drawn.items()}


def _draw(network: nn.Module, generator: torch.Generator, scheme: str, distribution: str) -> dict[str, Tensor]:
    """Draw the weights of one network, on the CPU so that a seed gives the same numbers on every device."""
    if scheme == "default":
        return _reset(network, generator)
    fills: dict[tuple[str, str], Callable[..., Tensor]] = {
        ("xavier", "normal"): nn.init.xavier_normal_,
        ("xavier", "uniform"): nn.init.xavier_uniform_,
        ("kaiming", "normal"): nn.init.kaiming_normal_,
        ("kaiming", "uniform"): nn.init.kaiming_uniform_,
    }
    fill = fills.get((scheme, distribution), nn.init.orthogonal_)
    drawn = {}
    for name, parameter in network.named_parameters():
        tensor = torch.zeros(parameter.shape)
        if parameter.dim() >= 2:
            fill(tensor, generator=generator)
        elif name.rsplit(".", 1)[-1] == "weight":
            tensor.fill_(1.0)
        drawn[name] = tensor
    return drawn


def _reset(network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw weights by the layers' own initialisers, which use only the global generator: it is seeded meanwhile."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = copy.deepcopy(network).cpu()
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return {name: parameter.detach() for name, parameter in fresh.named_parameters()}


@ddbench.hookimpl
def ddbench_inits() -> list[object]:
    return [random, fixed]
