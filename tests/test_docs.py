"""The documentation builds without a warning, and every command and Python block on its pages works."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ddbench.cli.app import app
from ddbench.pipeline.dry_run import DryRun
from ddbench.pipeline.prepare import Prepared
from ddbench.protocols import PROTOCOLS
from ddbench.protocols.train import Train

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if not {"decisions", "reference", "_site"} & set(page.relative_to(DOCS).parts)
]
# Commands that set up the environment the tests run in.
NOT_RUN = ("python3 -m venv", "pip install 'ddbench[")
OUTER_STEPS, EPOCHS = 3, 3
"""Outer steps of a run and epochs of a protocol: these tests ask whether a command works, not how well."""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield fenced blocks as (language, text) and indented lines as ("", text), in their order."""
    language, lines = None, []
    for line in page.read_text().splitlines():
        if fence := re.match(r"```(.*)", line):
            if language is None:
                language, lines = fence[1], []
            else:
                yield language, "\n".join(lines)
                language = None
        elif language is not None:
            lines.append(line)
        elif line.startswith("    "):
            yield "", line.strip()


def steps(page: Path) -> list[tuple[str, str]]:
    """Return the instructions of a page: ("file", text), ("python", text), ("config", text) or ("command", line)."""
    instructions, command = [], ""
    for language, text in blocks(page):
        if language == "python":
            instructions.append(("file" if re.match(r"# \w+\.py\n", text) else "python", text))
        elif language in ("", "sh"):
            for line in text.splitlines():
                command += line.removesuffix("\\")
                if line.endswith("\\"):
                    continue
                if re.match(r"(ddbench|pip|pytest|python3?) ", command):
                    instructions.append(("command", command))
                command = ""
        elif language == "toml":
            instructions.append(("config", text))
    return instructions


def write_images(folder: Path) -> None:
    """Write real digits of two classes as a folder of images, with tables that list them."""
    from PIL import Image
    from sklearn.datasets import load_digits

    loaded = load_digits()
    tables = {"flowers": ["path,label,split"], "botany": ["photograph,species"]}
    for number, (image, label) in enumerate(zip(loaded.images[:200], loaded.target[:200], strict=True)):
        if label < 2:
            place = folder / ("test" if number >= 150 else "train") / ("rose", "tulip")[label] / f"{number:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15).astype("uint8")).save(place)
            tables["flowers"].append(f"{place.relative_to(folder)},{place.parent.name},{place.parent.parent.name}")
            tables["botany"].append(f"{place.relative_to(folder)},{place.parent.name}")
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_instructions_of_a_page_work(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    monkeypatch.chdir(tmp_path)
    for name, protocol in PROTOCOLS.items():
        if isinstance(protocol, Train):
            monkeypatch.setitem(PROTOCOLS, name, replace(protocol, epochs=EPOCHS))
    monkeypatch.setenv("COLUMNS", "120")
    todo = steps(page)
    if re.search(r"--dataset (trec|fsdd)", page.read_text()):
        request.getfixturevalue("real_data")
    if "folder:imagenette" in page.read_text():
        data = request.getfixturevalue("real_data")
        (tmp_path / "imagenette").symlink_to(data / "imagenette")
        [weights] = (data / "weights").glob("squeezenet1_0*")
        (tmp_path / "squeezenet.pth").symlink_to(weights)
    write_images(tmp_path / "flowers")
    names: dict[str, object] = {"__name__": "page"}
    for kind, text in todo:
        if kind == "file":
            (tmp_path / text.split("\n")[0].removeprefix("# ")).write_text(text)
        elif kind == "config":
            (tmp_path / "ddbench.toml").write_text(text)
        elif kind == "python":
            exec(compile(text, page.name, "exec"), names)
        elif not text.startswith(NOT_RUN):
            type_in(text, tmp_path, monkeypatch)


def shortened(words: list[str]) -> list[str]:
    """Return the words of a command line; `ddbench run` takes few outer steps and networks."""
    if words[:2] != ["ddbench", "run"] or {"--smoke", "--dry-run", "--experiment", "--time-limit"} & set(words):
        return words
    short = [re.sub(r"^outer_steps=\d+$", f"outer_steps={OUTER_STEPS}", word) for word in words]
    if "unrolled_gd" in words and short == words:
        short += ["--set", f"outer_steps={OUTER_STEPS}"]
    return [*short, "--eval-networks", "2"]


def type_in(line: str, where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Carry out a command line in a short form; one that takes minutes becomes a dry run."""
    words = shortened(shlex.split(line.replace("--time-limit 5m", "--dry-run"), comments=True))
    words = [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if words[:3] == ["pip", "install", "-e"]:
        site = where / "site"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, where / words[3]]
        subprocess.run(pip, check=True, capture_output=True)
        monkeypatch.syspath_prepend(site)
        monkeypatch.setenv("PYTHONPATH", str(site))
    elif words[0] == "pytest":
        tests = [sys.executable, "-m", *words, "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(tests, capture_output=True, text=True, cwd=where, env=os.environ)
        assert done.returncode == 0, done.stdout
    else:
        assert words[0] == "ddbench", f"{line}: an unknown command"
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"


def test_pages_hold_instructions():
    instructions = {str(page.relative_to(DOCS)): steps(page) for page in PAGES}
    assert ("command", "ddbench run --method unrolled_gd") in instructions["index.md"]
    assert sum(map(len, instructions.values())) > 60
    assert ("command", "ddbench check class_means --plugin class_means.py") in instructions["tutorial.md"]


def build_site(folder: Path, *options: str) -> None:
    """Build the site in `folder` from a copy of the documentation; a warning fails."""
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("_site", "reference", "__pycache__"))
    (folder / "pyproject.toml").symlink_to(DOCS.parent / "pyproject.toml")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", *options]
    done = subprocess.run([*command, "docs", "site"], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path):
    (tmp_path / "leaderboards").symlink_to(DOCS.parent / "leaderboards")
    build_site(tmp_path)
    site = tmp_path / "site"
    commands = (site / "reference/commands.html").read_text()
    assert "--best-coreset" in commands
    assert "AdaptationTarget" in (site / "reference/api.html").read_text()
    assert "outer_lr" in (site / "reference/options.html").read_text()
    assert "facility_location" in (site / "reference/results.html").read_text()
    assert "the textbook loop" in (site / "reference/benchmarks.html").read_text()
    assert "seconds_distill" in (site / "reference/columns.html").read_text()
    assert "RunSpec" in (site / "reference/architecture.html").read_text()
    assert "ddbench.pipeline" in (site / "_images/architecture.svg").read_text()
    # Nothing is fetched from elsewhere when a page is opened.
    for page in site.rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text()), page


@pytest.mark.slow
def test_the_site_builds_without_leaderboards(tmp_path: Path):
    build_site(tmp_path, "-b", "dummy")
    assert "There are no records" in (tmp_path / "docs/reference/results.md").read_text()


@pytest.fixture
def architecture(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that writes the page on the architecture."""
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("architecture")


def test_the_walk_of_a_spec_passes_through_the_layers(architecture: Any):
    steps = architecture.walk()
    assert [start for start, _, _ in steps] + [steps[-1][1]] == list(architecture.WALK)
    [methods] = [functions for start, end, functions in steps if (start, end) == ("Task", "DistilledSet")]
    assert "ddbench_random_subset.random_subset" in {f"{method.module}.{method.name}" for method in methods}
    picture = architecture.picture()
    assert picture.count("<polyline") == len(steps)
    assert all(f">{name}</text>" in picture for name in (*architecture.WALK, *architecture.bands()))


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (("RunSpec", "Nonsense"), "no module defines Nonsense"),
        (("RunResult", "RunSpec", "Line"), "no function leads from RunSpec to Line"),
    ],
)
def test_an_outdated_walk_fails_the_build(
    architecture: Any, monkeypatch: pytest.MonkeyPatch, types: tuple[str, ...], message: str
):
    monkeypatch.setattr(architecture, "WALK", types[-2:])
    with pytest.raises(LookupError, match=message):
        architecture.walk()


def test_docstrings_of_sub_packages_state_their_imports(architecture: Any):
    names = {band.removeprefix("ddbench.") for band in architecture.bands()} - {architecture.PLUGINS}
    pairs = [tuple(band.removeprefix("ddbench.") for band in pair) for pair in architecture.imports()]
    layers = [[band.removeprefix("ddbench.") for band in layer] for layer in architecture.layers()]
    for path in (DOCS.parent / "ddbench").glob("*/__init__.py"):
        package = path.parent.name
        text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
        lines = re.search(r"May import: ([^.]+)\. Imported by: ([^.;]+)[.;]", text)
        assert lines is not None, package
        if package == "builtin":
            continue
        allowed, importers = (names & set(re.findall(r"\w+", line)) for line in lines.groups())
        assert {imported for importer, imported in pairs if importer == package} <= allowed, package
        [height] = [number for number, layer in enumerate(layers) if package in layer]
        assert allowed <= {"ddbench", *(name for layer in layers[height + 1 :] for name in layer)}, package
        assert {importer for importer, imported in pairs if imported == package} & names == importers, package


@pytest.mark.parametrize("returned", [DryRun, Prepared])
def test_what_public_functions_return_is_in_the_reference(returned: type, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(DOCS)
    _, _, fields = "\n".join(importlib.import_module("reference").api()).partition(f".{returned.__name__}\n")
    for name in returned.__annotations__.keys() - {"model_config"}:
        assert f"\n- `{name}`: " in fields.partition("\n## ")[0], name


def test_imports_between_sub_packages_are_counted(architecture: Any):
    counts = architecture.imports()
    assert counts["ddbench.cli", "ddbench.pipeline"] > 0
    assert counts["plugins", "ddbench"] > 0
    assert counts["ddbench.contract", "ddbench.cli"] == 0
    assert f" {counts['ddbench.pipeline', 'ddbench.contract']} |" in "\n".join(architecture.page())
