"""ddbench: a benchmark harness for dataset distillation. This module is the whole public API, loaded on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddbench.catalog import Catalog
    from ddbench.data import DatasetInfo, DistilledSet, ExampleSet, ImageSplits
    from ddbench.environment import data_dir
    from ddbench.errors import DdbenchError, MissingPrerequisite, Unsupported, UsageError
    from ddbench.hookspecs import hookimpl
    from ddbench.loop import Run
    from ddbench.options import (
        Component,
        component_of,
        dataset,
        did_you_mean,
        init,
        method,
        network,
        objective,
        target,
    )
    from ddbench.results import RunResult
    from ddbench.runner import run
    from ddbench.spec import RunSpec
    from ddbench.task import AdaptationTarget, Budget, Objective, Task

_HOMES = {
    "catalog": ["Catalog"],
    "data": ["DatasetInfo", "DistilledSet", "ExampleSet", "ImageSplits"],
    "environment": ["data_dir"],
    "errors": ["DdbenchError", "MissingPrerequisite", "Unsupported", "UsageError"],
    "hookspecs": ["hookimpl"],
    "loop": ["Run"],
    "options": [
        "Component",
        "component_of",
        "dataset",
        "did_you_mean",
        "init",
        "method",
        "network",
        "objective",
        "target",
    ],
    "results": ["RunResult"],
    "runner": ["run"],
    "spec": ["RunSpec"],
    "task": ["AdaptationTarget", "Budget", "Objective", "Task"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ddbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ddbench.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
