"""Several processes that carry out one run together, as `torchrun` starts them.

All of them take the same steps with the same random numbers. Each computes its share of the networks, and all get the
results of all, in the order of the networks: so every process does the same with them, and a run gives the same bytes
for any number of processes. Process 0 alone writes: the others work in copies of its folder.

Results travel through the host by gloo, whatever the device.
"""

import contextlib
import datetime
import io
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from ddbench.errors import DdbenchError, Interrupted

Value = TypeVar("Value")
WAIT = datetime.timedelta(hours=24)
"""Time that a process waits for the others: one of them may download data or train a pool."""

_sharing: ContextVar[bool] = ContextVar("_sharing", default=False)


def started() -> bool:
    """Return True in a process that `torchrun` has started, also where it is the only one."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def count() -> int:
    """Return the number of processes of this run."""
    return int(os.environ["WORLD_SIZE"]) if started() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if started() else 0


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if started() else 0


@contextlib.contextmanager
def sharing(wanted: bool = True) -> Iterator[None]:
    """Let the processes share networks within a `with` block, or each compute all of them."""
    token = _sharing.set(wanted)
    try:
        yield
    finally:
        _sharing.reset(token)


def shares() -> bool:
    """Return True where networks are shared out: in a block of `sharing`, with several processes."""
    return _sharing.get() and count() > 1


def exchange(value: Value, device: Any = "cpu") -> list[Value]:
    """Return what every process gives, in their order; tensors arrive on `device`. All processes must call it.

    Raises `Interrupted` where another process has ended.
    """
    if count() == 1:
        return [value]
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=WAIT)
    buffer, parts = io.BytesIO(), [b""] * count()
    torch.save(value, buffer)
    try:
        dist.all_gather_object(parts, buffer.getvalue())
    except RuntimeError as error:
        raise Interrupted("another process of this run has ended.", "Its own message says why.") from error
    return [torch.load(io.BytesIO(part), map_location=device, weights_only=False) for part in parts]


def gather(values: list[Value]) -> list[Value]:
    """Return the values that all processes of a run have collected, for a method that keeps some of its networks'.

    In a run of one process they are the same list. All processes must call it.
    """
    return [value for part in exchange(values) for value in part] if shares() else values


def agreed(function: Callable[[], Value], device: Any = "cpu") -> list[Value]:
    """Return what `function()` gives in every process; where it fails in one, raise its error in all of them."""
    failure: Exception | None = None
    value: Value | None = None
    try:
        value = function()
    except Exception as error:
        failure = error
    outcomes = exchange((value, _portable(failure)), device)
    if failure is not None:
        raise failure
    for _, other_failure in outcomes:
        if other_failure is not None:
            raise other_failure
    return [result for result, _ in outcomes]  # type: ignore[misc]


def first_alone(function: Callable[[], Value]) -> Value:
    """Return `function()`, which process 0 calls before the others: they find in the cache what it computed.

    Outside of a block of `sharing`, only one process may be here, and nobody waits.
    """
    if not shares():
        return function()
    own: list[Value] = []

    def first() -> None:
        if rank() == 0:
            own.append(function())

    with sharing(False):
        agreed(first)
        return own[0] if own else function()


def _portable(error: Exception | None) -> Exception | None:
    """Return an error that can be sent to another process."""
    if error is None or isinstance(error, DdbenchError):
        return error
    return DdbenchError(f"another process of this run failed: {type(error).__name__}: {error}.")
