"""The count of examples that go forward through networks, and the limit on it."""

import copy
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddbench import networks, unroll
from ddbench.contract.observer import Silent
from ddbench.contract.run import Run
from ddbench.contract.state import State
from ddbench.errors import Interrupted
from ddbench.machine import passes


def small_network() -> tuple[nn.Module, State]:
    torch.manual_seed(0)
    module = passes.count_calls(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)))
    return module, State({name: p.detach() for name, p in module.named_parameters()})


def distil(run: Run, steps: int = 10, *, stop_at: int | None = None) -> Tensor:
    """A method in small: each outer step sends 5 images through a network, in two calls."""
    module, _ = small_network()
    images = torch.zeros(5, 1, 8, 8)
    for step in run.loop(steps, {"images": images}):
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)
        images += torch.randn(images.shape, generator=run.generator)
        copy.deepcopy(module)(images[:2])
        module(images[2:])
    return images


def test_a_limit_stops_a_loop_and_schedules_end_with_it(tmp_path: Path):
    run = Run(tmp_path, most_passes=20)
    shares = []
    for _ in run.loop(1000, {}):
        shares.append(run.share_done)
        small_network()[0](torch.zeros(8, 1, 8, 8))
    assert (run.steps_done, run.passes, run.stopped_by) == (3, 24, "pass limit")
    assert shares == [0, 0.4, 0.8]


def test_the_time_that_is_left_follows_the_limit(tmp_path: Path):
    class Times(Silent):
        def __init__(self) -> None:
            self.left: list[float | None] = []

        def progress(self, done, total, values, seconds_left) -> None:
            self.left.append(seconds_left)

    times = Times()
    run = Run(tmp_path, most_passes=20, reporter=times)
    for _ in run.loop(100_000, {}):
        time.sleep(0.01)
        small_network()[0](torch.zeros(8, 1, 8, 8))
    # Two more steps after the first, none after the third; 100 000 would take a quarter of an hour.
    assert 0.02 < times.left[0] < 60 and times.left[-1] == 0


def test_interruptions_do_not_move_the_count(tmp_path: Path):
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    whole = Run(tmp_path / "whole", most_passes=33)
    images = distil(whole)
    assert (whole.passes, whole.steps_done) == (35, 7)
    with pytest.raises(Interrupted):
        distil(Run(tmp_path / "halves", most_passes=33), stop_at=3)
    small_network()[0](torch.zeros(50, 1, 8, 8))  # what the process does otherwise is not the run's
    resumed = Run(tmp_path / "halves", most_passes=33)
    assert torch.equal(distil(resumed), images)
    assert (resumed.passes, resumed.steps_done) == (35, 7)


def test_cached_results_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "cache"))
    run = Run(tmp_path)

    def make() -> dict[str, Tensor]:
        return {"logits": small_network()[0](torch.zeros(7, 1, 8, 8)).detach()}

    run.cached("logits", "key", make)
    assert run.passes == 0
    make()
    assert run.passes == 7


@pytest.mark.parametrize("stacked", ["0", "1"])
def test_every_way_of_computing_counts_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stacked: str):
    monkeypatch.setenv("DDBENCH_STACKED", stacked)
    module, state = small_network()
    starts = State.stack([state] * 3)
    inputs, labels = torch.randn(2, 5, 1, 8, 8), torch.tensor([[0, 1, 0, 1, 0]] * 2)
    for network in (module, passes.count_calls(_Opaque(module))):
        own = starts if network is module else State({f"inner.{k}": v for k, v in starts.params.items()})
        before = passes.total()
        unroll.meta_gradient(
            network, own, inputs, labels, unroll.SGD(0.1), unroll.loss_on(F.cross_entropy, inputs[0], labels[0]),
            steps=4, memory=unroll.Store(),
        )  # fmt: skip
        # Three networks: four inner steps on 5 images, and the outer loss on 5.
        assert passes.total() - before == 3 * (4 * 5 + 5)


class _Opaque(nn.Module):
    """A network that is no chain of layers to the engine; its own network is not counted again."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = copy.deepcopy(module)
        self.inner._forward_pre_hooks.clear()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)


def test_helpers_for_methods_count_alike():
    module, state = small_network()
    images, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 0, 1, 0, 1])
    for call in (
        lambda: networks.logits(module, state, images),
        lambda: networks.features(module, state, images),
        lambda: networks.gradient(module, state, images, labels),
        lambda: networks.forward(module, state, images),
        lambda: networks.fit(module, state, [(images, labels)], lambda p: torch.optim.SGD(p, 0.1)),
    ):
        before = passes.total()
        call()
        assert passes.total() - before == 6


def test_the_record_holds_the_count_and_the_limit(ddbench):
    command = ("run", "-m", "dm", "--network", "linear", "--ipc", 1, "--protocol", "train/v1", "--eval-networks", 2)
    done = ddbench(*command, "--pass-limit", 5000, "--json").json()
    assert done["loop"]["stopped_by"] == "pass limit"
    assert 5000 <= done["loop"]["passes"] < 6500
    again = ddbench(*command, "--pass-limit", 5000, "--seed", 0, "--dry-run")
    assert "pass limit   5,000" in again.out
