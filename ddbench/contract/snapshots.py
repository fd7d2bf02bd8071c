"""The state of a loop and of every random generator: what can be kept, copied and given back."""

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
    for name, thing in state.items():
        if not isinstance(thing, Tensor) and not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
            raise PluginError(
                f"the loop's state {name!r} is a {type(thing).__name__}, which cannot be restored.",
                "Give tensors, or objects with state_dict and load_state_dict.",
            )


def check_readable(state: Mapping[str, Any]) -> None:
    """What is written must be readable again without running code; better to know at the start than after hours."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError as error:
        raise PluginError(
            "the loop's state holds objects that a checkpoint cannot give back.",
            "Its state_dict may hold tensors, numbers, text, and lists and dicts of them.",
        ) from error


def copied(thing: object) -> Any:
    """A tensor, or an object's state dict, copied whole."""
    return copied_tree(thing if isinstance(thing, Tensor) else thing.state_dict())  # type: ignore[attr-defined]


def copied_tree(tree: Any) -> Any:
    """A deep copy whose tensors share nothing with the original and carry no graph."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: copied_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(copied_tree(value) for value in tree)
    return copy.deepcopy(tree)


def finite(state: Mapping[str, object]) -> bool:
    """Whether every tensor of the state, those inside `state_dict` included, is finite."""
    trees = [thing if isinstance(thing, Tensor) else thing.state_dict() for thing in state.values()]  # type: ignore[attr-defined]
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


def global_generators() -> dict[str, Any]:
    """The state of the global generators of torch, numpy and python."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": random.getstate(),
    }


def set_global_generators(saved: Mapping[str, Any]) -> None:
    """Put the global generators back to where `global_generators` found them."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"]:
        torch.cuda.set_rng_state_all(saved["cuda"])
    kind, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    random.setstate(saved["python"])
