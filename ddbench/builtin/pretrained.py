"""Init distributions of networks trained before, and mixtures of distributions."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import DatasetInfo, UsageError
from ddbench.contract.task import Side, Sources
from ddbench.engine.fit import POOL_RATE, POOL_STEPS

Count = Annotated[int, Field(ge=1, le=100_000, description="networks to train on")]
HeldOut = Annotated[int, Field(ge=1, le=100_000, description="other networks, to score on")]
Steps = Annotated[int, Field(ge=1, description="steps of Adam that each network of the pool was trained by")]
Rate = Annotated[float, Field(gt=0, description="Adam's rate, which falls along a cosine to zero")]


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
    """Networks of a pool that was trained on the same dataset; those that score are held out from it.

    The pool is trained on first use, or beforehand by `ddbench pretrain`, and kept.
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
    index: Annotated[int, Field(ge=0, description="which network of the pool")] = 0,
    steps: Steps = POOL_STEPS,
    lr: Rate = POOL_RATE,
) -> dict[str, Tensor]:
    """One network trained on the same dataset, the same weights while distilling and when scored."""
    # All networks of a pool come in their order. Never a held-out one: another part of the run may be scored on those.
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
        Field(min_length=2, description="init distributions: names, or {name, options}"),
    ] = ["random", {"name": "random", "options": {"scheme": "kaiming"}}],  # noqa: B006
) -> dict[str, Tensor]:
    """Each network from one of several init distributions, drawn evenly.

    For distilling sets that serve more than one, such as xavier and kaiming:
    `--set init.of='["random", {"name": "random", "options": {"scheme": "kaiming"}}]'`.
    """
    chosen = torch.randint(len(of), (n,), generator=generator).tolist()
    parts: list[dict[str, Tensor]] = []
    for place, part in enumerate(of):
        wanted = chosen.count(place)
        if (isinstance(part, dict) and part.get("name") == "mixture") or part == "mixture":
            raise UsageError("a mixture cannot hold a mixture.", "Name the parts of both in one.")
        if wanted:
            drawn = sources.draw(part, network, info, wanted, generator, side)
            # A distribution of one network gives that one again.
            parts.append({name: tensor[torch.arange(wanted) % len(tensor)] for name, tensor in drawn.items()})
    order = torch.randperm(n, generator=generator)
    return {name: torch.cat([part[name].cpu() for part in parts])[order] for name in parts[0]}


@ddbench.hookimpl
def ddbench_inits() -> list[object]:
    return [random_pretrained, fixed_pretrained, mixture]
