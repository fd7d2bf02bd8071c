"""Leaderboards as they are read: one record by name, all records as a table, and figures published elsewhere."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic
from pydantic import ConfigDict

from ddbench.contract.metric import Unit
from ddbench.errors import UsageError
from ddbench.records.columns import COLUMNS
from ddbench.records.result import RunResult
from ddbench.records.store import PUBLISHED, foreign, read, read_text

if TYPE_CHECKING:
    from pandas import DataFrame


def find(leaderboards: Path, name: str, *, any_seed: bool = False) -> RunResult:
    """Return the record of a run (its folder or name), or the one whose name or fingerprint begins with `name`.

    With `any_seed`, the first of several records that differ in their seed alone. Raises `UsageError` for none or
    several.
    """
    from ddbench.records.ranking import but_seed

    name = Path(name).name
    records = read(leaderboards)
    records = [record for record in records if record.run_id == name] or [
        record for record in records if name and (record.run_id.startswith(name) or record.fingerprint.startswith(name))
    ]
    if any_seed and len({but_seed(record) for record in records}) == 1:
        return records[0]
    if len(records) != 1:
        raise UsageError(
            f"{len(records) or 'no'} records in {leaderboards} are called {name!r}.",
            "Give a run from `ddbench leaderboard`, or the beginning of its name or fingerprint.",
        )
    return records[0]


def load_leaderboard(folder: str | Path = "leaderboards") -> "DataFrame":
    """Return the records of all leaderboards in `folder` as a pandas table, one row each, with the CSVs' columns.

    Cells that hold JSON in a CSV (values, companions, other metrics, options, environment) are lists and mappings.
    Raises `DdbenchError` naming the file that is invalid.
    """
    import pandas

    rows = [[column.get(record) for column in COLUMNS] for record in read(Path(folder))]
    return pandas.DataFrame(rows, columns=[column.name for column in COLUMNS])


class PublishedRow(pydantic.BaseModel):
    """A figure as its source reports it; ddbench did not measure it.

    Attributes:
        method: the method.
        dataset: the dataset.
        images_per_class: images per class (IPC).
        network: the network that scored.
        setting: the setting of the source, in words.
        metric: the metric.
        unit: `share` for a fraction; empty for a plain number.
        mean: the mean.
        std: the standard deviation; None where the source gives none.
        source: where it was published.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    dataset: str
    images_per_class: int
    network: str
    setting: str
    metric: str
    unit: Unit = "share"
    mean: pydantic.FiniteFloat
    std: pydantic.FiniteFloat | None
    source: str


def published(folder: Path) -> list[PublishedRow]:
    """Return the figures of `published.csv`, which are never ranked with measured ones. Raises `DdbenchError`."""
    path = folder / PUBLISHED
    text = read_text(path)
    try:
        lines = csv.DictReader(io.StringIO(text), strict=True)
        return [PublishedRow.model_validate({**line, "std": line["std"] or None}) for line in lines]
    except (csv.Error, KeyError, TypeError, pydantic.ValidationError) as error:
        raise foreign(path, "it does not hold published figures") from error
