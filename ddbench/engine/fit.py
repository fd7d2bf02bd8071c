"""The one training loop: first-order training of a network on batches, and pools of networks trained by Adam."""

import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddbench.contract.examples import ExampleSet
from ddbench.contract.state import State
from ddbench.contract.task import Loss, cross_entropy
from ddbench.engine.cpu.operators import fast_operators
from ddbench.engine.networks import buffers_of, in_parts, inner_mode
from ddbench.engine.workers import for_each_network

BATCH = 128
POOL_STEPS, POOL_RATE = 700, 0.003
"""Defaults that bring LeNets on MNIST to 98.6 % of the validation slice."""


class Optimiser(Protocol):
    """The part of a `torch.optim.Optimizer` that `fit` uses."""

    param_groups: list[dict[str, object]]

    def step(self) -> object:
        """Update the parameters from their `.grad`."""
        ...


def fit(
    network: nn.Module,
    state: State,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimiser: Callable[[list[Tensor]], Optimiser],
    *,
    loss: Loss = cross_entropy,
    rate: Callable[[int], float] | None = None,
    after_step: Callable[[int, State], None] | None = None,
) -> State:
    """Return the state after one step of `optimiser` on each of `batches`; `state` itself stays as it is.

    `batches` are pairs of inputs `[n, *sample]` and labels `[n]` or `[n, classes]`, drawn one at a time during the
    training and in its mode (`inner_mode`: batch statistics, no dropout; running statistics go into the result).
    `optimiser(parameters)` makes the optimiser of the parameters, in the order of `state.params`, such as
    `lambda parameters: torch.optim.SGD(parameters, lr=0.01)`. `rate(step)` is the learning rate of each step.
    `after_step(steps, state)` is called after each step with the number of steps so far; the next step changes the
    tensors of that state.
    """
    params = {name: tensor.detach().clone().requires_grad_() for name, tensor in state.params.items()}
    buffers = {name: tensor.detach().clone() for name, tensor in buffers_of(network, state).items()}
    leaves = list(params.values())
    stepper = optimiser(leaves)
    with fast_operators(), inner_mode(network):
        for step, (inputs, labels) in enumerate(batches):
            if rate is not None:
                for group in stepper.param_groups:
                    group["lr"] = rate(step)
            outputs = in_parts(network, inputs, lambda part: functional_call(network, (params, buffers), (part,)))
            value = loss(outputs, labels)
            grads = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
            for leaf, grad in zip(leaves, grads, strict=True):
                leaf.grad = grad
            stepper.step()
            if after_step is not None:
                after_step(step + 1, State(params, buffers))
    return State({name: tensor.detach() for name, tensor in params.items()}, buffers)


@dataclass(frozen=True)
class Recipe:
    """A training of `steps` of Adam (betas .5 and .999, as in Wang et al. 2018); the rate falls along a cosine to 0."""

    steps: int = POOL_STEPS
    lr: float = POOL_RATE
    batch: int = BATCH

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def optimiser(self, parameters: list[Tensor]) -> Optimiser:
        """Return Adam for `parameters`."""
        return torch.optim.Adam(parameters, lr=self.lr, betas=(0.5, 0.999), fused=True)

    def batches(
        self, examples: ExampleSet, generator: torch.Generator, stop: threading.Event
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `steps` batches out of shuffled passes through `examples`, fewer when `stop` is set."""
        for batch in itertools.islice(examples.batches(self.batch, generator), self.steps):
            if stop.is_set():
                return
            yield batch


def train_each(
    network: nn.Module,
    starts: Sequence[State],
    seeds: Sequence[int],
    examples: ExampleSet,
    recipe: Recipe,
    report: Callable[[State], None],
) -> None:
    """Train a network from each of `starts` (states of one network) and call `report(state)` for each, in order.

    `seeds` decide the order of the examples. The loss is cross-entropy.
    The result for a start and a seed does not depend on the others.
    """
    stop = threading.Event()

    def train_single(replica: nn.Module, item: tuple[State, int]) -> State:
        start, seed = item
        batches = recipe.batches(examples, torch.Generator().manual_seed(seed), stop)
        return fit(replica, start, batches, recipe.optimiser, rate=recipe.rate)

    for_each_network(train_single, network, list(zip(starts, seeds, strict=True)), report, stop)


def forecast(network: nn.Module, start: State, examples: ExampleSet, recipe: Recipe, networks: int) -> float:
    """Return the seconds that `train_each` will take for so many networks, from the time of one step of one."""
    single = dataclasses.replace(recipe, steps=1)
    workers = min(networks, torch.get_num_threads()) if examples.inputs.device.type == "cpu" else 1
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        train_each(network, [start] * workers, range(workers), examples, single, lambda state: None)
    return (time.perf_counter() - started) * recipe.steps * networks / workers
