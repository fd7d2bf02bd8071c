"""Two sides of a benchmark by turns, each in a process of its own.

The way in which the C library hands out memory belongs to a process, and `ddbench` sets it for its own
(`keep_freed_memory`). A published loop, run as a script, has the default; so each side has a process. One waits while
the other works.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from ddbench.machine.environment import keep_freed_memory, peak_memory_mb

Sides = Mapping[str, Callable[[], Tensor]]


def compare(sides: Callable[[Any], Sides], arguments: Any, rounds: int) -> None:
    """Print seconds, ratio and peak memory of the sides `plain` and `method`, and how far their results differ.

    `sides(arguments)` is called in each process. The first turn of each side warms up and is not counted.
    """
    context = multiprocessing.get_context("spawn")
    ends, processes = {}, []
    for name in ("plain", "method"):
        ends[name], theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(theirs, sides, arguments, name)))
        processes[-1].start()
    seconds: dict[str, list[float]] = {name: [] for name in ends}
    results, peaks = {}, {}
    for turn in range(rounds + 1):
        for name, end in ends.items():
            end.send(True)
            elapsed, results[name], peaks[name] = end.recv()
            if turn:
                seconds[name].append(elapsed)
    for end in ends.values():
        end.send(False)
    for process in processes:
        process.join()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = sorted(a / b for a, b in zip(seconds["plain"], seconds["method"], strict=True))
    difference = float((results["method"] - results["plain"]).norm() / results["plain"].norm())
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; gradients differ by {difference:.1e}")
    for name, value in medians.items():
        print(f"  {name:<7} {value:8.2f} s   {peaks[name]:6.0f} MB above the start")
    spread = f"from {ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} turns"
    print(f"  ratio   {statistics.median(ratios):8.2f}     {spread}", flush=True)


def _serve(end: Connection, sides: Callable[[Any], Sides], arguments: Any, name: str) -> None:
    if name == "method":
        keep_freed_memory()
    side = sides(arguments)[name]
    before = peak_memory_mb()
    while end.recv():
        began = time.perf_counter()
        result = side()
        elapsed = time.perf_counter() - began
        end.send((elapsed, result.detach().clone(), peak_memory_mb() - before))
