"""The observers that plugins attach to one run, each isolated from the run and from the others."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.contract.observer import Observer, Reporter
from ddbench.discovery.calls import brief, call, trace
from ddbench.discovery.catalog import Catalog, Plugin

if TYPE_CHECKING:
    from ddbench.contract.plan import Plan
    from ddbench.records.result import RunResult


class Observers:
    """The observers of one run. The first failure of an observer is reported, and disables it for the run."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._observers: list[tuple[Plugin, Observer]] = []

    def attach(self, plugin: Plugin, observe: Callable[[], Any]) -> None:
        """Call `observe` and add the observer that it returns; None adds nothing."""
        try:
            observer = observe()
            if observer is None:
                return
            missing = [name for name in ("progress", "finished") if not callable(getattr(observer, name, None))]
            if missing:
                raise TypeError(f"{type(observer).__name__} has no {missing[0]}(); derive it from ddbench.Observer")
        except Exception as error:
            self._report(plugin, "ddbench_observe", error)
        else:
            self._observers.append((plugin, observer))

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Pass on what the method logged in outer step `step` of `total`."""
        self._each("progress", step, total, values)

    def finished(self, result: "RunResult") -> None:
        """Pass on the result of the run."""
        self._each("finished", result)

    def _each(self, event: str, *arguments: object) -> None:
        for entry in list(self._observers):
            plugin, observer = entry
            try:
                with trace(plugin.name, event):
                    getattr(observer, event)(*arguments)
            except Exception as error:
                self._observers.remove(entry)
                self._report(plugin, event, error)

    def _report(self, plugin: Plugin, event: str, error: Exception) -> None:
        self._reporter.say(f"{plugin.who} failed in {event} and is disabled for this run: {brief(error)}")


def observers(catalog: Catalog, plan: "Plan", folder: Path, reporter: Reporter) -> Observers:
    """Return the observers that the plugins attach to the run of `plan` in `folder`."""
    attached = Observers(reporter)
    for plugin, hook in catalog.hooks("ddbench_observe"):
        attached.attach(plugin, lambda hook=hook: call(hook, plan=plan, folder=folder))  # type: ignore[misc]
    return attached
