"""Training of experts: SGD on real data, the weights of every epoch kept (Cazenavette et al. 2022, section 3.1)."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ddbench.contract.examples import ExampleSet
from ddbench.contract.experts import ExpertRecipe
from ddbench.contract.state import State
from ddbench.engine import augment
from ddbench.engine.fit import Optimiser, fit, fit_stack, in_lockstep
from ddbench.engine.stacks import stack_size
from ddbench.engine.workers import for_each_network, worker_count
from ddbench.errors import DdbenchError
from ddbench.machine.seeds import derive_seed

SHORT = 0.2
"""Seconds of a step below which a forecast measures several: starting the workers would dominate one."""


class OutOfTime(Exception):
    """The end of the time that a training had."""


def train_experts(
    network: nn.Module,
    starts: Sequence[tuple[int, State]],
    examples: ExampleSet,
    recipe: ExpertRecipe,
    report: Callable[[State], None],
    *,
    epoch_done: Callable[[], None] = lambda: None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> None:
    """Train an expert from each of `starts`, pairs of its number and state, and call `report(trajectory)` in order.

    A trajectory is a `State` with tensors `[epochs + 1, *shape]` on the CPU. Its random numbers follow from the number
    of the expert alone. `epoch_done` is called after each epoch of any expert, from one thread at a time. Raises
    `DdbenchError` for an expert whose weights are not finite, and `OutOfTime` when `out_of_time` returns True.
    """
    stop, lock = threading.Event(), threading.Lock()
    size = stack_size(network, (min(recipe.batch, len(examples)), *examples.inputs.shape[1:]), len(starts))

    def train(replica: nn.Module, group: Sequence[tuple[int, State]]) -> list[State]:
        steps = len(_split(torch.arange(len(examples)), recipe.batch))
        trajectories = [
            State(*({n: _trajectory(t, recipe.epochs) for n, t in part.items()} for part in _parts(start)))
            for _, start in group
        ]

        def keep(step: int, states: Callable[[], Sequence[State]]) -> None:
            if step % steps:
                return
            epoch = step // steps
            for (number, _), trajectory, state in zip(group, trajectories, states(), strict=True):
                for kept, live in zip(_parts(trajectory), _parts(state), strict=True):
                    for name, tensor in live.items():
                        kept[name][epoch] = tensor.detach()
                if not state.finite:
                    raise DdbenchError(
                        f"expert {number} diverged in epoch {epoch} of {recipe.epochs}.",
                        f"Lower the rate {recipe.lr:g}.",
                    )
                with lock:
                    epoch_done()

        def batches(number: int) -> Iterator[tuple[Tensor, Tensor]]:
            generator = torch.Generator().manual_seed(derive_seed("expert", number, "order"))
            for batch in _batches(examples, recipe, generator):
                if stop.is_set() or out_of_time():
                    raise OutOfTime
                yield batch

        def sgd(parameters: list[Tensor]) -> Optimiser:
            return torch.optim.SGD(parameters, recipe.lr, recipe.momentum, weight_decay=recipe.decay)

        if len(group) == 1:
            [(number, start)] = group
            fit(replica, start, batches(number), sgd, after_step=lambda step, state: keep(step, lambda: [state]))
        else:
            together = in_lockstep([batches(number) for number, _ in group])

            def keep_each(step: int, stack: State) -> None:
                keep(step, lambda: [stack.network(index) for index in range(len(group))])

            fit_stack(replica, [start for _, start in group], together, sgd, after_step=keep_each)
        return trajectories

    def report_group(trajectories: list[State]) -> None:
        for trajectory in trajectories:
            report(trajectory)

    groups = [starts[i : i + size] for i in range(0, len(starts), size)]
    for_each_network(train, network, groups, report_group, stop)


def forecast_experts(
    network: nn.Module, start: State, examples: ExampleSet, recipe: ExpertRecipe, experts: int
) -> float:
    """Return the seconds that `train_experts` will take for so many experts, from the time of a few steps."""
    single = examples[torch.arange(min(recipe.batch, len(examples)))]
    batch = (len(single), *examples.inputs.shape[1:])
    together = max(worker_count(network, experts), stack_size(network, batch, experts))
    starts = [(number, start) for number in range(together)]

    def measured(steps: int) -> float:
        few = recipe.model_copy(update={"epochs": steps, "lr": 1e-9})
        began = time.perf_counter()
        train_experts(network, starts, single, few, lambda trajectory: None)
        return (time.perf_counter() - began) / steps

    measured(1)  # the first one warms up
    step = measured(1)
    if step < SHORT:
        step = measured(10)
    # Also a part of a batch costs its share.
    return step * len(examples) / len(single) * recipe.epochs * experts / together


def _parts(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return state.params, state.buffers


def _trajectory(start: Tensor, epochs: int) -> Tensor:
    """Return `[epochs + 1, *shape]` on the CPU, the first entry of which is `start`."""
    trajectory = torch.empty((epochs + 1, *start.shape), dtype=start.dtype)
    trajectory[0] = start.detach()
    return trajectory


def _split(order: Tensor, size: int) -> list[Tensor]:
    """Return the batches of a pass; a single example is no batch: batch statistics are not defined for it."""
    return [part for part in torch.split(order, size) if len(part) > 1] or [order]


def _batches(examples: ExampleSet, recipe: ExpertRecipe, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(recipe.epochs):
        order = torch.randperm(len(examples), generator=generator).to(examples.labels.device)
        for part in _split(order, recipe.batch):
            yield _augmented(examples.inputs[part], recipe.augment, generator), examples.labels[part]


def _augmented(inputs: Tensor, strategy: str, generator: torch.Generator) -> Tensor:
    """Return the batch under one operation of the strategy, the amount drawn for each image."""
    if not strategy:
        return inputs
    return augment.apply(inputs, augment.draw(strategy, generator, images=len(inputs)))
