"""Describe a run without carrying it out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from ddbench.contract.spec import RunSpec, Settings
from ddbench.discovery.catalog import Catalog
from ddbench.errors import MissingPrerequisite
from ddbench.machine.environment import resolve_device
from ddbench.pipeline.plan import plan_run, reason_to_skip
from ddbench.pipeline.prepare import prepare
from ddbench.pipeline.runner import as_spec
from ddbench.records import store
from ddbench.records.result import DatasetRecord


class DryRun(pydantic.BaseModel):
    """The description of a run that was not carried out.

    Attributes:
        settings: the complete spec.
        fingerprint: the hash of the settings.
        run_dir: the folder that the run would make.
        leaderboard: the file that its row would go to; None for a smoke run.
        dataset: the facts about the data; None if they are not on this machine yet.
        peak_memory: the bytes that the method predicts; None if it predicts none or the data are missing.
        memory_mode: how the method would use the memory; empty if `peak_memory` is None.
        missing: a sentence for each thing that the run would have to fetch or train first.
        recipe: the options that the method's recipe has set, with their source; empty for none.
        skipped: the reason why the run would be skipped; empty where it would not.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    settings: Settings
    fingerprint: str
    run_dir: Path
    leaderboard: Path | None
    dataset: DatasetRecord | None
    peak_memory: int | None
    memory_mode: str
    missing: tuple[str, ...]
    recipe: str = ""
    skipped: str = ""


def dry_run(
    spec: RunSpec | Settings | Mapping[str, Any],
    *,
    catalog: Catalog | None = None,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
) -> DryRun:
    """Describe the run that `run` would carry out with the same arguments; nothing is written, fetched or trained.

    Raises `DdbenchError` if the run could not begin for another reason than missing data or networks.
    """
    catalog = catalog or Catalog()
    plan = plan_run(spec if isinstance(spec, Settings) else as_spec(spec, catalog), catalog)
    settings = plan.settings
    # A device that does not exist is no data to fetch.
    resolve_device(settings.device)
    dataset, predicted, missing = None, None, []
    skipped = reason_to_skip(plan)
    if not skipped:
        try:
            prepared = prepare(plan, catalog, download=False)
            dataset = prepared.record
            predicted = prepared.peak_memory(plan.method, settings.method.options)
            prepared.train_needs(plan.method, settings.method.options)
        except MissingPrerequisite as error:
            missing.append(error.message)
    peak, mode = predicted or (None, "")
    return DryRun(
        settings=settings,
        fingerprint=settings.fingerprint,
        run_dir=runs / settings.run_id,
        leaderboard=None if settings.smoke else store.path_for(leaderboards, settings),
        dataset=dataset,
        peak_memory=peak,
        memory_mode=mode,
        missing=tuple(missing),
        recipe=plan.recipe_text,
        skipped=skipped,
    )
