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
from ddbench.engine.stacks import stack_size, stack_states, stacked_gradient
from ddbench.engine.workers import for_each_network, worker_count

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
            _set_rate(stepper, rate, step)
            outputs = in_parts(network, inputs, lambda part: functional_call(network, (params, buffers), (part,)))
            value = loss(outputs, labels)
            grads = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
            for leaf, grad in zip(leaves, grads, strict=True):
                leaf.grad = _laid_out_as(leaf, grad)
            stepper.step()
            if after_step is not None:
                after_step(step + 1, State(params, buffers))
    return State({name: tensor.detach() for name, tensor in params.items()}, buffers)


def fit_stack(
    network: nn.Module,
    starts: Sequence[State],
    batches: Iterable[tuple[Tensor, Tensor]],
    optimiser: Callable[[list[Tensor]], Optimiser],
    *,
    loss: Loss = cross_entropy,
    rate: Callable[[int], float] | None = None,
    after_step: Callable[[int, State], None] | None = None,
) -> list[State]:
    """Return the state of each network after training as by `fit`, all of them in one call a step (`engine.stacks`).

    `batches` have a leading dimension of networks: inputs `[nets, n, *sample]`, labels `[nets, n]` or
    `[nets, n, classes]`. The optimiser gets parameters `[nets, *shape]` and must treat their elements alike, as SGD and
    Adam do. `after_step(steps, state)` gets the stack.
    """
    stack = stack_states(network, starts)
    params = {name: tensor.detach().requires_grad_() for name, tensor in stack.params.items()}
    stepper = optimiser(list(params.values()))
    for step, (inputs, labels) in enumerate(batches):
        _set_rate(stepper, rate, step)
        _, grads = stacked_gradient(network, params, stack.buffers, inputs, labels, loss)
        for leaf, grad in zip(params.values(), grads, strict=True):
            leaf.grad = _laid_out_as(leaf, grad)
        stepper.step()
        if after_step is not None:
            after_step(step + 1, State(params, stack.buffers))
    trained = State({name: tensor.detach() for name, tensor in params.items()}, stack.buffers)
    return [trained.network(index) for index in range(len(starts))]


def in_lockstep(
    batches: Sequence[Iterator[tuple[Tensor, Tensor]]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of several networks together, `[nets, n, *sample]` and `[nets, n, *classes]`."""
    for parts in zip(*batches, strict=False):
        inputs, labels = zip(*parts, strict=True)
        yield torch.stack(inputs), torch.stack(labels)


def _laid_out_as(leaf: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient in the memory layout of its parameter.

    Fused optimisers go through both as they lie in memory, and `vmap` gives transposed gradients.
    """
    return grad if grad.stride() == leaf.stride() else torch.empty_like(leaf).copy_(grad)


def _set_rate(optimiser: Optimiser, rate: Callable[[int], float] | None, step: int) -> None:
    if rate is not None:
        for group in optimiser.param_groups:
            group["lr"] = rate(step)


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
    items = list(zip(starts, seeds, strict=True))
    size = stack_size(network, (min(recipe.batch, len(examples)), *examples.inputs.shape[1:]), len(items))

    def train_group(replica: nn.Module, group: Sequence[tuple[State, int]]) -> list[State]:
        states = [start for start, _ in group]
        batches = [recipe.batches(examples, torch.Generator().manual_seed(seed), stop) for _, seed in group]
        if len(group) == 1:
            return [fit(replica, states[0], batches[0], recipe.optimiser, rate=recipe.rate)]
        return fit_stack(replica, states, in_lockstep(batches), recipe.optimiser, rate=recipe.rate)

    def report_group(trained: list[State]) -> None:
        for state in trained:
            report(state)

    groups = [items[i : i + size] for i in range(0, len(items), size)]
    for_each_network(train_group, network, groups, report_group, stop)


def forecast(network: nn.Module, start: State, examples: ExampleSet, recipe: Recipe, networks: int) -> float:
    """Return the seconds that `train_each` will take for so many networks, from the time of one step of one."""
    single = dataclasses.replace(recipe, steps=1)
    batch = (min(recipe.batch, len(examples)), *examples.inputs.shape[1:])
    together = max(worker_count(network, networks), stack_size(network, batch, networks))
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        train_each(network, [start] * together, range(together), examples, single, lambda state: None)
    return (time.perf_counter() - started) * recipe.steps * networks / together
