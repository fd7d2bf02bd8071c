"""Checks of trackers: plugins that observe runs. Each check carries out small runs of the digits."""

import contextlib
from collections.abc import Sequence

from ddbench.contract.observer import Silent
from ddbench.discovery.catalog import Catalog, Plugin
from ddbench.errors import DdbenchError, Interrupted
from ddbench.pipeline.runner import resume, run
from ddbench.records.result import RunFolder, RunResult
from ddbench.testing.checks import Check, Failed, Subject

_ENDS = "ddbench.testing.ends"


class _Lines(Silent):
    """A reporter that keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Keep the line."""
        self.lines.append(text)


def _run(subject: Subject, end: str, *, observed: bool = True) -> RunResult:
    """Carry out a run that ends in one way; return its result.

    Raises `Failed` if the tracker does.
    """
    plugin = _plugin(subject)
    catalog = Catalog([*subject.catalog.named, _ENDS])
    if not observed:
        catalog.plugins = [other for other in catalog.plugins if other.name != plugin.name]
    folder = subject.folder / (end if observed else f"{end}-alone")
    folder.mkdir()
    spec = {"method": {"name": "ends", "options": {"end": end}}, "network": "linear", "eval_networks": 2, "smoke": True}
    lines = _Lines()
    places = {"leaderboards": folder / "leaderboards", "catalog": catalog, "reporter": lines}
    # A tracker may write to the working folder, such as a database; not to that of the user who checks it.
    with contextlib.chdir(folder):
        result: RunResult | None = None
        try:
            result = run(spec, runs=folder / "runs", **places)  # type: ignore[arg-type]
        except Interrupted:
            _check(plugin, lines, f"of a run that is {end}")
            [path] = (folder / "runs").iterdir()
            result = resume(path, **places)  # type: ignore[arg-type]
        except DdbenchError:
            if end != "failed":
                raise
            [path] = (folder / "runs").iterdir()
            result = RunFolder(path).read_result()
    _check(plugin, lines, f"of a run that is {end}" if end != "interrupted" else "of a run that is resumed")
    assert result is not None
    return result


def _plugin(subject: Subject) -> Plugin:
    assert isinstance(subject.thing, Plugin)
    return subject.thing


def _check(plugin: Plugin, lines: _Lines, where: str) -> None:
    """Raise `Failed` if the harness disabled the tracker."""
    failures = [line for line in lines.lines if line.startswith(f"{plugin.who} failed")]
    if failures:
        raise Failed(f"{where}: {failures[0]}.", "See the traceback: DDBENCH_TRACE=1 prints each call.")


def observes_every_end(subject: Subject) -> None:
    """Require that the tracker raises in no run that succeeds, is skipped or fails."""
    for end in ("ok", "skipped", "failed"):
        _run(subject, end)


def continues_a_resumed_run(subject: Subject) -> None:
    """Require that the tracker raises neither in a run that is interrupted nor when that run is resumed."""
    _run(subject, "interrupted")


def leaves_the_run_alone(subject: Subject) -> None:
    """Require the same distilled set and scores with and without the tracker."""
    observed, alone = _run(subject, "ok"), _run(subject, "ok", observed=False)
    assert observed.artifact is not None and alone.artifact is not None
    if observed.artifact.sha256 != alone.artifact.sha256 or observed.scores != alone.scores:
        raise Failed(
            "a run that it observes gives another result.", "Draw no random numbers, and do not change `values`."
        )


TRACKER: Sequence[Check] = (observes_every_end, continues_a_resumed_run, leaves_the_run_alone)
