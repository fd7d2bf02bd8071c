"""Datasets by name: digits, which come with scikit-learn, those of torchvision, and files of the user.

`csv:PATH`, `npz:PATH` and `hf:PATH` are read by modules of their own; `folder:PATH` is the plugin `builtin_folders`.
"""

import contextlib
import gzip
import hashlib
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ddbench
from ddbench import Component, DdbenchError, ImageSplits, MissingPrerequisite, UsageError
from ddbench.builtin.arrays import find_arrays
from ddbench.builtin.hugging_face import find_saved
from ddbench.builtin.tables import find_table

DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)

NARROW_CONVNET = {"name": "convnet", "options": {"width": 32}}
"""A network small enough to distil 32x32 colour images in minutes without an accelerator."""

# SHA-256 of the decoded originals, so that a copy from another archive format counts as full.
ORIGINALS = {
    "MNIST/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "MNIST/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "MNIST/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "MNIST/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
USPS_CONTENT = "70fc9e6a85ed5a2380d2b98802cc1b890c63479ff0e49ca48f99dd44871844ba"


@ddbench.dataset(classes=DIGITS, sample_shape=(1, 8, 8), network="mlp", images_per_class=1)
def digits(root: Path, download: bool) -> ImageSplits:
    """Real 8x8 handwritten digits that come with scikit-learn: 1437 training and 360 test images, no download.

    They are the 1797 test images of the UCI dataset Optical Recognition of Handwritten Digits. The last fifth is the
    test split here. One image per class is the usual budget: ten per class would be 7 % of the training set.
    """
    # The file alone: to import scikit-learn takes a second of the shortest runs.
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations is not None
    table = np.loadtxt(
        Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz", delimiter=","
    )
    images = torch.from_numpy(np.round(table[:, :-1].reshape(-1, 8, 8) / 16 * 255).astype(np.uint8))[:, None]
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return ImageSplits(images[:1437], labels[:1437], images[1437:], labels[1437:], partial=False)


@ddbench.dataset(classes=DIGITS, sample_shape=(1, 28, 28), network="lenet")
def mnist(root: Path, download: bool) -> ImageSplits:
    """MNIST: 60 000 and 10 000 handwritten digits, 28x28 grey (LeCun, Cortes and Burges)."""
    return _idx("MNIST", root, download)


@ddbench.dataset(classes=CLOTHES, sample_shape=(1, 28, 28), network="lenet")
def fashion_mnist(root: Path, download: bool) -> ImageSplits:
    """Fashion-MNIST: 60 000 and 10 000 pieces of clothing, 28x28 grey (Xiao et al. 2017)."""
    return _idx("FashionMNIST", root, download)


@ddbench.dataset(classes=DIGITS, sample_shape=(1, 16, 16), network="lenet")
def usps(root: Path, download: bool) -> ImageSplits:
    """USPS: 7291 and 2007 handwritten digits from envelopes, 16x16 grey (Hull 1994)."""
    from torchvision.datasets import USPS

    folder = root / "USPS"
    checksums = {file: md5 for _, file, md5 in USPS.split_list.values()}

    def read() -> ImageSplits:
        train, test = USPS(folder, train=True), USPS(folder, train=False)
        splits = _splits(train.data[:, None], train.targets, test.data[:, None], test.targets)
        original = _all_match(folder, checksums) or splits.content_hash() == USPS_CONTENT
        return replace(splits, partial=not original)

    def fetch() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        USPS(folder, train=True, download=True)
        USPS(folder, train=False, download=True)

    return _read_or_fetch("usps", folder, checksums, read, fetch if download else None)


@ddbench.dataset(classes=DIGITS, sample_shape=(3, 32, 32), network=NARROW_CONVNET)
def svhn(root: Path, download: bool) -> ImageSplits:
    """SVHN: 73 257 and 26 032 house-number digits, 32x32 colour (Netzer et al. 2011), without the extra split."""
    from torchvision.datasets import SVHN

    folder = root / "SVHN"
    checksums = {file: md5 for split, (_, file, md5) in SVHN.split_list.items() if split != "extra"}

    def read() -> ImageSplits:
        import scipy.io

        tensors = []
        for file in checksums:
            loaded = scipy.io.loadmat(folder / file)
            # Label 10 stands for the digit 0.
            tensors += [loaded["X"].transpose(3, 2, 0, 1), loaded["y"].astype(np.int64).ravel() % 10]
        return replace(_splits(*tensors), partial=not _all_match(folder, checksums))

    def fetch() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            SVHN(folder, split=split, download=True)

    return _read_or_fetch("svhn", folder, checksums, read, fetch if download else None)


@ddbench.dataset(classes=CIFAR10, sample_shape=(3, 32, 32), network=NARROW_CONVNET)
def cifar10(root: Path, download: bool) -> ImageSplits:
    """CIFAR-10: 50 000 and 10 000 photographs of animals and vehicles, 32x32 colour (Krizhevsky 2009)."""
    return _cifar("CIFAR10", "labels", root, download)


@ddbench.dataset(classes=CIFAR100, sample_shape=(3, 32, 32), network=NARROW_CONVNET)
def cifar100(root: Path, download: bool) -> ImageSplits:
    """CIFAR-100: 50 000 and 10 000 photographs of a hundred classes, 32x32 colour (Krizhevsky 2009)."""
    return _cifar("CIFAR100", "fine_labels", root, download)


def _idx(which: str, root: Path, download: bool) -> ImageSplits:
    """Load MNIST or FashionMNIST from torchvision's layout: idx files, with or without their archives."""
    from torchvision import datasets
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    source = getattr(datasets, which)
    folder = root / which / "raw"
    checksums = {archive.removesuffix(".gz"): md5 for archive, md5 in source.resources}

    def read() -> ImageSplits:
        # The dataset class is not used: it prefers older files in `processed/`, which cannot be verified.
        try:
            train_images, train_labels, test_images, test_labels = (
                read_sn3_pascalvincent_tensor(folder / f) for f in checksums
            )
        except AssertionError:
            raise ValueError("a file is shorter or longer than its header says") from None
        splits = _splits(train_images[:, None], train_labels, test_images[:, None], test_labels)
        return replace(splits, partial=not all(_original_idx(which, folder / f, md5) for f, md5 in checksums.items()))

    return _read_or_fetch(which, folder, checksums, read, (lambda: source(root, download=True)) if download else None)


def _original_idx(which: str, path: Path, archive_md5: str) -> bool:
    """Return True for an original idx file: its digest, or the checksum of the archive it came in, is known."""
    raw = path.read_bytes()
    if ORIGINALS.get(f"{which}/{path.name}") == hashlib.sha256(raw).hexdigest():
        return True
    archive = path.with_name(path.name + ".gz")
    return _md5(archive) == archive_md5 and gzip.decompress(archive.read_bytes()) == raw


def _cifar(which: str, label_key: str, root: Path, download: bool) -> ImageSplits:
    """Load CIFAR10 or CIFAR100 from the pickled batches of the "python version"."""
    from torchvision import datasets

    source = getattr(datasets, which)
    folder = root / source.base_folder
    checksums = dict([*source.train_list, *source.test_list])

    def read() -> ImageSplits:
        tensors = []
        for listed in (source.train_list, source.test_list):
            batches = [_plain_pickle(folder / file) for file, _ in listed]
            images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
            tensors += [images, np.concatenate([batch[label_key] for batch in batches])]
        return replace(_splits(*tensors), partial=not _all_match(folder, checksums))

    return _read_or_fetch(which, folder, checksums, read, (lambda: source(root, download=True)) if download else None)


_ARRAY_CONSTRUCTORS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler of numpy arrays and plain values that refuses anything that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a constructor of arrays. Raises `UnpicklingError` for any other name."""
        if (module, name) not in _ARRAY_CONSTRUCTORS:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}")
        return super().find_class(module, name)


def _plain_pickle(path: Path) -> dict[str, Any]:
    with open(path, "rb") as stream:
        loaded = _PlainUnpickler(stream, encoding="latin1").load()
    if not isinstance(loaded, dict):
        raise pickle.UnpicklingError("it is not a batch of images")
    return loaded


def _read_or_fetch(
    name: str, folder: Path, files: Iterable[str], read: Callable[[], ImageSplits], fetch: Callable[[], object] | None
) -> ImageSplits:
    """Return the result of `read`, after `fetch` where files are missing.

    Raises `MissingPrerequisite` with the names of missing files, `DdbenchError` for files that cannot be read.
    """
    missing = [file for file in files if not (folder / file).is_file()]
    advice = f"Put {', '.join(missing)} into {folder}, or set DDBENCH_DATA; --dataset digits needs no files."
    if missing and fetch is None:
        raise MissingPrerequisite(f"{name} is not in {folder}.", advice)
    if missing and fetch is not None:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                fetch()
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise MissingPrerequisite(
                f"{name} is not in {folder} and cannot be downloaded ({reason}).", advice
            ) from error
    try:
        return read()
    except (DdbenchError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DdbenchError(
            f"{name} cannot be read from {folder}: {reason}.",
            "A file is damaged or of another dataset; remove it, and it is downloaded again.",
        ) from error


def _splits(train_images: Any, train_labels: Any, test_images: Any, test_labels: Any) -> ImageSplits:
    """Build `ImageSplits` from arrays, tensors or lists of the right shapes."""
    images = [torch.as_tensor(np.ascontiguousarray(images)) for images in (train_images, test_images)]
    labels = [torch.as_tensor(np.asarray(labels), dtype=torch.int64) for labels in (train_labels, test_labels)]
    return ImageSplits(images[0], labels[0], images[1], labels[1])


def _all_match(folder: Path, checksums: Mapping[str, str]) -> bool:
    """Return True where every file has its MD5, as torchvision publishes them."""
    return all(_md5(folder / file) == md5 for file, md5 in checksums.items())


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.is_file() else ""


@ddbench.hookimpl
def ddbench_datasets() -> list[object]:
    return [digits, mnist, fashion_mnist, usps, svhn, cifar10, cifar100]


@ddbench.hookimpl
def ddbench_find_dataset(name: str, options: Mapping[str, Any]) -> Component | None:
    kind, _, path = name.partition(":")
    if kind not in ("csv", "npz", "hf"):
        return None
    if not path:
        raise UsageError(f"{kind}: names no file.", f"Give its path: --dataset {kind}:PATH")
    if kind == "npz":
        return find_arrays(name)
    return (find_table if kind == "csv" else find_saved)(name, options)
