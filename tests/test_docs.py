"""The documentation builds without a warning, and what it says to type works, page by page and line by line."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ddbench.cli.app import app

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if not {"decisions", "reference", "_site"} & set(page.relative_to(DOCS).parts)
]
# Done already by whoever runs the tests.
NOT_RUN = ("python3 -m venv", "pip install 'ddbench[")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Fenced blocks as (language, text) and indented lines as ("", text), in their order."""
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
    """What a page says to do: ("file", text), ("python", text) and ("command", line)."""
    found, begun = [], ""
    for language, text in blocks(page):
        if language == "python":
            found.append(("file" if re.match(r"# \w+\.py\n", text) else "python", text))
        elif language in ("", "sh"):
            for line in text.splitlines():
                begun += line.removesuffix("\\")
                if line.endswith("\\"):
                    continue
                if re.match(r"(ddbench|pip|pytest|python3?) ", begun):
                    found.append(("command", begun))
                begun = ""
        elif language == "toml":
            found.append(("config", text))
    return found


def write_images(folder: Path) -> None:
    """Real digits as a folder of images, two classes."""
    from PIL import Image
    from sklearn.datasets import load_digits

    loaded = load_digits()
    for number, (image, label) in enumerate(zip(loaded.images[:200], loaded.target[:200], strict=True)):
        if label < 2:
            place = folder / ("test" if number >= 150 else "train") / ("rose", "tulip")[label] / f"{number:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15).astype("uint8")).save(place)


@pytest.fixture(scope="session")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_says_to_type_works(
    page: Path, pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDBENCH_CACHE", str(pools))
    monkeypatch.setenv("COLUMNS", "120")
    todo = steps(page)
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


def type_in(line: str, where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Carry out a command line; one that takes minutes as a smoke run."""
    words = shlex.split(line.replace("--time-limit 5m", "--smoke"), comments=True)
    words = [found for word in words for found in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
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
        assert words[0] == "ddbench", f"{line}: what is this?"
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"


def test_pages_are_found_and_say_something_to_type():
    told = {str(page.relative_to(DOCS)): steps(page) for page in PAGES}
    assert ("command", "ddbench run --method unrolled_gd") in told["index.md"]
    assert sum(len(found) for found in told.values()) > 60
    assert ("command", "ddbench check class_means --plugin class_means.py") in told["tutorial.md"]


def test_the_site_builds_without_a_warning(tmp_path: Path):
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs, ignore=shutil.ignore_patterns("_site", "reference", "__pycache__"))
    (tmp_path / "leaderboards").symlink_to(DOCS.parent / "leaderboards")
    build = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        tmp_path / "trees",
        docs,
        tmp_path / "site",
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "site/reference/commands.html").read_text()
    assert "--best-coreset" in commands
    assert "AdaptationTarget" in (tmp_path / "site/reference/api.html").read_text()
    assert "outer_lr" in (tmp_path / "site/reference/options.html").read_text()
    assert "facility_location" in (tmp_path / "site/reference/results.html").read_text()
    assert "seconds_distill" in (tmp_path / "site/reference/columns.html").read_text()
    # Nothing is fetched from elsewhere when a page is opened.
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text()), page
