"""Init distributions of pretrained networks, and mixtures of init distributions."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import DatasetInfo, Side, Sources, UsageError
from ddbench.networks import POOL_RATE, POOL_STEPS

Count = Annotated[int, Field(ge=1, le=100_000, description="networks in the pool for distilling")]
HeldOut = Annotated[int, Field(ge=1, le=100_000, description="further networks in the pool, for scoring only")]
Steps = Annotated[int, Field(ge=1, description="steps of Adam by which each network of the pool is trained")]
Rate = Annotated[float, Field(gt=0, description="learning rate of Adam at the start; it falls along a cosine to zero")]


@ddbench.init
def random_pretrained(
    network: nn.Module,
    info: DatasetInfo,
    n: int,
    generator: torch.Generator,
    side: Side,
    sources: Sources,
    *,
    count: Count = 200,
    held_out: HeldOut = 20,
    steps: Steps = POOL_STEPS,
    lr: Rate = POOL_RATE,
) -> dict[str, Tensor]:
    """Draw networks from a pool trained on the same dataset; networks for scoring are held out from distilling.

    The pool is trained on first use, or beforehand by `ddbench pretrain`, and kept in the cache.
    """
    return sources.pool(side, n, generator, count=count, held_out=held_out, steps=steps, lr=lr)


@ddbench.init
def fixed_pretrained(
    network: nn.Module,
    info: DatasetInfo,
    n: int,
    generator: torch.Generator,
    side: Side,
    sources: Sources,
    *,
    index: Annotated[int, Field(ge=0, description="number of the network in the pool, from 0")] = 0,
    steps: Steps = POOL_STEPS,
    lr: Rate = POOL_RATE,
) -> dict[str, Tensor]:
    """Return one network trained on the same dataset, with the same weights for distilling and for scoring."""
    # A whole pool comes in order. Never a held-out network: a mixture may use those for scoring.
    drawn = sources.pool("train", index + 1, generator, count=index + 1, held_out=0, steps=steps, lr=lr)
    return {name: tensor[index:] for name, tensor in drawn.items()}


@ddbench.init
def mixture(
    network: nn.Module,
    info: DatasetInfo,
    n: int,
    generator: torch.Generator,
    side: Side,
    sources: Sources,
    *,
    of: Annotated[
        list[str | dict[str, Any]],
        Field(min_length=2, description="init distributions, each a name or {name, options}"),
    ] = ["random", {"name": "random", "options": {"scheme": "kaiming"}}],  # noqa: B006
) -> dict[str, Tensor]:
    """Draw each network from one of several init distributions, chosen with equal probability.

    This distils sets that work for more than one distribution, such as xavier and kaiming:
    `--set init.of='["random", {"name": "random", "options": {"scheme": "kaiming"}}]'`.
    """
    chosen = torch.randint(len(of), (n,), generator=generator).tolist()
    parts: list[dict[str, Tensor]] = []
    for index, part in enumerate(of):
        count = chosen.count(index)
        if (isinstance(part, dict) and part.get("name") == "mixture") or part == "mixture":
            raise UsageError("a mixture cannot contain a mixture.", "List the parts of both in one mixture.")
        if count:
            drawn = sources.draw(part, network, info, count, generator, side)
            # A distribution of one network returns one, however many were asked for.
            parts.append({name: tensor[torch.arange(count) % len(tensor)] for name, tensor in drawn.items()})
    order = torch.randperm(n, generator=generator)
    return {name: torch.cat([part[name].cpu() for part in parts])[order] for name in parts[0]}


@ddbench.hookimpl
def ddbench_inits() -> list[object]:
    return [random_pretrained, fixed_pretrained, mixture]
