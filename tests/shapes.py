"""The type checker that pytest switches on for the whole package: shapes and types of tensors, and nothing else.

Other annotations are mypy's: many name things that exist for the type checker only, which beartype cannot resolve.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import jaxtyping
from beartype import beartype

Function = TypeVar("Function", bound=Callable[..., Any])


def check(function: Function) -> Function:
    """Return `function` with its jaxtyping annotations checked; jaxtyping calls this with a copy of each signature."""
    tensors = {name: hint for name, hint in function.__annotations__.items() if _mentions_tensor(hint)}
    function.__annotations__ = tensors
    return beartype(function) if tensors else function


def _mentions_tensor(hint: object) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_mentions_tensor(part) for part in get_args(hint))
