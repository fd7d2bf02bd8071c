import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
THIRD_PARTY = Path(__file__).parent / "third_party"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


def toml(path: Path) -> dict:
    return tomllib.loads(path.read_text())


def build(folder: Path, out: Path) -> Path:
    """Build a wheel with the backend that pyproject.toml names, without a network."""
    subprocess.run(
        [sys.executable, "-c", f"from hatchling.build import build_wheel; build_wheel({str(out)!r})"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    [wheel] = out.glob("*.whl")
    return wheel


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_root_and_plugin_projects_are_in_step(plugin: Path):
    root, own = toml(ROOT / "pyproject.toml"), toml(plugin / "pyproject.toml")
    package = f"ddbench_{plugin.name}"
    # What registers something is switched on by being installed; trackers are named by who wants them.
    entries = own["project"].get("entry-points", {}).get("ddbench", {})
    assert len(entries) == (plugin.name != "trackers")
    for name, module in entries.items():
        assert root["project"]["entry-points"]["ddbench"][name] == module == package
    for extra, wanted in own["project"].get("optional-dependencies", {}).items():
        assert root["project"]["optional-dependencies"][extra] == wanted
    assert f"plugins/{plugin.name}/{package}" in root["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert own["project"]["version"] == root["project"]["version"]
    assert own["project"]["requires-python"] == root["project"]["requires-python"]
    stated = {d.split(">=")[0]: d for d in root["project"]["dependencies"]}
    for dependency in own["project"]["dependencies"]:
        assert dependency.split(">=")[0] == "ddbench" or stated[dependency.split(">=")[0]] == dependency
    assert package in root["tool"]["mypy"]["packages"]
    assert (plugin / "README.md").exists()


def test_the_wheel_holds_the_harness_and_its_plugins_and_nothing_else(tmp_path: Path):
    names = zipfile.ZipFile(build(ROOT, tmp_path)).namelist()
    tops = {name.split("/")[0] for name in names}
    version = toml(ROOT / "pyproject.toml")["project"]["version"]
    assert tops == {"ddbench", f"ddbench-{version}.dist-info", *(f"ddbench_{plugin.name}" for plugin in PLUGINS)}
    page = {f"ddbench/render/site.{ending}" for ending in ("html.jinja", "css", "js")}
    assert {"ddbench/py.typed", *page, "ddbench/scaffold/method.py.jinja"} <= set(names)


def test_no_code_of_the_harness_names_a_method():
    """Examples in help texts aside: nothing the program compares, looks up or branches on.

    Layouts of other people's files have the names of the field, some of which are those of methods: modules about
    layouts may name these, and no other method.
    """
    import ast

    from ddbench.discovery.catalog import Catalog
    from ddbench.formats.families import FAMILIES
    from ddbench.formats.writers import LAYOUTS

    methods = {component.name for component in Catalog().components("method")}
    about_layouts = {*(ROOT / "ddbench" / "formats").iterdir(), ROOT / "ddbench" / "cli" / "export.py"}
    for path in (ROOT / "ddbench").rglob("*.py"):
        names = methods - (FAMILIES.keys() | LAYOUTS.keys() if path in about_layouts else set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{path}:{node.lineno} names a method"
            if isinstance(node, ast.Name | ast.Attribute | ast.alias):
                name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", "")
                assert name not in names, f"{path} names a method"


def test_ci_runs_the_test_command_of_the_readme():
    commands = [
        line.strip() for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    python3 -m venv")
    ]
    assert len(commands) == 2
    assert any(command.endswith("pytest") for command in commands)
    assert next(c for c in commands if c.endswith("pytest")) in (ROOT / ".ci/run").read_text().splitlines()


@pytest.mark.slow
def test_a_third_party_package_from_new_to_the_leaderboard(tmp_path: Path, ddbench):
    """As its author types it: made, written, built and installed from its own pyproject, checked, run, compared."""
    assert ddbench("new-plugin", "class_means").code == 0
    folder = tmp_path / "ddbench-class-means"
    shutil.copytree(THIRD_PARTY, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "wheels").mkdir()
    site = tmp_path / "site"
    zipfile.ZipFile(build(folder, tmp_path / "wheels")).extractall(site)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    listed = ddbench("list", "--json", PYTHONPATH=path).json()
    [entry] = [m for m in listed["methods"] if m["name"] == "class_means"]
    assert entry["source"] == "ddbench-class-means 1.2.3"

    for name in ("class_means", "parity", "small"):
        checked = ddbench("check", name, PYTHONPATH=path)
        assert checked.code == 0, checked.out
        assert " 0 failed." in checked.out

    settings = ("-d", "parity", "--init", "small", "--eval-networks", 5, "--json")
    runs = [ddbench("run", "-m", method, *settings, PYTHONPATH=path) for method in ("class_means", "random_subset")]
    assert [run.code for run in runs] == [0, 0], runs[0].err
    records = [run.json() for run in runs]
    assert records[0]["method_source"] == "ddbench-class-means 1.2.3"
    assert records[0]["dataset"]["name"].startswith("parity")
    verdict = ddbench("compare", *(record["run_id"] for record in records), PYTHONPATH=path)
    assert verdict.code == 0, verdict.err
    assert "class_means" in verdict.out and "n=5" in verdict.out
    board = ddbench("leaderboard", "--dataset", "parity", PYTHONPATH=path)
    assert board.out.index(records[0]["run_id"]) < board.out.index(records[1]["run_id"])
