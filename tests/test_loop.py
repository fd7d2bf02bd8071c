import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from ddbench.contract import run as run_module
from ddbench.contract.checkpoints import FORMAT, MIGRATIONS, read_checkpoint
from ddbench.contract.observer import Pace
from ddbench.contract.run import MAX_ROLLBACKS, Run
from ddbench.contract.sets import DistilledSet
from ddbench.contract.signals import sigterm_as_ctrl_c
from ddbench.errors import DdbenchError, Interrupted, PluginError


def descend(run: Run, steps: int, *, stop_at: int | None = None) -> torch.Tensor:
    """A method in small: a noisy descent whose result depends on every random number and every step."""
    point = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([point], lr=0.1)
    for step in run.loop(steps, dict(point=point, optimizer=optimizer)):
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)
        noise = torch.randn(3, generator=run.generator) + 0.1 * torch.randn(3)
        optimizer.zero_grad()
        loss = ((point - noise) ** 2).sum()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
    return point.detach()


def test_logs_every_step(tmp_path: Path):
    run = Run(tmp_path)
    descend(run, 5)
    lines = [json.loads(line) for line in run.log_path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert all(line["loop"] == 0 and line["loss"] > 0 and line["seconds"] >= 0 for line in lines)
    assert run.steps_done == 5


@pytest.mark.parametrize("stop_at", [0, 7, 19, 20, 44])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, stop_at: int):
    # Not always Python's own: a shell starts what it runs in the background with SIGINT ignored.
    handler = signal.getsignal(signal.SIGINT)
    torch.manual_seed(0)
    (tmp_path / "whole").mkdir()
    whole = descend(Run(tmp_path / "whole", seed=3), 45)
    folder = tmp_path / "halves"
    folder.mkdir()
    torch.manual_seed(0)
    with pytest.raises(Interrupted, match=f"after outer step {stop_at + 1} of 45"):
        descend(Run(folder, seed=3), 45, stop_at=stop_at)
    torch.manual_seed(99)
    halves = descend(Run(folder, seed=3), 45)
    assert torch.equal(whole, halves)
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(45))
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_finished_loop_is_not_run_again(tmp_path: Path):
    first = descend(Run(tmp_path), 10)
    again = Run(tmp_path)
    point = torch.zeros(3)
    optimizer = torch.optim.Adam([point], lr=0.1)
    assert list(again.loop(10, dict(point=point, optimizer=optimizer))) == []
    assert torch.equal(point, first)
    assert again.steps_done == 10


def test_two_loops_one_after_the_other(tmp_path: Path):
    def method(run: Run, stop: bool) -> torch.Tensor:
        a, b = torch.zeros(1), torch.zeros(1)
        for _ in run.loop(3, dict(a=a)):
            a += torch.rand(1, generator=run.generator)
        for step in run.loop(4, dict(b=b)):
            if stop and step == 2:
                signal.raise_signal(signal.SIGINT)
            b += a * torch.rand(1, generator=run.generator)
        return b

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole = method(Run(tmp_path / "one"), stop=False)
    with pytest.raises(Interrupted):
        method(Run(tmp_path / "two"), stop=True)
    assert torch.equal(method(Run(tmp_path / "two"), stop=False), whole)


def test_time_limit_keeps_what_there_is(tmp_path: Path):
    run = Run(tmp_path, time_limit=0.05)
    for step in run.loop(10_000, dict(x=torch.zeros(1))):
        time.sleep(0.01)
        assert step < 100
    assert run.stopped_by == "time limit"
    assert 1 <= run.steps_done < 100


def test_divergence_rolls_back_and_goes_on(tmp_path: Path):
    run = Run(tmp_path)
    x, diverged = torch.zeros(1), []
    for step in run.loop(50, dict(x=x)):
        x += torch.rand(1, generator=run.generator)
        if step == 30 and not diverged:
            diverged.append(step)
            x.fill_(float("nan"))
        run.log(x=x)
    assert run.rollbacks == 1
    assert torch.isfinite(x).all()
    lines = [json.loads(line) for line in run.log_path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(50))


def test_an_interruption_does_not_move_what_a_roll_back_goes_to(tmp_path: Path):
    def method(run: Run, stop_at: int | None = None) -> torch.Tensor:
        x = torch.zeros(1)
        for step in run.loop(50, dict(x=x)):
            if step == stop_at:
                signal.raise_signal(signal.SIGINT)
            x += torch.rand(1, generator=run.generator) + torch.rand(1)
            run.log(x=float("nan") if step == 35 and run.rollbacks == 0 else x)
        return x

    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    torch.manual_seed(1)
    whole = method(Run(tmp_path / "whole"))
    torch.manual_seed(1)
    with pytest.raises(Interrupted):
        method(Run(tmp_path / "halves"), stop_at=30)
    run = Run(tmp_path / "halves")
    assert torch.equal(method(run), whole)
    assert run.rollbacks == 1


def test_a_state_that_diverges_in_silence_is_noticed(tmp_path: Path):
    run = Run(tmp_path)
    x, diverged = torch.zeros(1), []
    for step in run.loop(50, dict(x=x)):
        x += 1
        if step == 25 and not diverged:
            diverged.append(step)
            x.fill_(float("inf"))
    assert run.rollbacks == 1
    assert x.item() == 50


def test_endless_divergence_ends_with_advice(tmp_path: Path):
    run = Run(tmp_path)

    def diverge() -> None:
        for _ in run.loop(50, dict(x=torch.zeros(1))):
            run.log(loss=float("nan"))

    with pytest.raises(DdbenchError, match=f"diverged again after {MAX_ROLLBACKS} roll-backs") as error:
        diverge()
    assert "learning rates" in error.value.hint


def test_states_that_cannot_be_restored(tmp_path: Path):
    with pytest.raises(PluginError, match="'count' is a int"):
        next(Run(tmp_path).loop(3, dict(count=3)))


def test_checkpoints_of_others_and_damaged_ones(tmp_path: Path):
    run = Run(tmp_path, identity="mine")
    list(run.loop(3, dict(x=torch.zeros(1))))
    with pytest.raises(DdbenchError, match="belongs to another run"):
        Run(tmp_path, identity="yours")
    with pytest.raises(PluginError, match=r"the checkpoint holds \['x'\]"):
        next(Run(tmp_path, identity="mine").loop(3, dict(y=torch.zeros(1))))
    run.checkpoint_path.write_bytes(run.checkpoint_path.read_bytes()[:50])
    with pytest.raises(DdbenchError, match="cannot be read"):
        Run(tmp_path, identity="mine")


GOLDEN = Path(__file__).parent / "golden"


def test_a_checkpoint_of_the_first_format_resumes(tmp_path: Path):
    # Written by the code before formats had a number: `descend` with seed 3, interrupted after 27 of 45 steps.
    shutil.copytree(GOLDEN / "interrupted-format-1", tmp_path / "old")
    (tmp_path / "whole").mkdir()
    torch.manual_seed(0)
    whole = descend(Run(tmp_path / "whole", seed=3), 45)
    resumed = Run(tmp_path / "old", seed=3, identity="golden")
    assert resumed.seconds > 0 and resumed.artifact == ""
    torch.testing.assert_close(descend(resumed, 45), whole)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("old", "whole")
    ]
    assert [line["step"] for line in logs[0]] == list(range(45))
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]])
    # It is written in the format of today from here on.
    assert torch.load(resumed.checkpoint_path, weights_only=True)["format"] == FORMAT


def test_a_checkpoint_of_the_first_format_rolls_back_to_the_same_step():
    checkpoint = read_checkpoint(GOLDEN / "interrupted-format-1" / "checkpoint.pt")
    [loop] = checkpoint.loops
    point = checkpoint.rollback_point
    assert (loop.step, point.step, checkpoint.rollback_loop) == (27, 20, 0)
    assert loop.log_bytes > point.log_bytes > 0
    assert "log_bytes" not in loop.generators


def test_every_format_has_a_migration_and_later_ones_are_refused(tmp_path: Path):
    assert list(MIGRATIONS) == list(range(1, FORMAT))
    run = Run(tmp_path)
    list(run.loop(3, dict(x=torch.zeros(1))))
    content = torch.load(run.checkpoint_path, weights_only=True)
    torch.save({**content, "format": FORMAT + 1}, run.checkpoint_path)
    with pytest.raises(
        DdbenchError, match=f"has format {FORMAT + 1}, but this version of ddbench reads only up to {FORMAT}"
    ) as error:
        Run(tmp_path)
    assert "Resume with the version that wrote it" in error.value.hint


def test_checkpoints_take_at_most_their_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A clock that only steps and writing move: 1 s for a step, 0.25 s for a checkpoint.
    now, written, write = [0.0], [], run_module.write_checkpoint

    def slow_write(*arguments: object) -> None:
        now[0] += 0.25
        written.append(now[0])
        write(*arguments)

    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(run_module, "write_checkpoint", slow_write)
    run = Run(tmp_path)
    for _ in run.loop(100, dict(x=torch.zeros(1))):
        now[0] += 1
    # After the first step, then each time 25 s are over, and at the end.
    assert written == pytest.approx([1.25, 26.5, 51.75, 77.0, 101.25])


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [1, 7, 20, 29, 43])
def test_a_checkpoint_may_be_written_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int):
    def method(run: Run, killed_at: int | None = None) -> torch.Tensor:
        x = torch.zeros(1)
        for step in run.loop(50, dict(x=x)):
            if step == killed_at:
                raise ZeroDivisionError
            x += torch.rand(1, generator=run.generator) + torch.rand(1)
            run.log(x=float("nan") if step in (12, 35) and run.rollbacks < 2 else x)
        return x

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    torch.manual_seed(1)
    whole = method(Run(tmp_path / "whole"))
    monkeypatch.setattr(run_module, "CHECKPOINT_SHARE", float("inf"))
    torch.manual_seed(1)
    with pytest.raises(ZeroDivisionError):
        method(Run(tmp_path / "killed"), killed_at)
    run = Run(tmp_path / "killed")
    assert torch.equal(method(run), whole)
    assert run.rollbacks == 2
    logs = [
        [json.loads(line)["x"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


def test_a_result_that_was_kept_is_not_made_again(tmp_path: Path):
    run, path = Run(tmp_path), tmp_path / "distilled.safetensors"
    assert run.kept(path) is None
    distilled = DistilledSet(torch.rand(1, 2, 1, 2, 2), torch.zeros(1, 2, dtype=torch.int64)).described(seed=3)
    run.keep(distilled, path)
    kept = Run(tmp_path).kept(path)
    assert torch.equal(kept.inputs, distilled.inputs) and kept.metadata == distilled.metadata
    path.write_bytes(path.read_bytes() + b" ")
    assert Run(tmp_path).kept(path) is None
    path.unlink()
    assert Run(tmp_path).kept(path) is None


def test_sigterm_stops_like_ctrl_c():
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_checkpoint_never_runs_code(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"identity": "", "loops": [], "evil": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(DdbenchError, match="cannot be read"):
        Run(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_remaining_time_follows_the_pace():
    pace = Pace()
    assert pace.left(10) is None
    time.sleep(0.02)
    pace.tick()
    assert 0.15 < pace.left(10) < 0.6


def test_breaking_out_of_a_loop_ends_it(tmp_path: Path):
    run = Run(tmp_path)
    x, y, diverged = torch.zeros(1), torch.full((1,), 100.0), []
    for step in run.loop(100, dict(x=x)):
        x += 1
        run.log(x=x)
        if step == 24:
            break
    for step in run.loop(10, dict(x=y)):
        y += 1
        if step == 3 and not diverged:
            diverged.append(step)
            run.log(y=float("nan"))
        run.log(y=y)
    assert (x.item(), y.item(), run.steps_done, run.rollbacks) == (25, 110, 35, 1)
    run.finish()
    again = Run(tmp_path)
    assert list(again.loop(100, dict(x=x))) == list(again.loop(10, dict(x=y))) == []
    assert again.steps_done == 35


def test_states_are_copied_whole_and_must_be_readable(tmp_path: Path):
    class Counter:
        def __init__(self, kept: object) -> None:
            self.kept = kept

        def state_dict(self) -> dict:
            return {"kept": self.kept}

        def load_state_dict(self, state: dict) -> None:
            self.kept = state["kept"]

    run, counter, diverged = Run(tmp_path), Counter([0]), []
    for step in run.loop(40, dict(counter=counter)):
        counter.kept[0] += 1
        if step == 30 and not diverged:
            diverged.append(step)
            run.log(loss=float("nan"))
    assert counter.kept == [40]
    with pytest.raises(PluginError, match="cannot be restored from a checkpoint"):
        next(Run(tmp_path / "other").loop(3, dict(counter=Counter(Path("x")))))


def test_nan_in_a_model_or_in_the_last_steps_is_noticed(tmp_path: Path):
    model, diverged, run = torch.nn.Linear(1, 1), [], Run(tmp_path)
    for step in run.loop(45, dict(model=model)):
        if step == 44 and not diverged:
            diverged.append(step)
            with torch.no_grad():
                model.weight.fill_(float("nan"))
    assert run.rollbacks == 1
    assert torch.isfinite(model.weight).all()
    assert run.steps_done == 45


def test_an_exception_does_not_end_the_loop(tmp_path: Path):
    def method(run: Run, fail: bool) -> torch.Tensor:
        x = torch.zeros(1)
        for step in run.loop(30, dict(x=x)):
            if fail and step == 5:
                raise ZeroDivisionError
            x += torch.rand(1, generator=run.generator)
        return x

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole = method(Run(tmp_path / "one"), fail=False)
    with pytest.raises(ZeroDivisionError):
        method(Run(tmp_path / "two"), fail=True)
    assert torch.equal(method(Run(tmp_path / "two"), fail=False), whole)
