"""ddbench: a benchmark harness for dataset distillation. This module is the whole public API, loaded on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddbench.contract.component import BornLater as BornLater
    from ddbench.contract.component import Component as Component
    from ddbench.contract.component import component_of as component_of
    from ddbench.contract.component import dataset as dataset
    from ddbench.contract.component import decoder as decoder
    from ddbench.contract.component import did_you_mean as did_you_mean
    from ddbench.contract.component import init as init
    from ddbench.contract.component import launcher as launcher
    from ddbench.contract.component import method as method
    from ddbench.contract.component import modality as modality
    from ddbench.contract.component import network as network
    from ddbench.contract.component import objective as objective
    from ddbench.contract.component import target as target
    from ddbench.contract.examples import DatasetInfo as DatasetInfo
    from ddbench.contract.examples import ExampleSet as ExampleSet
    from ddbench.contract.examples import ExamplesRequest as ExamplesRequest
    from ddbench.contract.examples import ImageSplits as ImageSplits
    from ddbench.contract.examples import Splits as Splits
    from ddbench.contract.hookspecs import hookimpl as hookimpl
    from ddbench.contract.inits import InitRequest as InitRequest
    from ddbench.contract.inits import Side as Side
    from ddbench.contract.launch import Work as Work
    from ddbench.contract.metric import Metric as Metric
    from ddbench.contract.observer import Observer as Observer
    from ddbench.contract.plan import Plan as Plan
    from ddbench.contract.plan import RecipeRequest as RecipeRequest
    from ddbench.contract.presentation import Presentation as Presentation
    from ddbench.contract.run import Run as Run
    from ddbench.contract.sets import DistilledSet as DistilledSet
    from ddbench.contract.spec import RunSpec as RunSpec
    from ddbench.contract.spec import Settings as Settings
    from ddbench.contract.state import State as State
    from ddbench.contract.stored_images import StoredImages as StoredImages
    from ddbench.contract.task import AdaptationTarget as AdaptationTarget
    from ddbench.contract.task import Budget as Budget
    from ddbench.contract.task import Loss as Loss
    from ddbench.contract.task import Objective as Objective
    from ddbench.contract.task import Task as Task
    from ddbench.discovery.catalog import Catalog as Catalog
    from ddbench.discovery.decoders import decode as decode
    from ddbench.errors import DdbenchError as DdbenchError
    from ddbench.errors import MissingPrerequisite as MissingPrerequisite
    from ddbench.errors import Unsupported as Unsupported
    from ddbench.errors import UsageError as UsageError
    from ddbench.machine.folders import data_dir as data_dir
    from ddbench.pipeline.dry_run import dry_run as dry_run
    from ddbench.pipeline.evaluate import evaluate as evaluate
    from ddbench.pipeline.pretrain import pretrain as pretrain
    from ddbench.pipeline.runner import resume as resume
    from ddbench.pipeline.runner import run as run
    from ddbench.pipeline.suite import run_suite as run_suite
    from ddbench.pipeline.sweep import sweep as sweep
    from ddbench.records.leaderboard import load_leaderboard as load_leaderboard
    from ddbench.records.result import RunResult as RunResult

_HOME_OF = {
    "Catalog": "discovery.catalog",
    "DatasetInfo": "contract.examples",
    "DistilledSet": "contract.sets",
    "ExampleSet": "contract.examples",
    "ExamplesRequest": "contract.examples",
    "ImageSplits": "contract.examples",
    "Splits": "contract.examples",
    "Presentation": "contract.presentation",
    "data_dir": "machine.folders",
    "DdbenchError": "errors",
    "MissingPrerequisite": "errors",
    "Unsupported": "errors",
    "UsageError": "errors",
    "hookimpl": "contract.hookspecs",
    "InitRequest": "contract.inits",
    "Side": "contract.inits",
    "State": "contract.state",
    "load_leaderboard": "records.leaderboard",
    "Metric": "contract.metric",
    "Work": "contract.launch",
    "Observer": "contract.observer",
    "Run": "contract.run",
    "BornLater": "contract.component",
    "Component": "contract.component",
    "component_of": "contract.component",
    "dataset": "contract.component",
    "decode": "discovery.decoders",
    "decoder": "contract.component",
    "did_you_mean": "contract.component",
    "init": "contract.component",
    "launcher": "contract.component",
    "method": "contract.component",
    "modality": "contract.component",
    "network": "contract.component",
    "objective": "contract.component",
    "target": "contract.component",
    "RunResult": "records.result",
    "dry_run": "pipeline.dry_run",
    "evaluate": "pipeline.evaluate",
    "pretrain": "pipeline.pretrain",
    "resume": "pipeline.runner",
    "run": "pipeline.runner",
    "run_suite": "pipeline.suite",
    "sweep": "pipeline.sweep",
    "Plan": "contract.plan",
    "RecipeRequest": "contract.plan",
    "RunSpec": "contract.spec",
    "Settings": "contract.spec",
    "StoredImages": "contract.stored_images",
    "AdaptationTarget": "contract.task",
    "Budget": "contract.task",
    "Loss": "contract.task",
    "Objective": "contract.task",
    "Task": "contract.task",
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
