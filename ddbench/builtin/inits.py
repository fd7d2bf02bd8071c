"""Init distributions without pretraining: `random` draws anew, `fixed` always gives the same network."""

import copy
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import DatasetInfo

Scheme = Annotated[
    Literal["xavier", "kaiming", "orthogonal", "default"],
    Field(description="how weights of two or more dimensions are drawn; default: as each layer draws its own"),
]
Shape = Annotated[Literal["normal", "uniform"], Field(description="distribution of xavier and kaiming weights")]


@ddbench.init
def random(
    network: nn.Module,
    info: DatasetInfo,
    n: int,
    generator: torch.Generator,
    side: str,
    *,
    scheme: Scheme = "xavier",
    distribution: Shape = "normal",
) -> dict[str, Tensor]:
    """Fresh random weights every time: xavier (the paper's), kaiming, orthogonal or PyTorch's default.

    Weights of two or more dimensions follow `scheme` (`distribution` applies to xavier and kaiming), biases are
    zero and normalisation scales one; `default` runs each layer's own reset_parameters instead.
    """
    drawn = [_draw(network, generator, scheme, distribution) for _ in range(n)]
    return {name: torch.stack([weights[name] for weights in drawn]) for name in drawn[0]}


@ddbench.init
def fixed(
    network: nn.Module,
    info: DatasetInfo,
    n: int,
    generator: torch.Generator,
    side: str,
    *,
    seed: Annotated[int, Field(description="which network")] = 0,
    scheme: Scheme = "xavier",
    distribution: Shape = "normal",
) -> dict[str, Tensor]:
    """One network, the same weights while distilling and when scored: drawn like `random` from `seed`."""
    own = torch.Generator().manual_seed(seed)
    return {name: weights[None] for name, weights in _draw(network, own, scheme, distribution).items()}


def _draw(network: nn.Module, generator: torch.Generator, scheme: str, distribution: str) -> dict[str, Tensor]:
    """One network's weights on the CPU, so that a seed gives the same numbers on every device."""
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
    """What the layers' own initialisers draw; they only know the global generator, which is lent a seed."""
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
