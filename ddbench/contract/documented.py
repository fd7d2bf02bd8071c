"""Docstrings of pydantic models that name their fields, for `help()`."""

from typing import TypeVar

import pydantic

Model = TypeVar("Model", bound=pydantic.BaseModel)


def with_fields(model: type[Model]) -> type[Model]:
    """Add the fields of a model, with their descriptions, to its docstring."""
    lines = [
        f"        {name}: {field.description or name.replace('_', ' ')}." for name, field in model.model_fields.items()
    ]
    model.__doc__ = "\n".join([(model.__doc__ or "").rstrip(), "", "    Attributes:", *lines, "    "])
    return model
