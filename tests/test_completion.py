import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
DDBENCH = Path(sys.executable).with_name("ddbench")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the index that the console script reads."""
    folder = tmp_path_factory.mktemp("warm")
    environment = {**os.environ, "DDBENCH_CACHE": str(folder)}
    subprocess.run([DDBENCH, "list", "methods"], cwd=folder, env=environment, check=True, capture_output=True)
    return folder


@pytest.fixture
def pressed(tmp_path: Path, cold_cache: Path, cache: Path):
    """Return what bash offers after the words so far; the last word is unfinished."""
    shutil.copytree(cache / "index", cold_cache / "index")

    def press(line: str, script: str = "") -> list[str]:
        words = line.split(" ")
        done = subprocess.run(
            [DDBENCH] if not script else [sys.executable, "-c", script],
            cwd=tmp_path,
            env={**os.environ, "_DDBENCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    return press


def test_names_of_each_kind(pressed):
    assert pressed("ddbench run --method unrol") == ["unrolled_gd"]
    assert pressed("ddbench run -m unrolled_gd --dataset ") == [
        "ag_news", "cifar10", "cifar100", "digits", "fashion_mnist", "fsdd", "imagenette", "mnist", "speech_commands",
        "sst2", "svhn", "trec", "usps",
    ]  # fmt: skip
    assert pressed("ddbench run --protocol train") == [
        "train/v1", "train-dsa/v1", "train-dsa-rate/v1", "train-teacher/v1", "train-imagenet/v1",
        "train-views/v1",
    ]  # fmt: skip
    assert "wang2018/mnist-fixed-1x3" in pressed("ddbench run --experiment wang2018/mnist-f")
    assert pressed("ddbench evaluate x --cross-network lenet,conv") == ["lenet,convnet"]
    assert pressed("ddbench run --method nothing_like_it") == []


def test_settings_are_those_of_what_is_named(pressed):
    assert pressed("ddbench run -m unrolled_gd --set outer_") == ["outer_steps=", "outer_lr="]
    assert pressed("ddbench run -m herding --set init.s") == ["init.scheme="]
    assert pressed("ddbench run -m unrolled_gd --sweep outer_l") == ["outer_lr="]
    assert pressed("ddbench run -m herding --network convnet --set network.") == [
        "network.width=", "network.depth=", "network.norm=",
    ]  # fmt: skip


def test_runs(pressed, tmp_path: Path):
    for name in ("herding-mnist-ipc10-1f", "unfinished"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs/herding-mnist-ipc10-1f/spec.json").write_text("{}")
    assert pressed("ddbench resume ") == ["runs/herding-mnist-ipc10-1f"]
    assert pressed("ddbench show herding-m") == ["herding-mnist-ipc10-1f"]
    (tmp_path / "runs/herding-mnist-ipc10-1f/result.json").write_text('{"status": "ok"}')
    assert pressed("ddbench resume ") == []
    assert pressed("ddbench verify ") == ["runs/herding-mnist-ipc10-1f"]


def test_a_key_press_imports_nothing_heavy(pressed):
    script = (
        "import atexit, sys; sys.argv = ['ddbench']\n"
        "import ddbench.cli as cli\n"
        "atexit.register(lambda: print(*{'torch', 'numpy', 'timm'} & set(sys.modules)))\n"
        "cli.main()"
    )
    assert pressed("ddbench run --method herd", script) == ["herding"]


def test_names_are_gathered_anew_when_plugins_change(pressed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDBENCH_DISABLE", "coreset")
    assert pressed("ddbench run --method herd") == []
    monkeypatch.delenv("DDBENCH_DISABLE")
    assert pressed("ddbench run --method herd") == ["herding"]


def test_plugins_of_a_folder_are_its_own(pressed, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import ddbench\nprint('loaded')\n\n@ddbench.method\ndef herdsman(task, run):\n    'Random images.'\n\n"
        "@ddbench.hookimpl\ndef ddbench_methods():\n    return [herdsman]\n"
    )
    (tmp_path / "ddbench.toml").write_text('plugins = ["mine.py"]')
    assert pressed("ddbench run --method herd") == ["herding", "herdsman"]
    (tmp_path / "ddbench.toml").write_text("plugins = [")
    assert pressed("ddbench run --method herd") == []
    (tmp_path / "ddbench.toml").unlink()
    assert pressed("ddbench run --method herd") == ["herding"]


def test_a_damaged_index_is_built_again(pressed, tmp_path: Path):
    [index] = (tmp_path / "cache/index").iterdir()
    index.write_text("{")
    assert pressed("ddbench run --method herd") == ["herding"]
    assert '"herding"' in index.read_text()
