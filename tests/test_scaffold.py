"""New packages: their files are sound, their plugin conforms and runs, and they install."""

import os
import tomllib
from pathlib import Path

import pytest

from ddbench.contract.component import KINDS
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError
from ddbench.scaffold import new_plugin
from ddbench.testing import conform, find


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "tracker"])
def test_a_new_plugin_conforms_and_runs(ddbench, tmp_path, kind):
    written = new_plugin("my_own", kind, tmp_path)
    package = written.folder / "ddbench_my_own"
    catalog = Catalog([package])
    assert not catalog.broken
    registered = {"tracker": "ddbench_my_own", "decoder": "my_own/v1"}
    thing = find(kind, registered.get(kind, "my_own"), catalog)
    assert [o for o in conform(thing, catalog) if o.status == "failed"] == []
    done = ddbench(*written.commands[2].split()[1:], "--plugin", package)
    assert done.code == 0, done.err


@pytest.mark.slow
def test_a_package_is_extended_by_modules(ddbench, tmp_path):
    assert ddbench("new-plugin", "one").code == 0
    project = tmp_path / "ddbench-one" / "pyproject.toml"
    # Formatting and comments of the author stay.
    project.write_text(project.read_text() + "# by hand\n")
    for name, kind in (("two", "method"), ("three", "network")):
        done = ddbench("new-plugin", name, "--kind", kind, "--into", "ddbench-one")
        assert done.code == 0, done.err
    points = tomllib.loads(project.read_text())["project"]["entry-points"]["ddbench"]
    assert points == {"one": "ddbench_one", "two": "ddbench_one.two", "three": "ddbench_one.three"}
    assert project.read_text().endswith("# by hand\n")
    assert "MethodTests" in (tmp_path / "ddbench-one/tests/test_two.py").read_text()
    assert sorted(path.name for path in tmp_path.glob("ddbench-*")) == ["ddbench-one"]
    listed = ddbench(
        "list",
        "methods",
        "--plugin",
        "ddbench_one",
        "--plugin",
        "ddbench_one.two",
        PYTHONPATH=os.pathsep.join(["ddbench-one", os.environ.get("PYTHONPATH", "")]),
    ).out
    assert "one " in listed and "two " in listed
    again = ddbench("new-plugin", "two", "--into", "ddbench-one")
    assert again.code == 2 and "two.py exists already" in again.message()


def test_a_folder_that_is_not_a_plugin_package_gets_a_new_one(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    assert new_plugin("one", "method", tmp_path).folder == tmp_path / "ddbench-one"


@pytest.mark.parametrize("name", ["My_method", "1st", "class", "a-b", "../up", ""])
def test_names_that_no_plugin_can_have(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be the name"):
        new_plugin(name, "method", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_taken(tmp_path):
    with pytest.raises(UsageError, match=r"there is a method 'herding' already \(ddbench "):
        new_plugin("herding", "method", tmp_path)
    assert new_plugin("herding", "init", tmp_path).folder.is_dir()


def test_nothing_is_overwritten(ddbench, tmp_path):
    first = ddbench("new-plugin", "mine", "--json")
    assert first.code == 0
    assert [Path(file).exists() or (tmp_path / file).exists() for file in first.json()["files"]] == [True] * 5
    (tmp_path / "ddbench-mine" / "README.md").write_text("my own words")
    again = ddbench("new-plugin", "mine")
    assert again.code == 2 and "exists already" in again.message()
    assert (tmp_path / "ddbench-mine" / "README.md").read_text() == "my own words"
    assert ddbench("new-plugin", "mine", "--kind", "thing").code == 2
