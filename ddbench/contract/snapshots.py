"""Snapshots: copies of a loop's state and of the states of all random generators, to be restored later."""

import copy
import io
import pickle
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench.errors import PluginError


def check_state(state: Mapping[str, object]) -> None:
    """Raise `PluginError` for a state that holds anything but tensors and objects with a state dict."""
    for name, entry in state.items():
        if not isinstance(entry, Tensor) and not (hasattr(entry, "state_dict") and hasattr(entry, "load_state_dict")):
            raise PluginError(
                f"the loop's state {name!r} is a {type(entry).__name__}, which cannot be restored.",
                "Give tensors, or objects with state_dict and load_state_dict.",
            )


def check_readable(state: Mapping[str, Any]) -> None:
    """Raise `PluginError` for a state that could not be read from a checkpoint without running code.

    It is checked when the loop starts, so that a run does not fail hours later.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError as error:
        raise PluginError(
            "the loop's state holds objects that cannot be restored from a checkpoint.",
            "Its state_dict may hold tensors, numbers, text, and lists and dicts of them.",
        ) from error


def copy_entry(entry: object) -> Any:
    """Return a copy of a tensor, or of an object's state dict."""
    return copy_tree(entry if isinstance(entry, Tensor) else entry.state_dict())  # type: ignore[attr-defined]


def copy_tree(tree: Any) -> Any:
    """Return a deep copy whose tensors share no memory with the original and carry no graph."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: copy_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(copy_tree(value) for value in tree)
    return copy.deepcopy(tree)


def restore_entries(saved: Mapping[str, Any], state: Mapping[str, object]) -> None:
    """Restore every entry of `state` from the copies in `saved`, tensors in place.

    Raises `PluginError` where they are not of the same names.
    """
    if state.keys() != saved.keys():
        raise PluginError(
            f"the checkpoint holds {sorted(saved)}, the method's state is {sorted(state)}.",
            "The method has changed since the run was started: start it anew.",
        )
    for name, entry in state.items():
        if isinstance(entry, Tensor):
            with torch.no_grad():
                entry.copy_(saved[name])
        else:
            entry.load_state_dict(copy_tree(saved[name]))  # type: ignore[attr-defined]


def finite(state: Mapping[str, object]) -> bool:
    """Return whether every tensor of the state is finite, including those in a `state_dict`."""
    trees = [entry if isinstance(entry, Tensor) else entry.state_dict() for entry in state.values()]  # type: ignore[attr-defined]
    return all(bool(torch.isfinite(tensor).all()) for tree in trees for tensor in _tensors(tree))


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def generator_states(own: torch.Generator) -> dict[str, Any]:
    """Return the states of a run's own generator and of the global ones of torch, numpy and Python."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "own": own.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": random.getstate(),
    }


def set_generator_states(own: torch.Generator, saved: Mapping[str, Any]) -> None:
    """Restore the states that `generator_states` returned."""
    own.set_state(saved["own"])
    torch.set_rng_state(saved["torch"])
    if saved["cuda"]:
        torch.cuda.set_rng_state_all(saved["cuda"])
    kind, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    random.setstate(saved["python"])
