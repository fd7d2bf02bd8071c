"""Suites: TOML files of tasks and methods, read into specs for every method, task and seed."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

from ddbench.contract.component import did_you_mean
from ddbench.contract.spec import RunSpec
from ddbench.errors import PluginError, UsageError

_OWN = ("seeds", "experiment")
_NOT_OF_A_TASK = ("method", "seed", "smoke", "device", "split", "trials")


def _from_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class SuiteTask(pydantic.BaseModel):
    """A task of a suite: what is distilled, for which network, how it is scored, and what it may cost.

    Attributes:
        name: the name of the task in the suite.
        spec: fields of a `RunSpec`, without method and seed.
        seeds: the seeds that each method is run with.
        experiment: a named experiment, whose fields the task takes, and whose options its method takes; empty for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    spec: dict[str, Any]
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    experiment: str = ""


class Suite(pydantic.BaseModel):
    """Tasks that methods are compared on.

    Attributes:
        name: the name on the command line.
        summary: one line.
        methods: the methods that the suite compares where none are named.
        reference: the companion of random real images that gains are measured over.
        machine: the class of machine that time limits are meant for, such as `cpu, 2 threads`; empty for any.
        options: options of methods that differ from their recipes and defaults, by method.
        tasks: the tasks.
        distribution: the package and version, or the file, of the plugin.
        path: the TOML file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str
    methods: tuple[Annotated[str, BeforeValidator(str)], ...] = Field(min_length=1)
    reference: str
    machine: str = ""
    options: dict[str, dict[str, Any]] = {}
    tasks: tuple[SuiteTask, ...] = Field(min_length=1)
    distribution: str = ""
    path: Path


def read_suite(path: Path, distribution: str = "") -> Suite:
    """Read a TOML file: `summary`, `methods`, `reference`, fields shared in `[task]`, and a table per `[tasks.NAME]`.

    Raises `PluginError` for a file that cannot be read or holds invalid fields.
    """
    try:
        fields = tomllib.loads(path.read_text())
        shared, tables = fields.pop("task", {}), fields.pop("tasks", {})
        tasks = [_task(name, {**shared, **table}) for name, table in tables.items()]
        named = {"name": path.stem, "summary": "", **fields}
        return Suite(**named, tasks=tuple(tasks), distribution=distribution or str(path), path=path)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise PluginError(f"suite {path}: {where}: {what}.", "Correct the file.") from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise PluginError(f"suite {path}: {str(error).rstrip('.')}.", "Correct the file.") from error


def _task(name: str, fields: dict[str, Any]) -> SuiteTask:
    known = [key for key in (*RunSpec.model_fields, *_OWN) if key not in _NOT_OF_A_TASK]
    for key in fields:
        if key not in known:
            raise ValueError(f"task {name!r} has the field {key!r}, which no task has.{did_you_mean(key, known)}")
    own = {key: fields.pop(key) for key in _OWN if key in fields}
    try:
        RunSpec.parse({**fields, "method": "any"})
    except UsageError as error:
        raise ValueError(f"task {name!r}: {error.message}") from error
    return SuiteTask(name=name, spec=fields, **own)
