"""Sets that are distilled from one dataset and scored on the test split of another."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddbench.errors import UsageError

RUN = ("run", "-m", "herding", "-d", "folder:first", "--network", "linear", "--ipc", 1, "--eval-networks", 2)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two datasets of dark and bright images: 8x8 grey, and 12x10 in colour with more test images."""
    for name, mode, size, count in (("first", "L", (8, 8), 3), ("second", "RGB", (10, 12), 5)):
        for split, images in (("train", 8), ("test", count)):
            for label, shade in (("dark", 20), ("bright", 140)):
                folder = tmp_path / name / split / label
                folder.mkdir(parents=True)
                for i in range(images):
                    grey = shade + 8 * i
                    Image.new(mode, size, grey if mode == "L" else (grey, grey, grey)).save(folder / f"{i}.png")
    return tmp_path


def records(folder: Path) -> dict[str, dict]:
    read = [json.loads(path.read_text()) for path in folder.glob("leaderboards/records/*/*.json")]
    return {record["run_id"]: record for record in read}


def test_the_test_split_alone_is_of_the_other_dataset(folders: Path, make_prepared):
    first, second = (f"folder:{folders / name}" for name in ("first", "second"))
    alone, other = make_prepared(dataset=first), make_prepared(dataset=second, sample_shape=(1, 8, 8))
    prepared = make_prepared(dataset=first, eval_dataset=second)
    # In the shape of the set, and normalised by the training images of its own dataset.
    assert torch.equal(prepared.setting.test.inputs, other.setting.test.inputs)
    assert torch.equal(prepared.setting.validation.inputs, alone.setting.validation.inputs)
    assert torch.equal(prepared.train.inputs, alone.train.inputs)
    assert prepared.record.test == 10
    assert prepared.tested_on.content_hash == other.record.content_hash
    assert prepared.settings.distillation.fingerprint == alone.settings.fingerprint != prepared.settings.fingerprint
    same = make_prepared(dataset=first, eval_dataset=first)
    assert same.tested_on is None
    assert same.settings == alone.settings


@pytest.mark.slow
def test_scores_on_another_dataset_leave_rows_of_their_own(ddbench, folders: Path):
    made = ddbench(*RUN, "--json").json()
    scored = ddbench("evaluate", made["run_dir"], "--also-on", "folder:second")
    assert scored.code == 0, scored.err
    first, name = sorted(records(folders))
    assert first == made["run_id"]
    assert name.startswith(f"{first}-to-folder_second-")
    record = records(folders)[name]
    assert record["dataset"]["name"].startswith("folder:first@")
    assert record["eval_dataset"]["name"].startswith("folder:second@")
    assert (made["dataset"]["test"], record["dataset"]["test"]) == (6, 10)
    assert "random_subset" in record["companions"]
    assert ddbench("leaderboard", "--check").out == "2 records, none invalid.\n"
    assert "reproduced exactly" in ddbench("verify", name).out
    # A run that is tested on the other dataset from the start is the same run.
    again = ddbench(*RUN, "--eval-dataset", "folder:second")
    assert "Reproduced exactly" in again.err
    assert "8x8" in " ".join(line for line in again.err.splitlines() if line.startswith("Tested"))
    # Neither row ranks with the other, nor with sets of the dataset that tested.
    own = ("run", "-m", "herding", "-d", "folder:second", *RUN[5:], "--set", "sample_shape=[1,8,8]")
    assert ddbench(*own).code == 0
    # One heading of each ranking, in the table of every method.
    assert len(records(folders)) == 3
    rankings = ddbench("leaderboard", "--method", "herding").out
    assert rankings.count("tested on folder:second@") == 1
    titles = [line for line in rankings.splitlines() if ", 1 images per class, " in line]
    assert len(titles) == 3
    [cells] = [
        line for line in (folders / "leaderboards" / "classification.csv").read_text().splitlines() if name in line
    ]
    assert "folder:second@" in cells
    other = Image.new("RGB", (10, 12), (255, 0, 0))
    other.save(folders / "second" / "test" / "dark" / "0.png")
    assert "the data here are not those of" in ddbench("verify", name).err


def test_a_dataset_that_networks_of_the_set_cannot_be_tested_on_is_refused(folders: Path, make_prepared):
    own = {"dataset": f"folder:{folders / 'first'}", "eval_dataset": f"folder:{folders / 'second'}"}
    with pytest.raises(UsageError, match=r"label 0 is 'bright' in .* and '0' in digits"):
        make_prepared(**{**own, "eval_dataset": "digits"})
    with pytest.raises(UsageError, match="digits holds image and trec text"):
        make_prepared(dataset="digits", eval_dataset="trec")
    with pytest.raises(UsageError, match="by its test split alone"):
        make_prepared(**own, split="validation")


def test_arrays_of_another_shape_are_refused(tmp_path: Path, make_prepared):
    import numpy as np

    for name, width in (("wide", 6), ("narrow", 4)):
        values = np.random.default_rng(0).normal(size=(12, width)).astype("float32")
        labels = np.arange(12) % 2
        np.savez(tmp_path / f"{name}.npz", x_train=values, y_train=labels, x_test=values, y_test=labels)
    with pytest.raises(UsageError, match="not converted to another shape"):
        make_prepared(dataset=f"npz:{tmp_path / 'wide.npz'}", eval_dataset=f"npz:{tmp_path / 'narrow.npz'}")
