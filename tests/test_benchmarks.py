"""The benchmarks: every case can be set up, a case is measured fairly, and figures are kept."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.turns import Case, measure

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in command.CASES.items() if not case.accelerator])
def test_both_sides_of_a_case_can_be_set_up(name: str):
    sides = command.CASES[name].sides()
    assert list(sides) == ["baseline", "ddbench"]
    if name == "score-lenet":
        sides["ddbench"]()


def sleepy():
    """Return a baseline of 60 ms and a side of 20 ms; module-level, for the processes."""

    def sleep(seconds: float, value: float) -> torch.Tensor:
        time.sleep(seconds)
        return torch.tensor([value])

    return {"baseline": lambda: sleep(0.06, 2.0), "ddbench": lambda: sleep(0.02, 2.5)}


def broken():
    return {"baseline": lambda: torch.zeros(1), "ddbench": lambda: 1 / 0}


@pytest.mark.slow
def test_a_figure_is_the_ratio_of_two_processes():
    figure = measure(Case("sleep", "a longer sleep", sleepy, goal=2), turns=3)
    assert 1.5 < figure.low <= figure.ratio <= figure.high < 4
    assert figure.turns == 3 and figure.difference == pytest.approx(0.25)
    with pytest.raises(EOFError):
        measure(Case("fail", "nothing", broken), turns=1)


@pytest.mark.slow
def test_figures_are_kept_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(
        command, "CASES", {"a": Case("sleep", "a longer sleep", sleepy), "b": Case("gpu", "", sleepy, accelerator=True)}
    )
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "resolve_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--turns", "1", "--save"])
    command.main()
    assert "committed" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--turns", "1", "--json"])
    command.main()
    printed = json.loads(capsys.readouterr().out)
    [path] = (tmp_path / "results").iterdir()
    kept = command.Results.model_validate_json(path.read_text())
    assert list(kept.figures) == list(printed["figures"]) == ["a"]
    assert "committed" in command.line("a", kept.figures["a"], kept.figures["a"])


@pytest.mark.slow
def test_an_unknown_case_is_refused():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "there is no case 'nothing'; the cases are unroll-lenet," in done.stderr
