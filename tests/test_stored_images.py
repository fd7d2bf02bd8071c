"""Images that stay on disk behave as those in memory, and never all of them are read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddbench.builtin import folders
from ddbench.contract import stored_images
from ddbench.contract.run import Run
from ddbench.contract.spec import RunSpec
from ddbench.contract.stored_images import StoredImages
from ddbench.discovery.catalog import Catalog
from ddbench.engine.networks import forward
from ddbench.errors import DdbenchError, Unsupported, UsageError
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import Prepared, prepare

NETWORK = {"name": "convnet", "options": {"width": 8, "depth": 1, "norm": "batch"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for number, name in enumerate(("dark", "light")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(count):
                shade = noise.integers(0, 120, (8, 8, 3)) + 120 * number
                Image.fromarray(shade.astype(np.uint8)).save(tmp_path / "set" / split / name / f"{i}.png")
    return tmp_path / "set"


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "IN_MEMORY", 0)


def prepared(path: Path, method: object = "random_subset", **options: object) -> Prepared:
    catalog = Catalog()
    dataset = {"name": f"folder:{path}", "options": options}
    spec = RunSpec.parse({"method": method, "dataset": dataset, "network": NETWORK, "images_per_class": 2})
    return prepare(plan_run(spec, catalog), catalog)


def test_stored_images_equal_those_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch):
    inside = prepared(folder)
    monkeypatch.setattr(folders, "IN_MEMORY", 0)
    monkeypatch.setattr(stored_images, "READ_AT_ONCE", 0)
    monkeypatch.setattr("ddbench.contract.examples.READ_AT_ONCE", 0)
    outside = prepared(folder)
    stored = outside.train.inputs
    assert isinstance(stored, StoredImages)
    assert (stored.shape, stored.dtype, stored.device) == (
        inside.train.inputs.shape,
        torch.float32,
        torch.device("cpu"),
    )
    assert torch.equal(outside.train.labels, inside.train.labels)
    assert outside.train.info.content_hash != inside.train.info.content_hash
    with pytest.raises(Unsupported, match="this needs all 36 images in memory"):
        stored.mean()
    monkeypatch.setattr(stored_images, "READ_AT_ONCE", 10_000)
    monkeypatch.setattr("ddbench.contract.examples.READ_AT_ONCE", 10_000)
    chosen = torch.tensor([3, 1, 30])
    for part in (chosen, slice(2, 5), torch.tensor([[0, 1], [2, 3]]), 7):
        torch.testing.assert_close(stored[part] + 0, inside.train.inputs[part])
    torch.testing.assert_close(outside.train[chosen].inputs, inside.train[chosen].inputs)
    state = inside.task(torch.Generator().manual_seed(0)).networks.sample(1).network(0)
    outputs = [forward(inside.module, state, each.train.inputs, batch=10) for each in (inside, outside)]
    torch.testing.assert_close(*outputs)
    assert outside.train.checksum() == outside.checksum


@pytest.mark.usefixtures("on_disk")
def test_methods_that_work_in_batches_take_them(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    quick = {
        "random_subset": {},
        "rded": {"teacher_steps": 5, "candidates": 10},
        "teacher_labels": {"epochs": 1, "images": "herded"},
    }
    for name, options in quick.items():
        ready = prepared(folder, {"name": name, "options": options})
        monkeypatch.setattr(stored_images, "READ_AT_ONCE", 35 * 3 * 64 * 4 + 768)
        monkeypatch.setattr("ddbench.contract.examples.READ_AT_ONCE", 35 * 3 * 64 * 4 + 768)
        (tmp_path / name).mkdir()
        run = Run(tmp_path / name)
        task = ready.task(run.generator)
        ready.plan.method.call(ready.settings.method.options, task, run).validate(task)


def test_the_index_is_kept_until_a_folder_changes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    listed: list[str] = []
    listing = folders._listings
    monkeypatch.setattr(folders, "_listings", lambda path, *rest: listed.append(str(path)) or listing(path, *rest))
    first = folders.indexed(folder)
    assert folders.indexed(folder) == first
    assert len(listed) == 1
    Image.new("RGB", (8, 8)).save(folder / "train" / "dark" / "new.png")
    assert len(folders.indexed(folder).train.names) == len(first.train.names) + 1
    assert len(listed) == 2
    folders._kept(folder).write_text("{}")
    assert folders.indexed(folder).classes == ("dark", "light")


@pytest.mark.usefixtures("on_disk")
def test_a_folder_that_changes_while_it_is_read_is_named(folder: Path):
    splits = Catalog().get("dataset", f"folder:{folder}").call({}, folder, False)
    (folder / "train" / "dark" / "3.png").write_bytes(b"other")
    (folder / "train" / "dark" / "4.png").unlink()
    names = folders.indexed(folder).train.names
    for name in ("3.png", "4.png"):
        number = names.index(f"train/dark/{name}") if f"train/dark/{name}" in names else 14
        with pytest.raises(DdbenchError, match=r"\.png was changed or removed after the folder had been listed"):
            splits.train_images.pixels(torch.tensor([number]))


@pytest.mark.parametrize("limit", [0, 2**31])
def test_damaged_images_are_counted_and_left_out_if_asked(folder: Path, limit: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders, "IN_MEMORY", limit)
    for name in ("3.png", "4.png"):
        (folder / "train" / "dark" / name).write_bytes(b"")
    component = Catalog().get("dataset", f"folder:{folder}")
    whole = component.call({"skip_damaged": True}, folder, False)
    assert (len(whole.train_labels), len(whole.test_labels)) == (38, 12)
    assert "2 left out because they cannot be read, such as" in whole.notices[0] and "3.png" in whole.notices[0]
    with pytest.raises(DdbenchError, match=r"3\.png cannot be read as an image") as refusal:
        component.call({}, folder, False).train_images.pixels(torch.arange(40))
    assert limit == 0 or "and 1 more" in refusal.value.message


@pytest.mark.usefixtures("on_disk")
def test_sizes_and_channels_on_disk(folder: Path):
    Image.new("L", (8, 8), 7).save(folder / "train" / "dark" / "grey.png")
    Image.new("CMYK", (8, 8)).save(folder / "train" / "dark" / "inks.jpg")
    Image.new("P", (8, 8)).save(folder / "train" / "dark" / "palette.png")
    splits = Catalog().get("dataset", f"folder:{folder}").call({}, folder, False)
    assert tuple(splits.train_images.shape) == (43, 3, 8, 8)
    assert splits.train_images.pixels(torch.arange(43)).shape == (43, 3, 8, 8)
    Image.new("RGB", (9, 8)).save(folder / "train" / "dark" / "wide.png")
    splits = Catalog().get("dataset", f"folder:{folder}").call({}, folder, False)
    with pytest.raises(UsageError, match=r"wide\.png is 9x8 pixels, others are 8x8"):
        splits.train_images.pixels(torch.arange(44))
    sized = Catalog().get("dataset", f"folder:{folder}").call({"size": 4}, folder, False)
    assert sized.train_images.pixels(torch.tensor([43])).shape == (1, 3, 4, 4)


def test_imagenette_and_imagenet_say_what_is_missing(
    ddbench: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    for name in ("imagenet", "imagenette"):
        refused = ddbench("run", "-m", "random_subset", "-d", name)
        assert refused.code == 3
        assert f"{name} is not in" in refused.message()
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / "imagenette" / split / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "imagenette" / split / name / "x.png")
    refused = ddbench("run", "-m", "random_subset", "-d", "imagenette")
    assert refused.code == 2
    assert "does not hold the ten class folders" in refused.message()
