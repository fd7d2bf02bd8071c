"""Several networks at a time on the CPU: one worker thread each, every worker with one thread of its own.

Networks of this field are small: two of them side by side on a core each finish well before one after the other on both
cores. Kernels release the interpreter's lock, so threads are enough.
"""

import copy
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import nn

from ddbench.machine import processes

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_count(network: nn.Module, items: int) -> int:
    """Return how many workers `for_each_network` takes for so many items: on the CPU at most one for each thread."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in (*network.parameters(), *network.buffers()))
    return max(1, min(items, torch.get_num_threads())) if on_cpu else 1


def for_each_network(
    function: Callable[[nn.Module, Item], Result],
    network: nn.Module,
    items: Sequence[Item],
    report: Callable[[Result], None] = lambda result: None,
    stop: threading.Event | None = None,
) -> list[Result]:
    """Return `[function(network, item) for item in items]`, computed by as many workers as torch has threads.

    Each worker gets a copy of `network`, so `function` may change its weights and modes; it must not change
    anything else that is shared. `report(result)` is called from this thread for each result, in order.
    `stop` is set when this thread is interrupted; workers with long work should check it.
    On an accelerator, or with one thread or one item, everything happens in this thread.
    Where several processes share a run, each computes its share, and all get all results.
    """
    if processes.shares():
        return _shared(function, network, items, report, stop)
    threads, workers = torch.get_num_threads(), worker_count(network, len(items))
    if workers == 1:
        results = []
        for item in items:
            results.append(function(network, item))
            report(results[-1])
        return results

    replicas: SimpleQueue[nn.Module] = SimpleQueue()
    for _ in range(workers):
        replicas.put(copy.deepcopy(network))

    def work(item: Item) -> Result:
        torch.set_num_threads(1)
        replica = replicas.get()
        try:
            return function(replica, item)
        finally:
            replicas.put(replica)

    results = []
    interval = sys.getswitchinterval()
    try:
        # Small networks are many short calls: a worker must not wait long for its turn at the interpreter.
        sys.setswitchinterval(1e-5)
        with ThreadPoolExecutor(workers) as pool:
            try:
                for result in pool.map(work, items):
                    results.append(result)
                    report(result)
            except BaseException:
                if stop is not None:
                    stop.set()
                raise
    finally:
        sys.setswitchinterval(interval)
        # A worker's thread count also becomes the default of threads started later.
        torch.set_num_threads(threads)
    return results


def _shared(
    function: Callable[[nn.Module, Item], Result],
    network: nn.Module,
    items: Sequence[Item],
    report: Callable[[Result], None],
    stop: threading.Event | None,
) -> list[Result]:
    """Do as `for_each_network`, with the items dealt out to the processes of the run, round by round."""
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    size, results = processes.count() * worker_count(network, len(items)), list[Result]()
    for first in range(0, len(items), size):
        dealt = range(first, min(first + size, len(items)))
        mine = [items[i] for i in dealt if i % processes.count() == processes.rank()]

        def compute(mine: list[Item] = mine) -> list[Result]:
            with processes.sharing(False):
                return for_each_network(function, network, mine, stop=stop)

        parts = [iter(part) for part in processes.agreed(compute, device)]
        for i in dealt:
            results.append(next(parts[i % processes.count()]))
            report(results[-1])
    return results
