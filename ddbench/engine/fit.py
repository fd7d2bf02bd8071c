"""Ordinary training of networks on real examples: Adam on minibatches, several networks at a time."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ddbench.contract.sets import ExampleSet
from ddbench.engine.cpu.operators import FastOperators
from ddbench.engine.meta_gradient import evaluation_mode
from ddbench.engine.workers import for_each_network

BATCH = 128
POOL_STEPS, POOL_RATE = 700, 0.003
"""After which LeNets on MNIST are at 98.6 % of the validation slice."""


@dataclass(frozen=True)
class Recipe:
    """`steps` of Adam (betas .5 and .999, as in Wang et al. 2018) at rate `lr`, which falls along a cosine to zero."""

    steps: int = POOL_STEPS
    lr: float = POOL_RATE
    batch: int = BATCH


def train_each(
    network: nn.Module,
    starts: Sequence[Mapping[str, Tensor]],
    seeds: Sequence[int],
    examples: ExampleSet,
    recipe: Recipe,
    done: Callable[[dict[str, Tensor]], None],
) -> None:
    """Train a network from each of `starts` (`{name: shape}`); `done(weights)` is called for each, in order.

    `seeds` decide the order of the examples, which are gone through in shuffled passes. The loss is cross-entropy;
    dropout and its like are off. The result for a start and a seed does not depend on the others.
    """

    stop = threading.Event()

    def one(own: nn.Module, item: tuple[Mapping[str, Tensor], int]) -> dict[str, Tensor]:
        return _trained(own, *item, examples, recipe, stop)

    for_each_network(one, network, list(zip(starts, seeds, strict=True)), done, stop)


def forecast(
    network: nn.Module, start: Mapping[str, Tensor], examples: ExampleSet, recipe: Recipe, networks: int
) -> float:
    """Seconds that `train_each` will take for so many networks, from the time of one step of one."""
    one = dataclasses.replace(recipe, steps=1)
    workers = min(networks, torch.get_num_threads()) if examples.inputs.device.type == "cpu" else 1
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        train_each(network, [start] * workers, range(workers), examples, one, lambda weights: None)
    return (time.perf_counter() - started) * recipe.steps * networks / workers


def _trained(
    network: nn.Module,
    start: Mapping[str, Tensor],
    seed: int,
    examples: ExampleSet,
    recipe: Recipe,
    stop: threading.Event,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=recipe.lr, betas=(0.5, 0.999), fused=True)
    batches: list[Tensor] = []
    with FastOperators(), evaluation_mode(network):
        for step in range(recipe.steps):
            if stop.is_set():
                break
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
            if not batches:
                order = torch.randperm(len(examples), generator=generator).to(examples.labels.device)
                batches = [
                    batch for batch in torch.split(order, recipe.batch) if len(batch) == min(recipe.batch, len(order))
                ]
            chosen = batches.pop()
            logits = functional_call(network, weights, (examples.inputs[chosen],))
            loss = F.cross_entropy(logits, examples.labels[chosen])
            grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
            for weight, grad in zip(weights.values(), grads, strict=True):
                weight.grad = grad
            optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}
