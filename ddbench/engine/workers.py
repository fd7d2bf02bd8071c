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

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each_network(
    function: Callable[[nn.Module, Item], Result],
    network: nn.Module,
    items: Sequence[Item],
    done: Callable[[Result], None] = lambda result: None,
    stop: threading.Event | None = None,
) -> list[Result]:
    """`[function(network, item) for item in items]`, on as many workers as torch has threads.

    Each worker is given a copy of `network`, so `function` may put weights and modes into it; it must not change
    anything else that is shared. `stop` is set when this thread is interrupted, for workers with long work to see.
    `done(result)` is called from this thread for each result, in order. On an
    accelerator, or with one thread or one item, everything happens in this thread.
    """
    threads = torch.get_num_threads()
    workers = min(len(items), threads)
    on_cpu = all(tensor.device.type == "cpu" for tensor in (*network.parameters(), *network.buffers()))
    if workers <= 1 or not on_cpu:
        results = []
        for item in items:
            results.append(function(network, item))
            done(results[-1])
        return results

    free: SimpleQueue[nn.Module] = SimpleQueue()
    for _ in range(workers):
        free.put(copy.deepcopy(network))

    def work(item: Item) -> Result:
        torch.set_num_threads(1)
        own = free.get()
        try:
            return function(own, item)
        finally:
            free.put(own)

    results = []
    interval = sys.getswitchinterval()
    try:
        # Small networks are many short calls: a worker must not wait long for its turn at the interpreter.
        sys.setswitchinterval(1e-5)
        with ThreadPoolExecutor(workers) as pool:
            try:
                for result in pool.map(work, items):
                    results.append(result)
                    done(result)
            except BaseException:
                if stop is not None:
                    stop.set()
                raise
    finally:
        sys.setswitchinterval(interval)
        # Setting the threads of a worker also sets what threads to come start with.
        torch.set_num_threads(threads)
    return results
