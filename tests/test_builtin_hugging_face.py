import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ddbench.builtin.labels import in_test_split
from ddbench.discovery.catalog import Catalog
from tests.refusals import refusal


def test_without_the_library_its_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    code, text = refusal(f"hf:{tmp_path}", where=tmp_path)
    assert (code, text) == (3, "Error: hf:PATH needs the package datasets. pip install 'ddbench[hf]'")


def test_a_folder_that_does_not_exist(tmp_path: Path):
    code, text = refusal(f"hf:{tmp_path}/nowhere", where=tmp_path)
    assert (code, "there is no folder" in text) == (2, True)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    return library


@pytest.fixture
def table(library: Any) -> Callable[..., Any]:
    """Make a table of real digits from row `start`: columns `picture` and `digit`, with names of the classes."""
    loaded = load_digits()

    def make(start: int, count: int, names: list[str] | None = None, labels: Any = None) -> Any:
        rows = slice(start, start + count)
        pictures = [Image.fromarray((image * 15).astype(np.uint8)) for image in loaded.images[rows]]
        names = names or [f"digit {i}" for i in range(10)]
        label = library.ClassLabel(names=names) if labels is None else library.Value("string")
        features = library.Features(picture=library.Image(), digit=label)
        values = loaded.target[rows].tolist() if labels is None else labels
        return library.Dataset.from_dict({"picture": pictures, "digit": values}, features=features)

    return make


def test_saved_splits(catalog: Catalog, tmp_path: Path, library: Any, table: Callable[..., Any]):
    library.DatasetDict(train=table(0, 100), test=table(100, 30), validation=table(130, 20)).save_to_disk(
        tmp_path / "set"
    )
    component = catalog.get("dataset", f"hf:{tmp_path}/set")
    splits = component.call({}, tmp_path, False)
    assert component.facts["classes"] == tuple(f"digit {i}" for i in range(10))
    assert component.facts["label"] == "hf:set"
    loaded = load_digits()
    assert np.array_equal(splits.train_images[:, 0].numpy(), (loaded.images[:100] * 15).astype(np.uint8))
    assert splits.test_labels.tolist() == loaded.target[100:130].tolist()
    assert splits.notices == ("20 of the split validation are not used",)


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_of_a_single_split_a_fifth_is_held_out(catalog: Catalog, tmp_path: Path, table: Callable[..., Any], form: str):
    if form == "disk":
        table(0, 200).save_to_disk(tmp_path / "set")
    else:
        table(0, 200).to_parquet(tmp_path / "set" / "data.parquet")
    splits = catalog.get("dataset", f"hf:{tmp_path}/set").call({}, tmp_path, False)
    held_out = [number for number in range(200) if in_test_split(str(number))]
    assert splits.test_labels.tolist() == load_digits().target[held_out].tolist()
    assert len(splits.train_images) == 200 - len(held_out)


def test_a_folder_of_images_is_the_same_data(catalog: Catalog, tmp_path: Path, library: Any):
    loaded = load_digits()
    for i, (image, label) in enumerate(zip(loaded.images[:60], loaded.target[:60] % 2, strict=True)):
        path = tmp_path / "set" / ("test" if i >= 40 else "train") / ("even", "odd")[label] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(path)
    loaded_splits = [
        catalog.get("dataset", f"{kind}:{tmp_path}/set").call({}, tmp_path, False) for kind in ("hf", "folder")
    ]
    assert loaded_splits[0].content_hash() == loaded_splits[1].content_hash()


def test_an_option_names_a_column_of_labels(catalog: Catalog, tmp_path: Path, table: Callable[..., Any]):
    words = ["low" if label < 5 else "high" for label in load_digits().target[:60]]
    table(0, 60).add_column("size", words).save_to_disk(tmp_path / "set")
    options = {"label_column": "size"}
    component = catalog.get("dataset", f"hf:{tmp_path}/set", options=options)
    assert component.facts["classes"] == ("high", "low")
    assert len(component.call(options, tmp_path, False).train_images) > 30


def test_a_readme_fetches_nothing(tmp_path: Path, library: Any, table: Callable[..., Any]):
    (tmp_path / "set").mkdir()
    table(0, 60).to_parquet(tmp_path / "elsewhere.parquet")
    address = (tmp_path / "elsewhere.parquet").as_uri()
    (tmp_path / "set" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: {address}\n---\n"
    )
    code, text = refusal(f"hf:{tmp_path}/set", where=tmp_path)
    assert (code, "cannot be read as a Hugging Face dataset" in text) == (2, True)


@pytest.mark.parametrize(
    ("harm", "message", "code"),
    [
        (lambda one, _: one.remove_columns("picture"), "has no column of type Image. Its columns are digit", 2),
        (lambda one, _: one.remove_columns("digit"), "has no column of type ClassLabel", 2),
        (lambda one, _: one.add_column("other", one["digit"], feature=one.features["digit"]), "has several columns of labels: digit, other", 2),
        (lambda one, _: one.map(lambda row: {"digit": -1 if row["digit"] == 3 else row["digit"]}), "row 3 of train in", 2),
        (lambda one, _: one.map(lambda row: {"digit": 1}), "has no training examples of 9 classes: 'digit 0'", 2),
        (lambda one, _: one.select([0, 1]), "has no test examples", 2),
        (lambda one, library: library.DatasetDict(a=one, b=one), "has the splits a, b, not train and test", 2),
        (lambda one, library: library.DatasetDict(train=one, test=one.rename_column("digit", "label")), "differ in the column digit", 2),
        (lambda one, library: one.cast_column("picture", library.Image(decode=False)).map(lambda row: {"picture": {"bytes": row["picture"]["bytes"][:40], "path": None}}), "row 0 of train in", 1),
        (lambda one, library: one.cast_column("picture", library.Image(decode=False)).map(lambda row: {"picture": None}), "has no image", 1),
    ],
)  # fmt: skip
def test_data_that_are_no_examples(
    tmp_path: Path, library: Any, table: Callable[..., Any], harm: Callable[..., Any], message: str, code: int
):
    harm(table(0, 60), library).save_to_disk(tmp_path / "set")
    exit_code, text = refusal(f"hf:{tmp_path}/set", where=tmp_path)
    assert message in text
    assert exit_code == code


def test_a_damaged_file_is_refused(tmp_path: Path, table: Callable[..., Any]):
    table(0, 60).save_to_disk(tmp_path / "set")
    [file] = (tmp_path / "set").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:3000])
    code, text = refusal(f"hf:{tmp_path}/set", where=tmp_path)
    assert (code, "cannot be read as a Hugging Face dataset" in text) == (2, True)
