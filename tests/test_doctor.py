import os
from pathlib import Path

import pytest

from ddbench.discovery.catalog import Catalog
from ddbench.pipeline.doctor import examine


@pytest.fixture(autouse=True)
def _no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "data"))


@pytest.mark.slow
def test_a_sound_installation(ddbench):
    done = ddbench("doctor")
    assert done.code == 0
    for about in ("libraries", "device", "memory", "cache", "runs", "plugins", "dataset digits: here, verified"):
        assert f"ok      {about}" in done.out, done.out
    # What can be fetched is no fault, and says how.
    assert "missing dataset mnist" in done.out


@pytest.mark.slow
def test_a_broken_plugin_and_a_file_in_the_place_of_a_folder(ddbench, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "file").write_text("")
    done = ddbench("doctor", "--plugin", "broken.py", "--runs", "file/runs", "--json")
    assert done.code == 1
    faults = {f["about"]: f for f in done.json()["findings"] if f["status"] == "fault"}
    assert set(faults) == {"plugins", "runs"}
    assert "no_such_package" in faults["plugins"]["text"]
    assert faults["runs"]["fix"] == "Name another folder with --runs."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(catalog: Catalog, tmp_path: Path):
    tmp_path.chmod(0o500)
    found = {f.about: f for f in examine(catalog, tmp_path / "runs", tmp_path)}
    assert found["runs"].status == found["leaderboards"].status == "fault"


def test_little_memory_is_answered_without_an_option_of_a_method(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ddbench.pipeline.doctor.LITTLE_MEMORY", float("inf"))
    [memory] = [finding for finding in examine(catalog, tmp_path, tmp_path) if finding.about == "memory"]
    assert memory.status == "fault" and memory.fix and "--set" not in memory.fix


def test_libraries_that_do_not_go_together(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torchvision.ops

    def lacking(*arguments: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", lacking)
    found = {f.about: f for f in examine(catalog, tmp_path, tmp_path)}
    assert found["libraries"].status == "fault" and "together" in found["libraries"].fix
