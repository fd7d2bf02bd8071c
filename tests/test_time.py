"""The time limit: shares of loops, work outside of loops, and what the record says about both."""

from pathlib import Path

import pytest
import torch

from ddbench.contract import run as run_module
from ddbench.contract.checkpoints import read_checkpoint
from ddbench.contract.run import Run
from ddbench.errors import PluginError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that moves only when a test moves it."""
    now = [100.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    return now


def steps_of(run: Run, clock: list[float], steps: int, share: float | None = None) -> list[float]:
    """Take a second for each step of a loop, and return `share_done` of each."""
    done = []
    for _ in run.loop(steps, dict(x=torch.zeros(1)), share=share):
        done.append(run.share_done)
        clock[0] += 1
    return done


def test_time_left_never_ends_without_a_limit_and_is_never_negative(tmp_path: Path, clock: list[float]):
    assert Run(tmp_path).time_left == float("inf") and not Run(tmp_path).out_of_time
    run = Run(tmp_path, time_limit=10)
    clock[0] += 4
    assert run.time_left == 6
    clock[0] += 10
    assert run.time_left == 0 and run.out_of_time


def test_loops_share_the_limit(tmp_path: Path, clock: list[float]):
    run = Run(tmp_path, time_limit=100)
    first = steps_of(run, clock, 1000, share=0.4)
    second = steps_of(run, clock, 1000)
    assert (len(first), len(second)) == (40, 60)
    # Each schedule runs over the time of its own loop.
    for done in (first, second):
        assert done[0] == 0 and done[-1] == pytest.approx(1 - 1 / len(done))
    assert (run.stopped_by, run.empty_loops, run.steps_done) == ("time limit", 0, 100)


def test_a_share_counts_from_the_start_of_its_loop_and_ends_at_the_limit(tmp_path: Path, clock: list[float]):
    run = Run(tmp_path, time_limit=100)
    clock[0] += 30
    assert len(steps_of(run, clock, 1000, share=0.5)) == 50
    assert len(steps_of(run, clock, 1000, share=0.5)) == 20


def test_within_a_loop_the_time_left_is_that_of_its_share(tmp_path: Path, clock: list[float]):
    run = Run(tmp_path, time_limit=100)
    for _ in run.loop(1, dict(x=torch.zeros(1)), share=0.25):
        clock[0] += 5
        assert run.time_left == 20
    assert run.time_left == 95


def test_a_loop_without_time_is_reported(tmp_path: Path, clock: list[float]):
    said: list[str] = []
    run = Run(tmp_path, time_limit=10)
    run.say = said.append
    steps_of(run, clock, 1000)
    assert steps_of(run, clock, 1000) == []
    assert run.empty_loops == 1
    assert said == ["The time limit was over before loop 2 of the method: it took no step."]
    # A loop of no steps is not short of time.
    assert steps_of(run, clock, 0) == []
    assert run.empty_loops == 1 and Run(tmp_path, time_limit=10).empty_loops == 1


def test_a_resumed_loop_keeps_the_end_of_its_share(tmp_path: Path, clock: list[float]):
    run = Run(tmp_path, time_limit=100)
    clock[0] += 10
    loop = run.loop(1000, dict(x=torch.zeros(1)), share=0.3)
    for _ in range(21):
        next(loop)
        clock[0] += 1
    next(loop)
    run._checkpoint(21, dict(x=torch.zeros(1)))
    loop.close()
    # A pause does not count.
    clock[0] += 1000
    again = Run(tmp_path, time_limit=100)
    assert 30 < again.seconds < 33
    assert len(steps_of(again, clock, 1000, share=0.3)) in (8, 9)


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_a_share_is_a_part_of_the_limit(tmp_path: Path, share: float):
    with pytest.raises(PluginError, match="a loop has share="):
        next(Run(tmp_path).loop(3, dict(x=torch.zeros(1)), share=share))


def test_a_share_without_a_limit_changes_nothing(tmp_path: Path, clock: list[float]):
    assert len(steps_of(Run(tmp_path), clock, 30, share=0.01)) == 30


def test_checkpoints_of_the_second_format_have_no_cached_results():
    checkpoint = read_checkpoint(Path(__file__).parent / "golden" / "interrupted-format-2" / "checkpoint.pt")
    [loop] = checkpoint.loops
    assert (loop.step, loop.scope, loop.began) == (27, "", 0.0)
    assert checkpoint.made == checkpoint.saved == {} and checkpoint.empty_loops == 0
