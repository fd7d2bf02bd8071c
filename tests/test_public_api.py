"""`help()` of a public class explains each of its fields."""

import ast
import dataclasses
import inspect
import textwrap

import pydantic
import pytest

import ddbench

CLASSES = [name for name in ddbench.__all__ if inspect.isclass(getattr(ddbench, name))]


def fields_of(cls: type) -> set[str]:
    """Return the public fields of a class, and the attributes that its `__init__` sets."""
    if issubclass(cls, pydantic.BaseModel):
        return set(cls.model_fields)
    if dataclasses.is_dataclass(cls):
        return {field.name for field in dataclasses.fields(cls) if not field.name.startswith("_")}
    if "__init__" not in vars(cls):
        return set()
    [init] = ast.parse(textwrap.dedent(inspect.getsource(cls.__init__))).body
    targets = [
        t
        for n in ast.walk(init)
        if isinstance(n, ast.Assign | ast.AnnAssign)
        for t in getattr(n, "targets", None) or [n.target]
    ]
    flat = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return {part.attr for part in flat if isinstance(part, ast.Attribute) and not part.attr.startswith("_")}


@pytest.mark.parametrize("name", CLASSES)
def test_the_docstring_of_a_class_explains_its_fields(name: str):
    cls = getattr(ddbench, name)
    documented = inspect.getdoc(cls) or ""
    missing = [field for field in sorted(fields_of(cls)) if f"\n    {field}: " not in documented]
    assert not missing


def test_the_test_sees_fields_of_every_sort():
    assert {"train", "budget"} <= fields_of(ddbench.Task)
    assert {"device", "method"} <= fields_of(ddbench.RunSpec)
    assert {"seed", "generator", "share_done"} <= fields_of(ddbench.Run)
    assert {"message", "hint"} == fields_of(ddbench.DdbenchError)
