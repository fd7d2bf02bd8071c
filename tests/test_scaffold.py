"""New packages: their files are sound, their plugin conforms and runs, and they install."""

from pathlib import Path

import pytest

from ddbench.contract.component import KINDS
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError
from ddbench.scaffold import new_plugin
from ddbench.testing import conform


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_conforms_and_runs(ddbench, tmp_path, kind):
    made = new_plugin("my_own", kind, tmp_path)
    module = made.folder / "ddbench_my_own" / "__init__.py"
    catalog = Catalog([module])
    assert not catalog.broken
    assert [o for o in conform(catalog.get(kind, "my_own"), catalog) if o.status == "failed"] == []
    done = ddbench(*made.commands[2].split()[1:], "--plugin", module)
    assert done.code == 0, done.err


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
    assert again.code == 2 and "is there already" in again.told()
    assert (tmp_path / "ddbench-mine" / "README.md").read_text() == "my own words"
    assert ddbench("new-plugin", "mine", "--kind", "thing").code == 2
