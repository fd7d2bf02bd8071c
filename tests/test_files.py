import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ddbench.errors import DdbenchError
from ddbench.machine.files import atomic_write, locked


def test_replaces_the_whole_file_and_honours_the_umask(tmp_path: Path):
    path = tmp_path / "deep" / "file.txt"
    atomic_write(path, "old")
    atomic_write(path, b"new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file.txt"
    atomic_write(path, "old")
    real_fdopen = os.fdopen

    def full(handle: int, mode: str):
        os.close(handle)
        return real_fdopen(os.open("/dev/full", os.O_WRONLY), mode)

    monkeypatch.setattr("ddbench.machine.files.os.fdopen", full)
    with pytest.raises(DdbenchError, match="no space left on device") as error:
        atomic_write(path, "new")
    assert "Free some space" in error.value.hint
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DdbenchError, match="cannot write"):
        atomic_write(tmp_path / "file" / "below", "text")


def test_a_lock_keeps_other_processes_out(tmp_path: Path):
    path = tmp_path / "board.csv"
    code = f"from pathlib import Path; from ddbench.machine.files import locked\nwith locked(Path({str(path)!r}), timeout=0.2): pass"
    with locked(path):
        held = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    free = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert held.returncode != 0
    assert "another process has held" in held.stderr
    assert free.returncode == 0


def test_a_lock_serialises_threads(tmp_path: Path):
    path = tmp_path / "count"
    path.write_text("0")

    def add() -> None:
        for _ in range(20):
            with locked(path):
                atomic_write(path, str(int(path.read_text()) + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert path.read_text() == "80"
