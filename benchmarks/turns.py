"""Two sides of a benchmark by turns, each in a process of its own.

The way in which the C library hands out memory belongs to a process, and `ddbench` sets it for its own
(`keep_freed_memory`). A published loop, run as a script, has the default; so each side has a process. One waits while
the other works.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

import pydantic
import torch
from torch import Tensor

from ddbench.machine.environment import keep_freed_memory, peak_memory_mb, resolve_device

Side = Literal["baseline", "ddbench"]
Sides = Mapping[Side, Callable[[], Tensor | None]]


@dataclass(frozen=True)
class Case:
    """A figure to measure.

    Attributes:
        what: the work of a turn.
        baseline: the way that ddbench is compared with.
        sides: called in each process, gives both ways; each does the work once and returns its result, or None where
            random numbers make the results differ.
        goal: the ratio that is wanted at least; None for none.
        accelerator: the case means something on an accelerator alone.
    """

    what: str
    baseline: str
    sides: Callable[[], Sides]
    goal: float | None = None
    accelerator: bool = False


class Figure(pydantic.BaseModel):
    """A measured case.

    Attributes:
        what: see `Case`.
        baseline: see `Case`.
        goal: see `Case`.
        ratio: the median over the turns of the baseline's seconds by those of ddbench.
        low: the smallest ratio of a turn.
        high: the largest one.
        turns: turns that were counted.
        seconds: the median of a turn of each side.
        megabytes: the peak of each side's process beyond what it held before.
        difference: norm of the difference of the results relative to the baseline's; None where they are random.
    """

    what: str
    baseline: str
    goal: float | None
    ratio: float
    low: float
    high: float
    turns: int
    seconds: dict[Side, float]
    megabytes: dict[Side, float]
    difference: float | None


def measure(case: Case, turns: int) -> Figure:
    """Return the figure of a case. The first turn of each side warms up and is not counted."""
    context = multiprocessing.get_context("spawn")
    ends: dict[Side, Connection] = {}
    processes = []
    for name in ("baseline", "ddbench"):
        ends[name], other_end = context.Pipe()
        processes.append(context.Process(target=_serve, args=(other_end, case.sides, name)))
        processes[-1].start()
        other_end.close()
    seconds: dict[Side, list[float]] = {name: [] for name in ends}
    results, peaks = {}, {}
    try:
        for turn in range(turns + 1):
            for name, end in ends.items():
                end.send(True)
                elapsed, results[name], peaks[name] = end.recv()
                if turn:
                    seconds[name].append(elapsed)
        for end in ends.values():
            end.send(False)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
    ratios = [a / b for a, b in zip(seconds["baseline"], seconds["ddbench"], strict=True)]
    plain, own = results["baseline"], results["ddbench"]
    return Figure(
        what=case.what,
        baseline=case.baseline,
        goal=case.goal,
        ratio=round(statistics.median(ratios), 3),
        low=round(min(ratios), 3),
        high=round(max(ratios), 3),
        turns=turns,
        seconds={name: round(statistics.median(values), 4) for name, values in seconds.items()},
        megabytes={name: round(peak, 1) for name, peak in peaks.items()},
        difference=None if plain is None else float((own - plain).norm() / plain.norm()),
    )


def _serve(end: Connection, sides: Callable[[], Sides], name: Side) -> None:
    """Take turns for one side until the other end says stop."""
    if name == "ddbench":
        keep_freed_memory()
    side, device = sides()[name], resolve_device("auto")
    before = _peak(device)
    while end.recv():
        began = time.perf_counter()
        result = side()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - began
        end.send((elapsed, None if result is None else result.detach().cpu().clone(), _peak(device) - before))


def _peak(device: torch.device) -> float:
    """Return the peak memory in MB: of the device, or of the process on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_memory_mb()
