import random
import subprocess
import sys

import numpy as np
import torch

from ddbench.machine import environment
from ddbench.machine.environment import describe, peak_memory_mb
from ddbench.machine.folders import cache_dir, data_dir
from ddbench.machine.seeds import derive_seed, seed_everything


def test_derived_seeds_never_change():
    """Pinned: protocols draw their networks from these, on every machine and in every version."""
    assert derive_seed("replay/v1", "evaluation") == 2057868179906139526
    assert derive_seed("a", 1) != derive_seed("a", 2)
    assert derive_seed("a/b") == derive_seed("a", "b")
    code = "from ddbench.machine.seeds import derive_seed; print(derive_seed('x', 3))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(other) == derive_seed("x", 3) < 2**63


def test_seeding_reaches_every_generator():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(2**62 + 5)
    first = draw()
    seed_everything(2**62 + 5)
    assert draw() == first


def test_the_machine_is_described():
    facts = describe(torch.device("cpu"))
    assert facts["torch"] == torch.__version__
    assert facts["device"] == "cpu"
    assert all(isinstance(value, str) for value in facts.values())
    assert 50 < peak_memory_mb() < 100_000


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "c"))
    assert data_dir() == tmp_path / "d"
    assert cache_dir() == tmp_path / "c"
    monkeypatch.delenv("DDBENCH_DATA")
    assert "ddbench" in str(data_dir())


def test_precision_is_set_within_a_block_alone():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for name, allowed in (("float32", False), ("tf32", True)):
        with environment.precision(name):
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
