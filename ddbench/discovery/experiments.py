"""Named experiments: TOML files of plugins, read into a spec, a sweep and a published figure."""

import tomllib
from pathlib import Path
from typing import Any

import pydantic

from ddbench.contract.metric import Unit
from ddbench.contract.spec import Sweep
from ddbench.errors import PluginError


class Published(pydantic.BaseModel):
    """A published figure, a fraction if it is a share; it is never ranked with measured figures.

    Attributes:
        metric: name of the metric, as the objective gives it.
        unit: unit of the metric.
        mean: the published mean.
        std: the published standard deviation, or None.
        source: where it was published.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    metric: str
    unit: Unit = "share"
    mean: float
    std: float | None = None
    source: str


class Experiment(pydantic.BaseModel):
    """A run spec with a name.

    Attributes:
        name: the name on the command line.
        summary: one line.
        spec: fields of a `RunSpec`.
        sweep: the values to run it at, or None.
        published: the figure to compare with, or None.
        distribution: the package and version, or the file, of the plugin.
        path: the TOML file.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str
    spec: dict[str, Any]
    sweep: Sweep | None = None
    published: Published | None
    distribution: str
    path: Path


def read_experiment(path: Path, distribution: str) -> Experiment:
    """Read a TOML file of spec fields with `name`, `summary` and, optionally, `[published]` and `[sweep]`.

    Raises `PluginError` for a file that cannot be read or holds invalid fields.
    """
    try:
        fields = tomllib.loads(path.read_text())
        described = {key: fields.pop(key, None) for key in ("name", "summary", "published", "sweep")}
        described = {**described, "name": described["name"] or path.stem, "summary": described["summary"] or ""}
        return Experiment(**described, spec=fields, distribution=distribution, path=path)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, pydantic.ValidationError) as error:
        raise PluginError(f"experiment {path}: {error}.", "Correct the file.") from error
