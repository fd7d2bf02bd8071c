import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ddbench.discovery.catalog import Catalog
from tests.refusals import refusal

Arrays = dict[str, np.ndarray]


@pytest.fixture
def digits() -> Arrays:
    loaded = load_digits()
    x, y = (loaded.images * 15).astype(np.uint8), loaded.target
    return {"x_train": x[:300], "y_train": y[:300], "x_test": x[300:400], "y_test": y[300:400]}


def save(where: Path, arrays: Arrays) -> str:
    np.savez(where / "set.npz", **arrays)
    return f"npz:{where}/set.npz"


def changed(arrays: Arrays, **functions: Callable[[np.ndarray], object]) -> Arrays:
    """Return the arrays, those of one letter (`x`, `y`) or one name changed by a function."""
    return {
        key: functions.get(key, functions.get(key[0], lambda a: a))(array)  # type: ignore[misc]
        for key, array in arrays.items()
    }


def rgb(images: np.ndarray) -> np.ndarray:
    return np.stack([images, images // 2, 255 - images], axis=-1)


@pytest.mark.parametrize(
    ("change", "channels", "notice"),
    [
        (lambda x: x, 1, ""),
        (lambda x: x[..., None], 1, ""),
        (lambda x: x[:, None], 1, ""),
        (rgb, 3, ""),
        (lambda x: rgb(x).transpose(0, 3, 1, 2), 3, ""),
        (lambda x: x.astype(np.int64), 1, "int64 of whole numbers taken as pixels 0 .. 255"),
        (lambda x: x.astype(np.float32), 1, "float32 of whole numbers taken as pixels 0 .. 255"),
        (lambda x: x / 255, 1, "float64 in [0, 1] scaled to 0 .. 255"),
        (lambda x: (x - 0.4).clip(0) / 255, 1, "float64 in [0, 1] scaled to 0 .. 255"),
        (lambda x: (rgb(x) / 255).astype(np.float16), 3, "float16 in [0, 1] scaled to 0 .. 255"),
    ],
)
def test_images_of_every_layout(
    catalog: Catalog, tmp_path: Path, digits: Arrays, change: Callable, channels: int, notice: str
):
    component = catalog.get("dataset", save(tmp_path, changed(digits, x=change)))
    splits = component.call({}, tmp_path, False)
    for images, labels, split in (
        (splits.train_images, splits.train_labels, "train"),
        (splits.test_images, splits.test_labels, "test"),
    ):
        wanted = digits[f"x_{split}"][:, None] if channels == 1 else rgb(digits[f"x_{split}"]).transpose(0, 3, 1, 2)
        assert torch.equal(images, torch.from_numpy(wanted.copy()))
        assert labels.tolist() == digits[f"y_{split}"].tolist()
    assert component.facts["sample_shape"] == (channels, 8, 8)
    assert splits.notices == ((notice,) if notice else ())


@pytest.mark.parametrize(
    ("change", "classes"),
    [
        (lambda y: y.astype(np.float64), tuple("0123456789")),
        (lambda y: y[:, None].astype(np.uint8), tuple("0123456789")),
        (lambda y: y > 4, ("0", "1")),
        (lambda y: np.where(y > 4, "high", " low "), ("high", "low")),
        (lambda y: np.where(y > 4, b"high", b"low"), ("high", "low")),
        (lambda y: y % 2 * 100 - 7, ("-7", "93")),
    ],
)
def test_labels_of_every_type(catalog: Catalog, tmp_path: Path, digits: Arrays, change: Callable, classes: tuple):
    component = catalog.get("dataset", save(tmp_path, changed(digits, y=change)))
    assert component.facts["classes"] == classes
    labels = component.call({}, tmp_path, False).train_labels
    values = change(digits["y_train"]).ravel().tolist()
    for value in set(values):
        assert len({int(label) for label, other in zip(labels, values, strict=True) if other == value}) == 1
    assert len(labels.unique()) == len(classes)


class Malicious:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("run-by-the-pickle",)


def objects(values: np.ndarray) -> np.ndarray:
    return np.array([Malicious()] * len(values), dtype=object)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(y_train=lambda y: y[:-1]), "x_train of shape [300, 8, 8] for 299 labels"),
        (dict(x_test=lambda x: x[:-1]), "x_test of shape [99, 8, 8] for 100 labels"),
        (dict(x=lambda x: x[0, 0, 0]), "x_train of shape [] for 300 labels"),
        (dict(x_test=lambda x: x[:, :4]), "images of shape [8, 8] in x_train and [4, 8] in x_test"),
        (dict(x=lambda x: x[..., None].repeat(4, axis=3)), "none is an axis of one or three channels"),
        (dict(x=lambda x: x[:, :3, :, None].repeat(3, axis=3)), "channels could be first or last"),
        (dict(x=lambda x: x[:, :0]), "x_train of {npz} has the shape [300, 0, 8]"),
        (dict(x=lambda x: x.astype(int) - 5), "of type int64 from -5 to"),
        (dict(x=lambda x: x.reshape(len(x), 64) + np.nan), "has values that are not finite"),
        (dict(x=lambda x: np.where(x > 200, np.nan, x / 255)), "of type float64 from nan to nan"),
        (dict(x=lambda x: x.astype(np.uint16) * 257), "of type uint16 from 0 to"),
        (dict(x_test=lambda x: x / 255), "of type uint8 and float64"),
        (dict(x=lambda x: x > 100), "of type bool"),
        (dict(x=lambda x: x.astype(str)), "of type <U"),
        (dict(y=lambda y: np.where(y == 3, np.nan, y)), "example 3 of y_train in {npz} has no label but NaN"),
        (dict(y=lambda y: y / 2), "example 1 of y_train in {npz} has the label 0.5, which is not a whole number"),
        (dict(y=lambda y: np.where(y == 3, "", "a")), "example 3 of y_train in {npz} has no label."),
        (dict(y=lambda y: np.where(y == 3, " ", "a")), "has no label."),
        (dict(y=lambda y: np.where(y == 3, "3", "a")), "partly numbers and partly names: '3' beside 'a'"),
        (dict(y=lambda y: np.eye(10)[y]), "np.argmax(y, axis=1)"),
        (dict(y=lambda y: y[0]), "y_train of {npz} has the shape []"),
        (dict(y=lambda y: y + 0j), "has a label of type complex"),
        (dict(y=lambda y: y * 0), "has one class only: 0"),
        (dict(y_test=lambda y: y + 1), "no training examples of class '10'"),
        (dict(x_test=lambda x: x[:0], y_test=lambda y: y[:0]), "has no test examples"),
        (dict(x_train=lambda x: x[:0], y_train=lambda y: y[:0]), "has no training examples"),
        (dict(y_train=objects), "y_train of {npz} holds Python objects, which could run code"),
        (dict(x_test=objects), "x_test of {npz} holds Python objects, which could run code"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Arrays, change: dict, message: str
):
    monkeypatch.chdir(tmp_path)
    code, text = refusal(save(tmp_path, changed(digits, **change)), where=tmp_path)
    assert message.format(npz=tmp_path / "set.npz") in text
    assert code == 2
    assert not Path("run-by-the-pickle").exists()


def missing(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def pickled(file: Path) -> None:
    file.write_bytes(pickle.dumps(Malicious()))


def pickled_member(file: Path) -> None:
    """A member that is no array but a pickle: numpy would load it where it may."""
    with zipfile.ZipFile(file, "w") as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{key}.npy", pickle.dumps(Malicious()))


def damaged(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def without_labels(file: Path) -> None:
    np.savez(file, x_train=np.zeros(3))


def single(file: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    file.write_bytes(stream.getvalue())


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (missing, "there is no file"),
        (cut, "is not an npz archive, or it is cut off"),
        (pickled, "is not an npz archive"),
        (single, "is not an npz archive"),
        (pickled_member, "is damaged"),
        (damaged, "is damaged: Bad CRC-32"),
        (without_labels, "has no array x_test; it has x_train"),
    ],
)
def test_files_that_are_no_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Arrays, harm: Callable[[Path], None], message: str
):
    monkeypatch.chdir(tmp_path)
    name = save(tmp_path, digits)
    harm(tmp_path / "set.npz")
    code, text = refusal(name, where=tmp_path)
    assert message in text
    assert code == 2
    assert not Path("run-by-the-pickle").exists()


def test_a_run_says_what_it_converted(ddbench: Callable, tmp_path: Path, digits: Arrays):
    save(tmp_path, changed(digits, x=lambda x: x / 255))
    done = ddbench("run", "-m", "random_subset", "-d", "npz:set.npz", "--ipc", 1, "--network", "linear", "--protocol", "knn/v1")  # fmt: skip
    assert (done.code, "Images float64 in [0, 1] scaled to 0 .. 255" in done.message()) == (0, True)
    again = ddbench("evaluate", next((tmp_path / "runs").iterdir()))
    assert again.code == 0
    assert (
        again.out.splitlines()[0].split() == next(line for line in done.out.splitlines() if "accuracy" in line).split()
    )
