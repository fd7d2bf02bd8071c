"""Bytes that a function allocates, by a run with tensors that have shapes but no data."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def allocated(function: Callable[[], Any]) -> tuple[Any, int, int]:
    """Return the result of `function`, the bytes still held with it, and all bytes allocated on the way."""
    with _Allocations() as allocations:
        result = function()
    held = sum(size for storage, size in allocations.storages if not storage.expired())
    return result, held, sum(size for _, size in allocations.storages)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A list of every storage that operations allocate, with its bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                self.storages.append((StorageWeakRef(storage), tensor.nbytes))  # type: ignore[no-untyped-call]
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
