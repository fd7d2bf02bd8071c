"""Facts of methods about plans: the tasks they support, and their published settings."""

import json
from pathlib import Path

import pytest

import ddbench as api
from ddbench.contract.component import component
from ddbench.contract.observer import Silent
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.errors import PluginError
from ddbench.pipeline import runner
from ddbench.pipeline.plan import plan_run
from ddbench.records.result import RunFolder

METHODS = '''
"""Methods with facts about plans."""
from typing import Annotated

import torch
from pydantic import Field

import ddbench

def chosen(task, run):
    subset = task.train.random_subset(task.budget.images_per_class, run.generator)
    return ddbench.DistilledSet(*subset.in_steps(task.budget.steps))

def published(request):
    """Somebody et al. 2021, Table 3."""
    assert (request.sample_shape, request.network, len(request.classes)) != (None, None, 0)
    many = request.budget.images_per_class > 1
    return {"inner": 50 if many else 1, "young": 5} if request.dataset == "mnist" else {}

@ddbench.method(recipe=published)
def careful(
    task, run, *, inner: int = 3, rate: float = 0.1, young: Annotated[int, Field(), ddbench.BornLater()] = 0
):
    """Choose random images."""
    return chosen(task, run)

def misspelt(request):
    """Nobody 2020."""
    return {"iner": 3}

@ddbench.method(recipe=misspelt)
def misled(task, run, *, inner: int = 3):
    """Choose random images."""
    return chosen(task, run)

def fails(request):
    """Nobody 2020."""
    return {"digits": {}}[request.network]

@ddbench.method(recipe=fails)
def lost(task, run):
    """Choose random images."""
    return chosen(task, run)

def supports(plan):
    return "ten images of each class are needed." if plan.settings.images_per_class < 10 else None

@ddbench.method(supports=supports, companion=True, coreset=True)
def picky(task, run):
    """Choose random images."""
    assert task.budget.images_per_class >= 10
    return chosen(task, run)

@ddbench.method(supports=lambda plan: plan.no_such)
def faulty(task, run):
    """Choose random images."""
    return chosen(task, run)

@ddbench.method(supports=lambda plan: True)
def confused(task, run):
    """Choose random images."""
    return chosen(task, run)

@ddbench.hookimpl
def ddbench_methods():
    return [careful, misled, lost, picky, faulty, confused]
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "methods.py").write_text(METHODS)
    return tmp_path / "methods.py"


@pytest.fixture
def catalog(file: Path) -> Catalog:
    catalog = Catalog([file])
    assert catalog.broken == []
    return catalog


def options_of(catalog: Catalog, method: object = "careful", **fields: object) -> dict:
    return plan_run(RunSpec.parse({"method": method, **fields}), catalog).settings.method.options


def test_what_is_asked_for_wins_over_the_recipe_and_that_over_the_defaults(catalog: Catalog):
    assert options_of(catalog) == {"inner": 3, "rate": 0.1}
    assert options_of(catalog, dataset="mnist") == {"inner": 50, "rate": 0.1, "young": 5}
    assert options_of(catalog, dataset="mnist", images_per_class=1)["inner"] == 1
    asked = {"name": "careful", "options": {"inner": 3, "rate": 0.2}}
    assert options_of(catalog, asked, dataset="mnist") == {"inner": 3, "rate": 0.2, "young": 5}


def test_complete_settings_leave_nothing_to_the_recipe(catalog: Catalog):
    # The option that is younger has its default, which settings leave out.
    asked = {"name": "careful", "options": {"young": 0}}
    settings = plan_run(RunSpec.parse({"method": asked, "dataset": "mnist"}), catalog).settings
    assert settings.method.options == {"inner": 50, "rate": 0.1}
    again = plan_run(settings, catalog)
    assert again.settings == settings and again.recipe == {}
    assert api.dry_run(settings, catalog=catalog).fingerprint == settings.fingerprint


@pytest.mark.parametrize(
    ("method", "problem"),
    [("misled", "the recipe of method 'misled'.*no option 'iner'. Did you mean 'inner'?"), ("lost", "raised KeyError")],
)
def test_a_recipe_that_is_wrong_is_blamed_on_its_method(catalog: Catalog, method: str, problem: str):
    with pytest.raises(PluginError, match=problem):
        options_of(catalog, method)


def test_a_recipe_names_its_source():
    def mine(task, run):
        """Choose images."""

    def bare(request):
        return {}

    with pytest.raises(PluginError, match="declares recipe=bare: it has no docstring"):
        component("method", mine, recipe=bare)


def test_the_recipe_is_shown_said_and_recorded(ddbench, file: Path, tmp_path: Path):
    shown = ddbench("show", "careful", "--plugin", str(file), "--dataset", "mnist", "--ipc", "10").out
    assert "recipe: Somebody et al. 2021, Table 3" in shown and "Recipe for mnist with 10 images per class: " in shown
    assert next(line.split() for line in shown.splitlines() if line.startswith("inner"))[:4] == [
        "inner",
        "int",
        "3",
        "50",
    ]
    found = json.loads(ddbench("show", "careful", "--plugin", str(file), "-d", "mnist", "--json").out)["found"]
    assert found[0]["recipe"] == {"inner": 50, "young": 5} and found[0]["source"] == "Somebody et al. 2021, Table 3"
    none = ddbench("show", "careful", "--plugin", str(file), "-d", "digits").out
    assert "none; the defaults apply" in none
    assert ddbench("show", "misled", "--plugin", str(file), "-d", "digits").code == 4
    dry = ddbench("run", "--plugin", str(file), "-m", "careful", "-d", "mnist", "--set", "inner=2", "--dry-run").out
    assert "recipe       young=5 (Somebody et al. 2021, Table 3)" in dry
    assert "careful(inner=2, rate=0.1, young=5)" in dry


def test_a_plan_that_is_not_supported_is_skipped_before_anything_is_loaded(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded = []
    monkeypatch.setattr(runner, "prepare", lambda *arguments, **options: loaded.append(1))
    result = api.run({"method": "picky"} | {"images_per_class": 2}, catalog=catalog, runs=tmp_path / "runs",
                     leaderboards=tmp_path / "boards")  # fmt: skip
    assert (result.status, result.reason) == ("skipped", "ten images of each class are needed.")
    assert not loaded and not (tmp_path / "boards").exists()
    assert RunFolder(Path(result.run_dir)).read_result() == result
    assert api.resume(Path(result.run_dir), catalog=catalog).status == "skipped"


@pytest.mark.parametrize(
    ("method", "problem"), [("faulty", "has no attribute 'no_such'"), ("confused", "returned True")]
)
def test_a_faulty_answer_is_blamed_on_the_method(catalog: Catalog, tmp_path: Path, method: str, problem: str):
    with pytest.raises(PluginError, match=f"method '{method}'.*{problem}"):
        api.run({"method": method}, catalog=catalog, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")


def test_skipped_on_the_command_line(ddbench, file: Path, tmp_path: Path):
    run = ("run", "--plugin", str(file), "-m", "picky", "--ipc", "2")
    done = ddbench(*run)
    assert done.code == 0 and "picky on digits: skipped. ten images of each class are needed." in done.out
    assert "Would skip this run: ten images of each class are needed." in ddbench(*run, "--dry-run").out
    swept = (*run[:-2], "--sweep", "images_per_class=2,5")
    assert "skipped: ten images" in ddbench(*swept, "--dry-run").out
    done = ddbench(*swept)
    assert done.code == 0 and "Skipped: the method supports no point of the sweep." in done.err
    done = ddbench(*swept, "--json")
    assert (done.code, done.json()["status"]) == (0, "skipped")


def test_companions_that_do_not_support_the_task_are_left_out_with_the_reason(catalog: Catalog, tmp_path: Path):
    lines: list[str] = []

    class Reporter(Silent):
        def say(self, text: str) -> None:
            lines.append(text)

    spec = {"method": "random_subset", "network": "linear", "eval_networks": 2, "images_per_class": 1, "smoke": True}
    result = api.run(spec, catalog=catalog, runs=tmp_path / "runs", leaderboards=tmp_path / "b", reporter=Reporter())
    assert "picky" not in result.companions
    assert "No companion picky: ten images of each class are needed." in lines


def test_the_kit_takes_a_task_that_the_method_supports(ddbench, file: Path):
    done = ddbench("check", "picky", "--plugin", str(file))
    assert "it supports no task: ten images of each class are needed." in done.out
