"""Init distributions of pretrained networks, and mixtures of init distributions."""

from typing import Annotated, Any

import torch
from pydantic import Field

import ddbench
from ddbench import InitRequest, State, UsageError
from ddbench.networks import POOL_RATE, POOL_STEPS

Count = Annotated[int, Field(ge=1, le=100_000, description="networks in the pool for distilling")]
HeldOut = Annotated[int, Field(ge=1, le=100_000, description="further networks in the pool, for scoring only")]
Steps = Annotated[int, Field(ge=1, description="steps of Adam by which each network of the pool is trained")]
Rate = Annotated[float, Field(gt=0, description="learning rate of Adam at the start; it falls along a cosine to zero")]


@ddbench.init
def random_pretrained(
    request: InitRequest,
    *,
    count: Count = 200,
    held_out: HeldOut = 20,
    steps: Steps = POOL_STEPS,
    lr: Rate = POOL_RATE,
) -> State:
    """Draw networks from a pool trained on the same dataset; networks for scoring are held out from distilling.

    The pool is trained on first use, or beforehand by `ddbench pretrain`, and kept in the cache.
    """
    return request.pool(count=count, held_out=held_out, steps=steps, lr=lr)


@ddbench.init
def fixed_pretrained(
    request: InitRequest,
    *,
    index: Annotated[int, Field(ge=0, description="number of the network in the pool, from 0")] = 0,
    steps: Steps = POOL_STEPS,
    lr: Rate = POOL_RATE,
) -> State:
    """Return one network trained on the same dataset, with the same weights for distilling and for scoring."""
    # A whole pool comes in order. Never a held-out network: a mixture may use those for scoring.
    drawn = request.pool(side="train", n=index + 1, count=index + 1, held_out=0, steps=steps, lr=lr)
    return drawn.networks(slice(index, None))


@ddbench.init
def mixture(
    request: InitRequest,
    *,
    of: Annotated[
        list[str | dict[str, Any]],
        Field(min_length=2, description="init distributions, each a name or {name, options}"),
    ] = ["random", {"name": "random", "options": {"scheme": "kaiming"}}],  # noqa: B006
) -> State:
    """Draw each network from one of several init distributions, chosen with equal probability.

    This distils sets that work for more than one distribution, such as xavier and kaiming:
    `--set init.of='["random", {"name": "random", "options": {"scheme": "kaiming"}}]'`.
    """
    chosen = torch.randint(len(of), (request.n,), generator=request.generator).tolist()
    parts: list[State] = []
    for index, part in enumerate(of):
        count = chosen.count(index)
        if (isinstance(part, dict) and part.get("name") == "mixture") or part == "mixture":
            raise UsageError("a mixture cannot contain a mixture.", "List the parts of both in one mixture.")
        if count:
            drawn = request.other(part, count)
            # A distribution of one network returns one, however many were asked for.
            parts += [drawn.network(number % drawn.count) for number in range(count)]
    order = torch.randperm(request.n, generator=request.generator).tolist()
    return State.stack([parts[number] for number in order])


@ddbench.hookimpl
def ddbench_inits() -> list[object]:
    return [random_pretrained, fixed_pretrained, mixture]
