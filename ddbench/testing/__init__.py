"""The conformance kit: what the harness expects of each kind of plugin, as tests of an author's own package.

May import: `ddbench` itself, pipeline, records, protocols, discovery, modalities, engine, contract, machine and
errors.
Imported by: cli; plugins in their own tests.

    from ddbench.testing import MethodTests

    class TestMine(MethodTests):
        name = "mine"

gives a test for each check; `ddbench check mine` carries out the same checks without pytest.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ddbench.contract.component import KINDS, Component
from ddbench.discovery.catalog import Catalog, Experiment, Plugin
from ddbench.errors import UsageError
from ddbench.testing.checks import Check, Failed, Outcome, Skipped, Subject, carry_out, kind_of, outcome
from ddbench.testing.decoders import DECODER
from ddbench.testing.experiments import EXPERIMENT
from ddbench.testing.inits import INIT, TARGET
from ddbench.testing.methods import METHOD
from ddbench.testing.modalities import MODALITY
from ddbench.testing.parts import DATASET, NETWORK, OBJECTIVE
from ddbench.testing.trackers import TRACKER

__all__ = [
    "CHECKS", "DatasetTests", "DecoderTests", "ExperimentTests", "Failed", "InitTests", "MethodTests",
    "ModalityTests", "NetworkTests", "ObjectiveTests",
    "Outcome", "Skipped", "Subject", "TargetTests", "TrackerTests", "conform", "find",
]  # fmt: skip

CHECKS: Mapping[str, Sequence[Check]] = {
    "method": METHOD,
    "init": INIT,
    "objective": OBJECTIVE,
    "target": TARGET,
    "dataset": DATASET,
    "network": NETWORK,
    "decoder": DECODER,
    "modality": MODALITY,
    "experiment": EXPERIMENT,
    "tracker": TRACKER,
}
"""The checks of each kind of plugin."""


def find(kind: str, name: str, catalog: Catalog) -> Component | Experiment | Plugin:
    """Return what is called `name`: a component, an experiment, or the plugin of a tracker.

    Raises `UsageError` for an unknown name.
    """
    if kind in KINDS:
        return catalog.get(kind, name)
    if kind == "experiment":
        return catalog.experiment(name)
    trackers = {plugin.name: plugin for plugin, _ in catalog.hooks("ddbench_observe")}
    if name not in trackers:
        raise UsageError(
            f"there is no tracker {name!r}; the loaded ones are: {', '.join(trackers) or 'none'}.",
            "Load the plugin that offers it: --plugin PATH.",
        )
    return trackers[name]


def kinds_of(name: str, catalog: Catalog) -> list[str]:
    """Return the kinds that have something called `name`."""
    kinds = [kind for kind in KINDS if any(c.name == name for c in catalog.components(kind))]
    kinds += ["experiment"] * any(experiment.name == name for experiment in catalog.experiments())
    kinds += ["tracker"] * any(plugin.name == name for plugin, _ in catalog.hooks("ddbench_observe"))
    return kinds


def conform(thing: Component | Experiment | Plugin, catalog: Catalog) -> Iterator[Outcome]:
    """Carry out every check of a component, an experiment or a tracker; nothing is left in the user's cache."""
    with tempfile.TemporaryDirectory() as cache:
        for check in CHECKS[kind_of(thing)]:
            with tempfile.TemporaryDirectory() as folder:
                yield outcome(check, Subject(thing, catalog, Path(folder), Path(cache)))


class _Tests:
    """A test for each check of a kind; `name` is that of the plugin, `plugins` are files to load besides."""

    name: ClassVar[str]
    plugins: ClassVar[Sequence[Path]] = ()
    kind: ClassVar[str]


def _test(check: Check) -> Any:
    def test(self: _Tests, tmp_path: Path) -> None:
        import pytest

        catalog = Catalog(list(self.plugins))
        try:
            carry_out(check, Subject(find(self.kind, self.name, catalog), catalog, tmp_path))
        except Skipped as reason:
            pytest.skip(str(reason))

    test.__name__, test.__doc__ = f"test_{check.__name__}", check.__doc__
    return test


def _tests(kind: str, name: str) -> type[_Tests]:
    tests = {f"test_{check.__name__}": _test(check) for check in CHECKS[kind]}
    article = "an" if kind[0] in "eio" else "a"
    documentation = f"Tests of {article} {kind}: set `name`."
    return type(name, (_Tests,), {"kind": kind, "__doc__": documentation, "__module__": __name__, **tests})


MethodTests = _tests("method", "MethodTests")
InitTests = _tests("init", "InitTests")
ObjectiveTests = _tests("objective", "ObjectiveTests")
TargetTests = _tests("target", "TargetTests")
DatasetTests = _tests("dataset", "DatasetTests")
NetworkTests = _tests("network", "NetworkTests")
DecoderTests = _tests("decoder", "DecoderTests")
ModalityTests = _tests("modality", "ModalityTests")
ExperimentTests = _tests("experiment", "ExperimentTests")
TrackerTests = _tests("tracker", "TrackerTests")
