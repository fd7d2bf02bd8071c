"""ddbench: a benchmark harness for dataset distillation. This module is the whole public API, loaded on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddbench.catalog import Catalog as Catalog
    from ddbench.data import DatasetInfo as DatasetInfo
    from ddbench.data import DistilledSet as DistilledSet
    from ddbench.data import ExampleSet as ExampleSet
    from ddbench.data import ImageSplits as ImageSplits
    from ddbench.environment import data_dir as data_dir
    from ddbench.errors import DdbenchError as DdbenchError
    from ddbench.errors import MissingPrerequisite as MissingPrerequisite
    from ddbench.errors import Unsupported as Unsupported
    from ddbench.errors import UsageError as UsageError
    from ddbench.hookspecs import hookimpl as hookimpl
    from ddbench.leaderboard import load_leaderboard as load_leaderboard
    from ddbench.loop import Run as Run
    from ddbench.options import Component as Component
    from ddbench.options import component_of as component_of
    from ddbench.options import dataset as dataset
    from ddbench.options import did_you_mean as did_you_mean
    from ddbench.options import init as init
    from ddbench.options import method as method
    from ddbench.options import network as network
    from ddbench.options import objective as objective
    from ddbench.options import target as target
    from ddbench.results import RunResult as RunResult
    from ddbench.runner import run as run
    from ddbench.spec import RunSpec as RunSpec
    from ddbench.task import AdaptationTarget as AdaptationTarget
    from ddbench.task import Budget as Budget
    from ddbench.task import Objective as Objective
    from ddbench.task import Task as Task

_HOME_OF = {
    "Catalog": "catalog",
    "DatasetInfo": "data",
    "DistilledSet": "data",
    "ExampleSet": "data",
    "ImageSplits": "data",
    "data_dir": "environment",
    "DdbenchError": "errors",
    "MissingPrerequisite": "errors",
    "Unsupported": "errors",
    "UsageError": "errors",
    "hookimpl": "hookspecs",
    "load_leaderboard": "leaderboard",
    "Run": "loop",
    "Component": "options",
    "component_of": "options",
    "dataset": "options",
    "did_you_mean": "options",
    "init": "options",
    "method": "options",
    "network": "options",
    "objective": "options",
    "target": "options",
    "RunResult": "results",
    "run": "runner",
    "RunSpec": "spec",
    "AdaptationTarget": "task",
    "Budget": "task",
    "Objective": "task",
    "Task": "task",
}

__all__ = list(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ddbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ddbench.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
