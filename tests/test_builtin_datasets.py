import gzip
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ddbench.builtin import datasets
from ddbench.errors import DdbenchError, MissingPrerequisite


def test_digits_need_nothing(tmp_path: Path):
    splits = datasets.digits(tmp_path, False)
    assert splits.train_images.shape == (1437, 1, 8, 8)
    assert splits.test_images.shape == (360, 1, 8, 8)
    assert splits.train_images.dtype == torch.uint8
    assert not splits.partial
    # Pinned: rows from other machines are about the same images.
    assert splits.content_hash() == "69aeb2c301d282904a877f8dd4a34a4a69bd9438a32dc4fb8b928a6e9cff1348"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "train", "test", "shape", "partial"),
    [
        ("mnist", 60_000, 10_000, (1, 28, 28), False),
        ("usps", 7_291, 2_007, (1, 16, 16), False),
        ("fashion_mnist", 10_000, 2_000, (1, 28, 28), True),
        ("svhn", 7_000, 3_000, (3, 32, 32), True),
        ("cifar10", 15_000, 5_000, (3, 32, 32), True),
    ],
)
def test_real_files(real_data: Path, name, train, test, shape, partial):
    splits = getattr(datasets, name)(real_data, False)
    assert splits.train_images.shape == (train, *shape)
    assert splits.test_images.shape == (test, *shape)
    assert sorted(set(splits.train_labels.tolist())) == list(range(10))
    assert splits.partial == partial


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "usps", "svhn", "cifar10", "cifar100"])
def test_absent_data_says_what_to_put_where(tmp_path: Path, name):
    with pytest.raises(MissingPrerequisite) as error:
        getattr(datasets, name)(tmp_path, False)
    assert str(tmp_path) in error.value.message
    assert "Put " in error.value.hint
    assert "--dataset digits" in error.value.hint


def test_a_download_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*arguments, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torchvision.datasets.usps.download_url", offline)
    with pytest.raises(MissingPrerequisite, match="cannot be downloaded .*Network is unreachable") as error:
        datasets.usps(tmp_path, True)
    assert "usps.bz2, usps.t.bz2" in error.value.hint


def write_idx(folder: Path, name: str, array: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())


def fake_mnist(root: Path, which: str = "MNIST") -> Path:
    raw = root / which / "raw"
    images = np.arange(12 * 28 * 28).reshape(12, 28, 28) % 256
    for split in ("train", "t10k"):
        write_idx(raw, f"{split}-images-idx3-ubyte", images)
        write_idx(raw, f"{split}-labels-idx1-ubyte", np.arange(12) % 10)
    return raw


def test_copies_that_are_not_the_original_are_partial(tmp_path: Path):
    raw = fake_mnist(tmp_path)
    assert datasets.mnist(tmp_path, False).partial
    # An archive of the same content does not make it the original: its checksum is not the published one.
    for path in list(raw.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    assert datasets.mnist(tmp_path, False).partial


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_truncated_idx_files(tmp_path: Path, file):
    raw = fake_mnist(tmp_path)
    (raw / file).write_bytes((raw / file).read_bytes()[:-20])
    with pytest.raises(DdbenchError, match="MNIST cannot be read") as error:
        datasets.mnist(tmp_path, False)
    assert "remove it" in error.value.hint


def test_truncated_real_files(real_data: Path, tmp_path: Path):
    for folder, file, load in (
        ("USPS", "usps.bz2", datasets.usps),
        ("SVHN", "train_32x32.mat", datasets.svhn),
        ("cifar-10-batches-py", "data_batch_2", datasets.cifar10),
    ):
        shutil.copytree(real_data / folder, tmp_path / folder)
        path = tmp_path / folder / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DdbenchError, match="cannot be read"):
            load(tmp_path, False)


def test_pickles_with_code_in_them_are_refused(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(DdbenchError, match="it asks to run"):
        datasets.cifar10(tmp_path, False)
    assert not (tmp_path / "owned").exists()
