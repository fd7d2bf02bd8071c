"""The conformance kit: what the harness expects of each kind of plugin, as tests of an author's own package.

    from ddbench.testing import MethodTests

    class TestMine(MethodTests):
        name = "mine"

gives a test for each check; `ddbench check mine` carries out the same ones without pytest.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ddbench.contract.component import Component
from ddbench.discovery.catalog import Catalog
from ddbench.testing.checks import Check, Failed, Outcome, Skipped, Subject, outcome, restored_globals
from ddbench.testing.methods import METHOD
from ddbench.testing.parts import DATASET, INIT, NETWORK, OBJECTIVE, TARGET

__all__ = [
    "CHECKS", "DatasetTests", "Failed", "InitTests", "MethodTests", "NetworkTests", "ObjectiveTests", "Outcome",
    "Skipped", "Subject", "TargetTests", "conform",
]  # fmt: skip

CHECKS: Mapping[str, Sequence[Check]] = {
    "method": METHOD,
    "init": INIT,
    "objective": OBJECTIVE,
    "target": TARGET,
    "dataset": DATASET,
    "network": NETWORK,
}
"""What is checked of each kind of component."""


def conform(component: Component, catalog: Catalog) -> Iterator[Outcome]:
    """Carry out every check of a component's kind, one after the other."""
    for check in CHECKS[component.kind]:
        with tempfile.TemporaryDirectory() as folder:
            yield outcome(check, Subject(component, catalog, Path(folder)))


class _Tests:
    """A test for each check of a kind; `name` is the component's, `plugins` are files to load beside the installed."""

    name: ClassVar[str]
    plugins: ClassVar[Sequence[Path]] = ()
    kind: ClassVar[str]


def _test(check: Check) -> Any:
    def test(self: _Tests, tmp_path: Path) -> None:
        import pytest

        catalog = Catalog(list(self.plugins))
        try:
            with restored_globals():
                check(Subject(catalog.get(self.kind, self.name), catalog, tmp_path))
        except Skipped as reason:
            pytest.skip(str(reason))

    test.__name__, test.__doc__ = f"test_{check.__name__}", check.__doc__
    return test


def _tests(kind: str, name: str) -> type[_Tests]:
    tests = {f"test_{check.__name__}": _test(check) for check in CHECKS[kind]}
    return type(
        name, (_Tests,), {"kind": kind, "__doc__": f"Tests of a {kind}: set `name`.", "__module__": __name__, **tests}
    )


MethodTests = _tests("method", "MethodTests")
InitTests = _tests("init", "InitTests")
ObjectiveTests = _tests("objective", "ObjectiveTests")
TargetTests = _tests("target", "TargetTests")
DatasetTests = _tests("dataset", "DatasetTests")
NetworkTests = _tests("network", "NetworkTests")
