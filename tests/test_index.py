"""The index: what list, show and plugins print without loading a plugin, and when it is built again."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from ddbench.discovery import index
from ddbench.discovery.index import Entry
from ddbench.render.cards import print_line

pytestmark = pytest.mark.usefixtures("cold_cache")
METHOD = """
import ddbench

@ddbench.method
def NAME(task, run, *, size: int = 3):
    "Random images, for a test."

@ddbench.hookimpl
def ddbench_methods():
    return [NAME]
"""


def names(paths: list[Path]) -> set[str] | None:
    """Return the methods of the stored index, or None if it is stale."""
    stored = index.stored(paths)
    return None if stored is None else {entry.name for entry in stored.of_kind("method")}


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(METHOD.replace("NAME", "mine"))
    return path


def test_an_index_holds_what_a_catalog_does(plugin: Path):
    assert index.stored([plugin]) is None
    built = index.build([Entry(kind="protocol", name="p/v1", summary="A protocol", source="ddbench")], [plugin])
    assert index.stored([plugin]) == built
    [entry] = [entry for entry in built.entries if entry.name == "mine"]
    assert (entry.kind, entry.summary, entry.options["size"]["default"]) == ("method", "Random images, for a test.", 3)
    [digits] = [entry for entry in built.entries if entry.name == "digits"]
    assert digits.facts["sample_shape"] == [1, 8, 8]
    [experiment] = [entry for entry in built.entries if entry.name == "wang2018/linear-bound"]
    assert experiment.settings["sweep"]["plot"] == "excess_loss"
    assert [entry.name for entry in built.of_kind("protocol")] == ["p/v1"]
    assert "method mine" in next(p for p in built.plugins if p.name == "mine").offers
    # Another set of plugins has an index of its own.
    assert index.stored() is None


def test_an_index_is_stale_when_a_file_of_a_plugin_changes(plugin: Path):
    index.build([], [plugin])
    plugin.write_text(METHOD.replace("NAME", "other"))
    assert index.stored([plugin]) is None
    index.build([], [plugin])
    assert "other" in (names([plugin]) or ())
    plugin.unlink()
    assert index.stored([plugin]) is None


def test_an_index_is_stale_when_a_module_beside_a_plugin_or_an_experiment_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "pack"
    (package / "experiments").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from pathlib import Path\nimport beside_it\nimport ddbench\n\n@ddbench.hookimpl\ndef ddbench_experiments():\n"
        "    return Path(__file__).parent.glob('experiments/*.toml')\n"
    )
    helper = tmp_path / "beside_it.py"
    helper.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    index.build([], [package])
    assert names([package])
    helper.write_text("changed = True\n")
    assert index.stored([package]) is None
    index.build([], [package])
    (package / "experiments" / "new.toml").write_text('method = "herding"\nsummary = "A new experiment"\n')
    assert index.stored([package]) is None
    experiments = index.build([], [package]).of_kind("experiment")
    assert [e.name for e in experiments if "/" not in e.name] == ["new"]
    assert names([package])


def test_an_index_is_stale_when_something_is_installed_or_disabled(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    plugin.write_text("import a_library\n" + METHOD.replace("NAME", "mine"))
    [failure] = index.build([], [plugin]).broken
    assert "No module named 'a_library'" in failure.error
    assert names([plugin])
    # Tools keep caches beside the code.
    (site / ".a_cache").mkdir()
    assert names([plugin])
    (site / "a_library-1.dist-info").mkdir()
    (site / "a_library.py").write_text("")
    assert index.stored([plugin]) is None
    index.build([], [plugin])
    assert "mine" in (names([plugin]) or ())
    monkeypatch.setenv("DDBENCH_DISABLE", "coreset")
    assert index.stored([plugin]) is None
    assert "herding" not in {entry.name for entry in index.build([], [plugin]).entries}
    monkeypatch.delenv("DDBENCH_DISABLE")
    assert "herding" in (names([plugin]) or ())


def test_an_index_of_code_that_is_edited_meanwhile_is_not_kept(plugin: Path):
    soon = time.time_ns() + 3600 * 10**9
    os.utime(plugin, ns=(soon, soon))
    index.build([], [plugin])
    # The module stays imported in this process: a time to come would make every later index one that is not kept.
    os.utime(plugin)
    assert not index._file([plugin]).exists()


@pytest.mark.slow
def test_once_there_is_an_index_no_torch_is_imported(tmp_path: Path):
    def fresh(*command: str) -> tuple[str, float]:
        code = (
            f"import sys, time; sys.argv = ['ddbench', *{command!r}]\n"
            "from ddbench.cli import main\n"
            "try: main()\n"
            "except SystemExit as exit: assert not exit.code\n"
            "print('torch' in sys.modules, time.process_time(), file=sys.stderr)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
        )
        loaded, seconds = done.stderr.split()
        return loaded, float(seconds)

    assert fresh("list")[0] == "True"
    for command in (["list"], ["show", "unrolled_gd"], ["plugins"], ["list", "pools", "--json"]):
        loaded, seconds = fresh(*command)
        assert loaded == "False"
        # Less than the import of torch takes. Processor time: other processes do not count.
        assert seconds < 1.5


def test_broken_plugins_are_loaded_again_by_the_command_that_explains_them(ddbench, tmp_path: Path):
    (tmp_path / "picky.py").write_text("import os\nos.environ['A_LICENCE']\n" + METHOD.replace("NAME", "picky"))
    assert "KeyError" in ddbench("plugins", "--plugin", "picky.py").out
    fixed = ddbench("plugins", "--plugin", "picky.py", A_LICENCE="yes").out
    assert "method picky" in fixed and "KeyError" not in fixed


def test_lines_fit_a_terminal_and_are_whole_in_a_pipe():
    entry = Entry(kind="method", name="mine", summary="Random images\nof every class. " * 5, source="pack 1.0")

    def line(terminal: bool, width: int) -> str:
        console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
        print_line(console, entry, 10)
        return console.file.getvalue()

    narrow, wide, piped = line(True, 40), line(True, 200), line(False, 40)
    assert narrow.count("\n") == wide.count("\n") == piped.count("\n") == 1
    assert len(narrow) == 41 and narrow.endswith("…\n")
    assert len(wide) == 201 and wide.endswith("pack 1.0\n")
    assert piped.startswith("mine        Random images of every class.") and piped.endswith("class.  (pack 1.0)\n")
