"""Predicted and measured memory, each measurement in a process of its own: a peak cannot be taken back."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from ddbench.engine import footprint
from ddbench.unroll import MEMORIES, Recompute, fastest_fitting

MEASURE = """
import json, sys
import torch
from torch import nn
from torch.nn import functional as F
from ddbench.machine.environment import peak_memory_mb
from ddbench.unroll import MEMORIES, SGD, fastest_fitting, loss_on, meta_gradient

memory, steps = {memory.name: memory for memory in MEMORIES}[sys.argv[1]], [int(t) for t in sys.argv[2:]]
torch.set_num_threads(1)
network = nn.Sequential(nn.Flatten(), nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 10))
params = {name: torch.randn(2, *p.shape) / 30 for name, p in network.named_parameters()}
inputs, labels = torch.randn(1, 10, 1, 16, 16), torch.arange(10)[None]
real, y = torch.randn(64, 1, 16, 16), torch.randint(10, (64,))

def held():
    return round(peak_memory_mb() * 1e6)

def go(total):
    lrs = torch.full((total, 1), 1e-3)
    meta_gradient(network, params, inputs, labels, SGD(lrs), loss_on(F.cross_entropy, real, y), memory=memory)

def predicted(total):
    return fastest_fitting(network, 2, tuple(inputs.shape), total, 64, torch.device("cpu"), among=[memory])[1]

go(1), predicted(1)  # what is loaded on first use
before, measurements = held(), []
for total in steps:
    go(total)
    measurements.append((held() - before, predicted(total)))
print(json.dumps(measurements))
"""
WEIGHTS = 2 * 4 * (256 * 1024 + 1024 + 1024 * 10 + 10)
"""Bytes of the two networks."""


def measured(memory: str, *steps: int) -> list[tuple[int, int]]:
    command = [sys.executable, "-c", MEASURE, memory, *map(str, steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [tuple(pair) for pair in json.loads(done.stdout)]


@pytest.mark.slow
def test_recompute_grows_by_the_weights_of_each_step():
    (short, _), (middle, _), (long, predicted) = measured("recompute", 3, 30, 300)
    assert long - middle == pytest.approx(270 * WEIGHTS, rel=0.25)
    assert middle - short < 27 * 1.6 * WEIGHTS
    assert long < predicted < 1.6 * long


@pytest.mark.slow
def test_checkpoint_grows_by_their_square_root():
    (middle, _), (long, predicted) = measured("checkpoint", 30, 300)
    # 300 steps keep 18 weights and up to 17 in between, 30 keep 6 and 5; all would be 270 more.
    assert long - middle < 50 * WEIGHTS
    assert long < 1.2 * predicted


@pytest.mark.slow
def test_store_is_predicted():
    [(long, predicted)] = measured("store", 100)
    assert long / 1.6 < predicted < 1.6 * long


def test_the_fastest_way_back_that_fits(monkeypatch):
    torch.set_num_threads(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def fitting(free: int, among=MEMORIES):
        monkeypatch.setattr(footprint, "free_memory", lambda device: free)
        return fastest_fitting(network, 4, (10, 10, 1, 8, 8), 1000, 100, torch.device("cpu"), among=among)

    peaks = [fitting(0, [memory])[1] for memory in MEMORIES]
    assert peaks == sorted(peaks, reverse=True)
    assert [fitting(2 * peak)[0] for peak in peaks] == list(MEMORIES)
    assert fitting(0)[0] == MEMORIES[-1]
    assert fitting(10**15, [Recompute()])[0] == Recompute()


def test_moments_of_the_inner_optimiser_count_as_weights_do():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def peak(memory, moments: int) -> int:
        return fastest_fitting(
            network, 1, (1, 10, 1, 8, 8), 1000, 0, torch.device("cpu"), among=[memory], moments=moments
        )[1]

    weights = 1000 * 4 * (64 * 10 + 10)
    for memory in (MEMORIES[0], Recompute()):
        plain, momentum, adam = (peak(memory, moments) for moments in range(3))
        assert momentum - plain == pytest.approx(footprint.SLACK * weights, rel=0.05)
        assert adam - plain == pytest.approx(2 * footprint.SLACK * weights, rel=0.05)
