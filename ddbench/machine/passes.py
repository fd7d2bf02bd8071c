"""The count of examples that have gone forward through networks: a measure of work that no machine changes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_lock = threading.Lock()
_total = 0
_suspended = 0


def total() -> int:
    """Return the examples that have gone forward through counted networks since the process began."""
    return _total


def add(examples: Tensor, times: int = 1) -> None:
    """Count examples `[n, ...]` that go through networks by another way than a call of a module, so many times.

    Tensors without data, which serve to predict shapes and memory, do not count.
    """
    global _total
    with _lock:
        if not _suspended and not examples.is_meta:
            _total += times * len(examples)


def add_for(network: nn.Module, examples: Tensor, times: int = 1) -> None:
    """Count examples that a call of `network` does not show, where its calls are counted."""
    if count in network._forward_pre_hooks.values():
        add(examples, times)


def count_calls(network: nn.Module) -> nn.Module:
    """Count the examples of every call of `network` and of its copies, and return it."""
    network.register_forward_pre_hook(count)
    return network


def count(network: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Count the examples of a call: the hook of a counted network, the same function in each of its copies."""
    if inputs and isinstance(inputs[0], Tensor):
        add(inputs[0])


@contextmanager
def uncounted() -> Iterator[None]:
    """Leave out what happens within a `with` block, in all threads: work that later runs share."""
    global _suspended
    with _lock:
        _suspended += 1
    try:
        yield
    finally:
        with _lock:
            _suspended -= 1
