import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import releases
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ddbench import DatasetInfo, DistilledSet, ExampleSet
from ddbench.contract.spec import Choice
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError
from ddbench.formats.families import FAMILIES
from ddbench.formats.reading import Overrides
from ddbench.formats.scales import DC
from ddbench.pipeline.opened import open_set


@dataclass(frozen=True)
class Opened:
    """A released file as it is scored: the set, its spec, and what was said."""

    distilled: DistilledSet
    fields: dict[str, Any]
    said: str

    @property
    def images(self) -> Tensor:
        return self.distilled.flat()[0]

    @property
    def labels(self) -> Tensor:
        return self.distilled.flat()[1]


@dataclass(frozen=True)
class Real:
    """Real images as the harness normalises them: ten of each class, and all training examples."""

    images: Tensor
    labels: Tensor
    info: DatasetInfo
    everything: ExampleSet
    catalog: Catalog

    def open(self, path: Path, family: str | None = None, dataset: str = "digits", **overrides: Any) -> Opened:
        lines: list[str] = []
        opened = open_set(path, Choice(name=dataset), Overrides(**overrides), family, self.catalog, lines.append)
        assert callable(opened.distilled)
        distilled = opened.distilled(self.everything)
        return Opened(distilled, opened.fields, "\n".join(lines))


@pytest.fixture(scope="module")
def real() -> Real:
    from ddbench import RunSpec
    from ddbench.pipeline.plan import plan_run
    from ddbench.pipeline.prepare import prepare

    catalog = Catalog([])
    prepared = prepare(plan_run(RunSpec.parse({"method": "random_subset", "network": "linear"}), catalog), catalog)
    examples = prepared.everything.random_subset(10, torch.Generator().manual_seed(0))
    return Real(examples.inputs, examples.labels, examples.info, prepared.everything, catalog)


SCORED = ("-d", "digits", "--network", "linear", "--eval-networks", "2")


def test_condensation(tmp_path: Path, real: Real) -> None:
    for start, family, protocol in (
        ("res_DC_", "dc", "train/v1"),
        ("res_DSA_", "dsa", "train-dsa/v1"),
        ("res_DM_", "dm", "train-dsa/v1"),
        ("other", "dc", "train/v1"),
    ):
        file = releases.condensation(tmp_path, real.images, real.labels, f"{start}digits_ConvNet_10ipc.pt")
        opened = real.open(file)
        assert f"Read as {family}," in opened.said and opened.fields["protocol"] == protocol
        assert torch.equal(opened.images, real.images) and torch.equal(opened.labels, real.labels)
        assert opened.fields["images_per_class"] == 10
    [mean], [std] = (values for values in (real.info.mean, real.info.std))
    wanted = (real.images * 0.25 + 0.5 - mean) / std
    torch.testing.assert_close(real.open(file, mean=(0.5,), std=(0.25,)).images, wanted)


def test_numbers_of_the_authors_are_used_for_their_datasets(tmp_path: Path, real: Real) -> None:
    """The deviations of DC's code for CIFAR-10 are not those over all pixels, which the harness divides by."""
    info = replace(
        real.info, name="cifar10", sample_shape=(3, 32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.262)
    )
    generator = torch.Generator().manual_seed(0)
    normalised = torch.randn((20, 3, 32, 32), generator=generator)
    train = ExampleSet(normalised, torch.arange(20) % 10, info)
    shape = (-1, 1, 1)
    scale = DC["cifar10"]
    theirs = (info.pixels(normalised) - torch.tensor(scale.mean).view(shape)) / torch.tensor(scale.std).view(shape)
    on_cifar = replace(real, everything=train)
    for file, family in (
        (releases.condensation(tmp_path, theirs, train.labels, "res_DM_CIFAR10_ConvNet_2ipc.pt"), "dm"),
        (releases.trajectories(tmp_path / "mtt", theirs.clone(), train.labels), "mtt"),
    ):
        opened = on_cifar.open(file, dataset="cifar10")
        assert "std (0.2023, 0.1994, 0.201), the numbers of the authors' code" in opened.said
        torch.testing.assert_close(opened.images.detach(), normalised, atol=1e-5, rtol=1e-5)
        assert "Warning" not in opened.said and f"Read as {family}," in opened.said


def test_several_repetitions(tmp_path: Path, real: Real) -> None:
    other = torch.zeros_like(real.images)
    torch.save({"data": [[other, real.labels], [real.images, real.labels]]}, tmp_path / "res.pt")
    assert torch.equal(real.open(tmp_path / "res.pt", repetition=1).images, real.images)
    first = real.open(tmp_path / "res.pt")
    assert torch.equal(first.images, other) and "holds 2 sets: this is number 0" in first.said
    with pytest.raises(UsageError, match="holds 2 repetitions"):
        real.open(tmp_path / "res.pt", repetition=2)
    # DataDAM has one pair in place of the list.
    torch.save({"data": [real.images, real.labels]}, tmp_path / "syn_data_digits_ipc_10.pt")
    opened = real.open(tmp_path / "syn_data_digits_ipc_10.pt")
    assert "Read as datadam" in opened.said and torch.equal(opened.images, real.images)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x, y: (x.half(), y),
        lambda x, y: (x.double().requires_grad_(), y),
        lambda x, y: (x, y.float()),
        lambda x, y: (x.bfloat16(), y.double()),
        lambda x, y: (x, F.one_hot(y, 10)),
        lambda x, y: (x, y[:, None]),
        lambda x, y: (x.permute(0, 2, 3, 1), y.int()),
    ],
    ids=["half", "double with a gradient", "float labels", "bfloat16", "one-hot", "column", "channels last"],
)
def test_types_of_tensors(
    tmp_path: Path, real: Real, convert: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    images, labels = convert(real.images, real.labels)
    opened = real.open(releases.condensation(tmp_path, images, labels))
    torch.testing.assert_close(opened.images, real.images, atol=0.05, rtol=0)
    assert torch.equal(opened.labels, real.labels) and opened.images.dtype == torch.float32
    assert not opened.images.requires_grad


def test_whole_numbers_are_pixels(tmp_path: Path, real: Real) -> None:
    pixels = (real.info.pixels(real.images) * 255).round().to(torch.uint8)
    opened = real.open(releases.condensation(tmp_path, pixels.permute(0, 2, 3, 1), real.labels))
    assert "whole numbers (uint8): taken as pixels from 0 to 255" in opened.said
    torch.testing.assert_close(opened.images, real.images, atol=0.02, rtol=0)


def test_storages_of_another_device(tmp_path: Path, real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    file = releases.condensation(tmp_path, real.images, real.labels)
    monkeypatch.undo()
    assert b"cuda:0" in file.read_bytes()
    assert torch.equal(real.open(file).images, real.images)


def test_files_with_scalars_of_numpy_1(tmp_path: Path, real: Real) -> None:
    """The module that numpy 2 renamed, put back into the pickle of a file in the format without an archive."""
    content = {"data": [[real.images, real.labels]], "accs_all_exps": {"ConvNet": [np.float64(0.5), np.array([0.5])]}}
    torch.save(content, tmp_path / "res.pt", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "res.pt").read_bytes()
    now = np.float64.__reduce__(np.float64(0))[0].__module__.encode()
    assert now in raw
    for then in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        (tmp_path / "res.pt").write_bytes(raw.replace(now, then))
        assert torch.equal(real.open(tmp_path / "res.pt").images, real.images)


def test_trajectories(tmp_path: Path, real: Real) -> None:
    opened = real.open(releases.trajectories(tmp_path / "mtt", real.images.clone(), real.labels))
    assert "Read as mtt" in opened.said and opened.fields["protocol"] == "train-dsa/v1"
    assert "at a rate learned with the images" in opened.said and opened.distilled.lrs is None
    # The file of images stands for its folder, and a rate leads to the protocol that uses it.
    opened = real.open(tmp_path / "mtt" / "images_best.pt", rate=0.02)
    assert opened.fields["protocol"] == "train-dsa-rate/v1" and opened.distilled.lrs == pytest.approx(0.02)
    logits = torch.randn(100, 10, generator=torch.Generator().manual_seed(1))
    opened = real.open(releases.trajectories(tmp_path / "datm", real.images.clone(), logits, rate=0.025))
    assert "Read as datm" in opened.said and opened.fields["protocol"] == "train-dsa-rate/v1"
    assert opened.distilled.label_kind == "logits" and opened.distilled.lrs == pytest.approx(0.025)
    torch.testing.assert_close(opened.distilled.targets().flatten(0, 1), logits.softmax(1))
    largest = real.open(tmp_path / "datm", labels="class")
    assert torch.equal(largest.labels, logits.argmax(1))
    for rate in (torch.zeros(2), "fast", torch.tensor(float("nan")), torch.tensor(-1.0)):
        torch.save(rate, tmp_path / "datm" / "lr_best.pt")
        with pytest.raises(UsageError, match="not hold one learned rate"):
            real.open(tmp_path / "datm")
    (tmp_path / "mtt" / "labels_best.pt").unlink()
    with pytest.raises(UsageError, match="no labels_best.pt beside"):
        real.open(tmp_path / "mtt", "mtt")


def test_trajectories_in_parts(tmp_path: Path, real: Real) -> None:
    for part in range(5):
        chosen = slice(part * 20, part * 20 + 20)
        torch.save(real.images[chosen].clone(), tmp_path / f"images_best_{part}.pt")
        torch.save(real.labels[chosen].clone(), tmp_path / f"labels_best_{part}.pt")
    for path in (tmp_path, tmp_path / "images_best_3.pt"):
        opened = real.open(path)
        assert torch.equal(opened.images, real.images) and "5 parts, which are joined" in opened.said
    (tmp_path / "images_best_2.pt").unlink()
    with pytest.raises(UsageError, match="parts 0, 1, 3, 4 of a set: some are missing"):
        real.open(tmp_path)


def test_checkpoints_of_trajectories(tmp_path: Path, real: Real) -> None:
    torch.save(real.info.pixels(real.images), tmp_path / "images_zca_500.pt")
    torch.save(real.labels, tmp_path / "labels_500.pt")
    opened = real.open(tmp_path / "images_zca_500.pt")
    assert "whitening is undone" in opened.said
    torch.testing.assert_close(opened.images, real.images, atol=1e-5, rtol=1e-5)


def test_tiles(tmp_path: Path, real: Real) -> None:
    pixels = real.info.pixels(real.images)
    opened = real.open(releases.pair(tmp_path, pixels, real.labels))
    assert "Read as idc" in opened.said and "100 stored images give 400 to train on" in opened.said
    assert opened.distilled.decoder == "tiles/v1" and opened.distilled.decoder_options == {"factor": 2}
    torch.testing.assert_close(opened.distilled.payload["images"], real.images, atol=1e-5, rtol=1e-5)
    assert torch.equal(opened.distilled.labels[0], real.labels.repeat(4))
    assert opened.fields["images_per_class"] == 10
    whole = real.open(tmp_path / "data.pt", "ncfm", tiles=1)
    assert "Read as ncfm" in whole.said
    torch.testing.assert_close(whole.images, real.images, atol=1e-5, rtol=1e-5)


def test_classes_in_groups(tmp_path: Path, real: Real) -> None:
    pixels = real.info.pixels(real.images)
    for phase in (0, 1):
        for shift, name in ((0, "apart"), (5 * phase, "joint")):
            folder = tmp_path / name / f"digits_10_5_phase{phase}"
            folder.mkdir(parents=True)
            chosen = (real.labels // 5) == phase
            releases.pair(folder, pixels[chosen], real.labels[chosen] - 5 * phase + shift)
    order = torch.argsort(real.labels // 5, stable=True)
    for name in ("apart", "joint"):
        opened = real.open(tmp_path / name, tiles=1)
        assert torch.equal(opened.labels, real.labels[order]) and "come in 2 groups" in opened.said
        torch.testing.assert_close(opened.images, real.images[order], atol=1e-5, rtol=1e-5)


def test_kernels(tmp_path: Path, real: Real) -> None:
    opened = real.open(releases.kernel(tmp_path, real.images, real.labels))
    assert "Read as kip" in opened.said and opened.fields["protocol"] == "krr/v1"
    assert torch.equal(opened.images, real.images) and torch.equal(opened.labels, real.labels)
    learned = real.open(releases.kernel(tmp_path, real.images, real.labels, learned=True))
    assert learned.distilled.label_kind == "regression"
    torch.testing.assert_close(learned.labels, (F.one_hot(real.labels, 10).float() - 0.1) * 1.3)
    opened = real.open(releases.features(tmp_path, real.images, real.labels), whitening="none")
    assert "Read as frepo" in opened.said and opened.distilled.label_kind == "regression"
    smooth = (0.8 * F.one_hot(real.labels, 10) + 0.02 - 0.1).numpy()
    np.savez(tmp_path / "nozca.npz", images=real.images.permute(0, 2, 3, 1).numpy(), labels=smooth)
    opened = real.open(tmp_path / "nozca.npz")
    assert opened.distilled.label_kind == "distribution"
    torch.testing.assert_close(opened.labels, torch.from_numpy(smooth + 0.1).float())


@pytest.mark.parametrize(("name", "whitening"), [("zca_l", "zca-kip"), ("nozca_l", None)])
def test_names_of_kernel_files_say_their_whitening(
    tmp_path: Path, real: Real, name: str, whitening: str | None
) -> None:
    file = releases.kernel(tmp_path, real.images, real.labels, name=name)
    opened = real.open(file)
    assert opened.fields.get("whitening") == whitening
    assert ("the data are whitened too" in opened.said) == (whitening is not None)
    assert "whitening" not in real.open(file, whitening="none").fields


def test_unrolled_steps(tmp_path: Path, real: Real) -> None:
    images, labels = real.images.view(5, 20, 1, 8, 8), real.labels.view(5, 20)
    rates = torch.rand((3, 5), generator=torch.Generator().manual_seed(2)) + 0.01
    opened = real.open(releases.unrolled(tmp_path, images, labels, rates))
    assert "Read as wang2018" in opened.said and "15 gradient steps: 5 batches, 3 times" in opened.said
    assert torch.equal(opened.distilled.inputs, images) and torch.equal(opened.distilled.labels, labels)
    assert torch.equal(opened.distilled.lrs, rates)
    wanted = {"steps": 5, "epochs": 3, "images_per_class": 10, "protocol": "replay/v1"}
    assert wanted.items() <= opened.fields.items()
    free = F.one_hot(labels, 10).float() * 1.4 - 0.2
    opened = real.open(releases.unrolled(tmp_path, images, free, rates))
    assert opened.distilled.label_kind == "regression" and torch.equal(opened.distilled.labels, free)
    # Fewer images than classes.
    opened = real.open(releases.unrolled(tmp_path, images[:1, :5], free[:1, :5], rates[:, :1]))
    assert opened.distilled.count == 5 and opened.fields["images_per_class"] == 1
    binary = [(images[0], torch.rand(20, 1), torch.ones(1))]
    torch.save(binary, tmp_path / "results.pth")
    with pytest.raises(UsageError, match="for a network with one output"):
        real.open(tmp_path / "results.pth")


@pytest.mark.parametrize("hdf5", [False, True], ids=["checkpoint", "hdf5"])
def test_rows(tmp_path: Path, real: Real, hdf5: bool) -> None:
    if hdf5:
        pytest.importorskip("h5py")
    opened = real.open(releases.rows(tmp_path, real.images, real.labels, hdf5=hdf5))
    assert "Read as rat_bptt" in opened.said and torch.equal(opened.images, real.images)
    assert opened.distilled.label_kind == "regression"
    order = torch.argsort(real.labels, stable=True)
    file = releases.rows(tmp_path, real.images[order], real.labels[order], hdf5=hdf5, learned=False)
    opened = real.open(file)
    assert "class by class" in opened.said and torch.equal(opened.labels, real.labels[order])


@pytest.mark.parametrize("layout", releases.FOLDERS)
def test_folders(tmp_path: Path, real: Real, layout: str) -> None:
    images = torch.cat([real.images, real.images[:10]])
    labels = torch.cat([real.labels, real.labels[:10]])
    opened = real.open(releases.folders(tmp_path / "set", images, labels, real.info, layout))
    assert f"Read as {layout}," in opened.said
    order = torch.argsort(labels, stable=True)
    assert torch.equal(opened.labels, labels[order])
    # In numeric order: image 10 of a class is behind image 2.
    torch.testing.assert_close(opened.images, images[order], atol=0.02, rtol=0)


def test_sizes(tmp_path: Path, real: Real) -> None:
    large = F.interpolate(real.images, (24, 24), mode="nearest")
    folder = releases.folders(tmp_path / "d4m", large, real.labels, real.info, "d4m")
    opened = real.open(folder)
    assert "resized from 1x24x24 to 1x8x8" in opened.said and tuple(opened.images.shape[1:]) == (1, 8, 8)
    file = releases.condensation(tmp_path, large, real.labels)
    with pytest.raises(UsageError, match="are 1x24x24, those of digits 1x8x8") as caught:
        real.open(file)
    assert "--resize images" in caught.value.hint and "--resize dataset" in caught.value.hint
    assert tuple(real.open(file, resize="images").images.shape[1:]) == (1, 8, 8)
    with pytest.raises(UsageError, match="are 1x24x24"):
        real.open(file, resize="dataset")  # The examples here keep their size.
    Image.new("RGB", (9, 7)).save(folder / "0" / "0-image99.png")
    opened = real.open(folder)
    assert "2 shapes: all are resized to 1x8x8" in opened.said


def test_classes_of_folders(tmp_path: Path, real: Real) -> None:
    words = replace(real.info, classes=("tench", "English springer"))
    for folder in ("n02102040", "n01440764"):
        (tmp_path / "wordnet" / folder).mkdir(parents=True)
        Image.new("L", (8, 8), 9 if folder == "n01440764" else 200).save(tmp_path / "wordnet" / folder / "0.png")
    from ddbench.formats.families import family_of
    from ddbench.formats.reading import Source

    family = family_of(tmp_path / "wordnet")
    released = family.read(Source(tmp_path / "wordnet", "imagenette", words.classes, (1, 8, 8)))
    assert family.name == "minimax" and released.labels.tolist() == [0, 1]
    assert released.images[0].mean() < released.images[1].mean()
    (tmp_path / "other" / "seven").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "other" / "seven" / "0.png")
    with pytest.raises(UsageError, match="'seven' is not a class"):
        real.open(tmp_path / "other")
    (tmp_path / "beyond" / "00012").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "beyond" / "00012" / "0.png")
    with pytest.raises(UsageError, match="beyond the 10 classes"):
        real.open(tmp_path / "beyond")


def test_plain_dicts(tmp_path: Path, real: Real) -> None:
    torch.save({"images": real.images, "labels": real.labels}, tmp_path / "set.pt")
    opened = real.open(tmp_path / "set.pt")
    assert "Read as plain" in opened.said and "all of the above is assumed" in opened.said
    assert f"mean ({real.info.mean[0]:.7g}) and std ({real.info.std[0]:.7g}), the numbers of digits" in opened.said
    assert torch.equal(opened.images, real.images)


def test_the_scale_is_checked(tmp_path: Path, real: Real) -> None:
    pixels = real.info.pixels(real.images)
    for images, warning in (
        (real.images, ""),
        (real.images * 0.6 + 0.1, ""),
        (pixels, "look like pixels in [0, 1]"),
        (pixels * 255, "look like pixels from 0 to 255"),
        (real.images * 20, "their spread is 20 times"),
    ):
        said = real.open(releases.condensation(tmp_path, images, real.labels)).said
        assert "Values in the file: mean" in said and "Real images would have mean" in said
        assert warning in said if warning else "Warning" not in said
    assert (
        "far outside [0, 1], as normalised images are"
        in real.open(releases.pair(tmp_path, real.images, real.labels), tiles=1).said
    )
    assert "Warning" not in real.open(releases.pair(tmp_path, pixels, real.labels), tiles=1).said


def test_whitening(tmp_path: Path, real: Real) -> None:
    """By the singular value decomposition, as the repositories write it."""
    from ddbench.modalities.whitening import unwhiten, whiten

    pixels = real.info.pixels(real.everything.inputs)
    flat = pixels.flatten(1)
    mean = flat.mean(0)
    u, s, _ = torch.linalg.svd((flat - mean).T @ (flat - mean) / len(flat))
    matrix = u @ torch.diag(1 / (s + 0.1).sqrt()) @ u.T
    some = real.info.pixels(real.images)
    wanted = ((some.flatten(1) - mean) @ matrix).view_as(some)
    torch.testing.assert_close(whiten("zca", pixels, some)[1], wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(unwhiten(wanted, pixels), some, atol=1e-4, rtol=1e-4)
    undone = real.open(releases.condensation(tmp_path, wanted, real.labels), whitening="undo")
    torch.testing.assert_close(undone.images, real.images, atol=1e-3, rtol=1e-3)

    standard = (flat - flat.mean()) / flat.std()
    standard = standard - standard.mean(1, keepdim=True)
    standard = standard / standard.norm(dim=1, keepdim=True)
    u, s, _ = torch.linalg.svd(standard.T @ standard / len(standard))
    matrix = u @ torch.diag((s + 0.1 * s.mean()) ** -0.5) @ u.T
    train, test = whiten("zca-kip", pixels, pixels[:5])
    torch.testing.assert_close(train, (standard @ matrix).view_as(train), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(test, train[:5], atol=1e-5, rtol=1e-5)


def test_scores_on_whitened_data(tmp_path: Path, real: Real, ddbench) -> None:
    from ddbench.modalities.whitening import whiten

    pixels = real.info.pixels(real.everything.inputs)
    _, images = whiten("zca", pixels, real.info.pixels(real.images))
    releases.condensation(tmp_path, images, real.labels, "zca.pt")
    result = ddbench("evaluate", "zca.pt", *SCORED, "--file-whitening", "zca", "--json")
    assert result.code == 0, result.err
    document = result.json()
    assert document["settings"]["whitening"] == "zca" and document["dataset"]["name"] == "digits+zca"
    assert document["score"]["mean"] > 0.6
    assert document["companions"]["random_subset"]["mean"] > 0.6  # Random images are whitened too.
    unknown = ddbench("evaluate", "zca.pt", *SCORED, "--json").json()
    assert unknown["score"]["mean"] < document["score"]["mean"] - 0.02


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("weights_best.pt", lambda p: torch.save({}, p), "release of HaBa"),
        ("x_compressor.pt", lambda p: torch.save({"compressor": {"a": torch.ones(1)}}, p), "release of LinBa"),
        ("acc_50.pkl", releases.malicious, "is a pickle, which could run code"),
        ("checkpoint_500", lambda p: p.write_text("x"), "checkpoint of flax"),
        ("epoch_0/batch_0.tar", lambda p: p.write_text("x"), "labels of a teacher for crops"),
        ("batch_0.tar", lambda p: p.write_text("x"), "labels of a teacher for crops"),
        ("images.pt", lambda p: torch.save(torch.ones(3), p), "holds one tensor, without labels"),
        ("code.pt", releases.malicious, "could run code"),
        ("other.pt", lambda p: torch.save({"other": 1}, p), "of no known layout"),
        ("none.npz", lambda p: np.savez(p, a=np.ones(1)), "no arrays images and labels, but a"),
        ("text.npz", lambda p: p.write_text("x"), "damaged or not a numpy archive"),
        ("text.pt", lambda p: p.write_text("hello"), "damaged or not a file of tensors"),
        ("text.h5", lambda p: p.write_text("x"), "damaged or not an HDF5 file"),
        ("empty/x", lambda p: p.write_text("x"), "folder of no known layout"),
    ],
)  # fmt: skip
def test_refused_by_name(
    tmp_path: Path, real: Real, capsys: pytest.CaptureFixture[str], name: str, write: Any, message: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file)
    if name.endswith(".h5"):
        pytest.importorskip("h5py")
    target = tmp_path if name == "weights_best.pt" else tmp_path / name.split("/")[0]
    with pytest.raises(UsageError, match=message) as caught:
        real.open(target)
    assert caught.value.hint and "run" not in capsys.readouterr().out


def test_objects_in_archives_are_not_loaded(tmp_path: Path, real: Real, capsys: pytest.CaptureFixture[str]) -> None:
    code = np.array([releases.Code()], dtype=object)
    for images, labels in ((code, np.zeros(1)), (np.zeros((1, 8, 8, 1)), np.array(["a"]))):
        np.savez(tmp_path / "set.npz", images=images, labels=labels)
        with pytest.raises(UsageError, match=r"was not read|not numbers"):
            real.open(tmp_path / "set.npz")
    assert "run" not in capsys.readouterr().out


def _with(images: Tensor, value: float) -> Tensor:
    holed = images.clone()
    holed[3, 0, 2, 2] = value
    return holed


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (lambda x, y: [x, y, y], "not a pair"),
        (lambda x, y: [x], "not a pair"),
        (lambda x, y: None, "not a pair"),
        (lambda x, y: [x, 3], "no images"),
        (lambda x, y: [x, torch.tensor(3)], "no images"),
        (lambda x, y: [x[:5], y], "no images"),
        (lambda x, y: [x.to_sparse(), y], "no images"),
        (lambda x, y: [x[:0], y[:0]], "an empty set"),
        (lambda x, y: [x, y > 4], "labels in .* are bool"),
        (lambda x, y: [x, y + 0.5], "labels in .* are fractions"),
        (lambda x, y: [x, F.one_hot(y, 10) * 2], "labels in .* are int64"),
        (lambda x, y: [x.to(torch.complex64), y], "images in .* are complex64"),
        (lambda x, y: [x > 0, y], "images in .* are bool"),
        (lambda x, y: [_with(x, float("nan")), y], "images in .* have NaN"),
        (lambda x, y: [_with(x, float("inf")), y], "images in .* have NaN"),
        (lambda x, y: [x, y + 1], "labels are 1 to 10"),
        (lambda x, y: [x, torch.where(y == 3, 4, y)], "class '3' has no image in this file"),
        (lambda x, y: [x, F.one_hot(y, 12)[:, :12] * 1.0], "of 12 classes, digits has 10"),
        (lambda x, y: [x, F.one_hot(y, 10) * 0.5], "not probabilities"),
        (lambda x, y: [x.expand(-1, 3, -1, -1), y], "are 3x8x8, those of digits 1x8x8"),
    ],
)
def test_sets_that_cannot_be_scored(tmp_path: Path, real: Real, entry: Any, message: str) -> None:
    torch.save({"data": [entry(real.images, real.labels)]}, tmp_path / "res.pt")
    with pytest.raises(UsageError, match=message) as caught:
        real.open(tmp_path / "res.pt")
    assert caught.value.hint


@pytest.mark.parametrize("cut", [10, 500, -100])
def test_truncated_files(tmp_path: Path, real: Real, cut: int) -> None:
    for file in (
        releases.condensation(tmp_path, real.images, real.labels),
        releases.kernel(tmp_path, real.images, real.labels),
        releases.unrolled(tmp_path, real.images[None], real.labels[None], torch.ones(1, 1)),
        releases.rows(tmp_path, real.images, real.labels),
    ):
        file.write_bytes(file.read_bytes()[:cut])
        with pytest.raises(UsageError, match=r"damaged|not read"):
            real.open(file)


def test_whitening_that_does_not_fit_into_memory(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddbench.errors import DdbenchError
    from ddbench.modalities import whitening

    pixels = real.info.pixels(real.images)
    monkeypatch.setattr(whitening, "free_memory", lambda device: 4 * 64**2 * 8 - 1)
    for attempt in (lambda: whitening.whiten("zca", pixels, pixels), lambda: whitening.unwhiten(pixels, pixels)):
        with pytest.raises(DdbenchError, match="whitening images of 64 values") as caught:
            attempt()
        assert "sample_shape" in caught.value.hint


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_is_named_wrongly_is_one_sentence(tmp_path: Path, real: Real, family: str) -> None:
    """A file where a folder is wanted, a folder where a file is, and an archive of another kind."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    for name in ("empty", "text.pt", "other.npz"):
        with pytest.raises(UsageError) as caught:
            real.open(tmp_path / name, family)
        assert caught.value.hint


def test_the_command_line_offers_what_can_be_read() -> None:
    from typing import get_args

    from ddbench.cli.evaluate import FileLabels, FileWhitening, evaluate
    from ddbench.contract.set_checks import LABEL_KINDS
    from ddbench.contract.spec import Whitening

    assert {kind.value for kind in FileLabels} == set(LABEL_KINDS)
    assert {kind.value for kind in FileWhitening} == {"none", "undo", *get_args(Whitening)}
    described = " ".join((evaluate.__doc__ or "").split()).partition("by `--from`: ")[2].partition(".")[0]
    assert set(described.split(", ")) == set(FAMILIES)


def test_data_that_are_whitened_otherwise_than_the_set_are_refused(ddbench, tmp_path: Path, real: Real) -> None:
    releases.condensation(tmp_path, real.images, real.labels, "res.pt")
    refused = ddbench("evaluate", "res.pt", *SCORED, "--set", "whitening=zca")
    assert refused.code == 2 and "--file-whitening" in refused.message() and "Scoring" not in refused.err


def test_overrides_that_contradict(tmp_path: Path, real: Real) -> None:
    file = releases.condensation(tmp_path, real.images, real.labels)
    for overrides, message in (
        ({"mean": (0.5,)}, "go together"),
        ({"mean": (0.5,), "std": (1.0,), "whitening": "zca"}, "goes without"),
        ({"mean": (0.5, 0.5), "std": (0.25, 0.25)}, "one number, or one for each of 1 channels"),
        ({"mean": (0.5,), "std": (0.0,)}, "the std above zero"),
        ({"mean": (float("nan"),), "std": (0.25,)}, "must be finite"),
        ({"labels": "logits"}, "is a class number, not logits"),
    ):
        with pytest.raises(UsageError, match=message):
            real.open(file, **overrides)
    with pytest.raises(UsageError, match="no family of releases called 'dcc'") as caught:
        real.open(file, "dcc")
    assert all(name in caught.value.hint for name in FAMILIES)


def test_a_released_file_is_scored(ddbench, tmp_path: Path, real: Real) -> None:
    releases.condensation(tmp_path, real.images, real.labels, "res.pt")
    flags = (*SCORED, "--protocol", "replay/v1")
    result = ddbench("evaluate", "res.pt", *flags, "--cross-network", "mlp", "--also-under", "knn/v1", "--json")
    assert result.code == 0, result.err
    document = result.json()
    assert document["settings"]["images_per_class"] == 10
    assert [one["settings"]["network"]["name"] for one in document["others"]] == ["mlp", "linear"]
    assert [one["settings"]["protocol"] for one in document["others"]] == ["replay/v1", "knn/v1"]
    assert document["score"]["mean"] > 0.5
    assert result.err.count("Values in the file") == 1
    assert "Name its dataset" in ddbench("evaluate", "res.pt").message()
    refused = ddbench("evaluate", "res.pt", *SCORED, "--protocol", "train-dsa-rate/v1")
    assert refused.code == 2 and "needs the rate of the set" in refused.message() and "--file-rate" in refused.message()


def test_steps_of_the_original_method_score_the_same(ddbench, tmp_path: Path) -> None:
    """A set of ours, written in the layout of 2018, gives the same accuracy on every network."""
    settings = [
        "--set",
        "outer_steps=3",
        "--ipc",
        "2",
        "--steps",
        "2",
        "--epochs",
        "2",
        "--network",
        "linear",
        "--eval-networks",
        "3",
    ]
    made = ddbench("run", "--method", "unrolled_gd", *settings, "--json").json()
    ours = DistilledSet.load(tmp_path / made["artifact"]["path"])
    releases.unrolled(tmp_path, ours.inputs, ours.labels, ours.lrs)
    theirs = ddbench("evaluate", "results.pth", "-d", "digits", "--network", "linear", "--eval-networks", "3", "--json")
    assert theirs.json()["score"]["values"] == made["score"]["values"]


def test_tiles_are_scored(ddbench, tmp_path: Path, real: Real) -> None:
    releases.pair(tmp_path, real.info.pixels(real.images), real.labels)
    result = ddbench("evaluate", "data.pt", *SCORED, "--protocol", "train/v1", "--json")
    assert result.code == 0, result.err
    assert result.json()["settings"]["images_per_class"] == 10


def test_the_dataset_is_resized(ddbench, tmp_path: Path, real: Real) -> None:
    large = F.interpolate(real.images, (12, 12), mode="nearest")
    releases.condensation(tmp_path, large, real.labels, "large.pt")
    refused = ddbench("evaluate", "large.pt", *SCORED)
    assert refused.code == 2 and "--resize images" in refused.message()
    shapes = {}
    for what in ("images", "dataset"):
        result = ddbench("evaluate", "large.pt", *SCORED, "--resize", what, "--protocol", "knn/v1", "--json")
        assert result.code == 0, result.err
        shapes[what] = result.json()["dataset"]["sample_shape"]
    assert shapes == {"images": [1, 8, 8], "dataset": [1, 12, 12]}


@pytest.mark.slow
def test_a_network_that_does_not_fit_leaves_the_other_scores(ddbench, tmp_path: Path, real: Real) -> None:
    releases.condensation(tmp_path, real.images, real.labels, "res.pt")
    flags = (*SCORED, "--protocol", "replay/v1", "--cross-network", "linear,lenet,mlp,mlp,torchvision/vgg11", "--json")
    result = ddbench("evaluate", "res.pt", *flags)
    document = result.json()
    assert [one["settings"]["network"]["name"] for one in document["others"]] == ["mlp"]
    assert [one["network"] for one in document["skipped"]] == ["lenet", "torchvision/vgg11"]
    assert "at least 12x12" in document["skipped"][0]["reason"]
    assert "Skipped lenet: lenet needs images of at least 12x12" in " ".join(result.err.split())
    (tmp_path / "set" / "0").mkdir(parents=True)
    (tmp_path / "set" / "0" / "x.png").write_text("no picture")
    assert "x.png is not a picture" in ddbench("evaluate", "set", "-d", "digits").message()


def test_the_label_regime_is_reported(ddbench, tmp_path: Path, real: Real, make_prepared) -> None:
    # On a loaded machine the command would leave out networks on the full data, which take too long.
    make_prepared(protocol="replay/v1").setting.full_data(math.inf)
    released = ("evaluate", "res.pt", *SCORED, "--protocol", "replay/v1")
    releases.condensation(tmp_path, real.images, real.labels, "res.pt")
    hard = ddbench(*released)
    assert ["labels", "hard"] in [line.split() for line in hard.out.splitlines()]
    assert hard.out.splitlines()[-1].startswith("in fractions: IOR ")
    document = ddbench(*released, "--json").json()
    assert document["label_regime"] == "hard" and document["skipped"] == []
    gain = document["score"]["mean"] - document["companions"]["random_subset"]["mean"]
    assert document["fairness"]["IOR"] == pytest.approx(gain) and "LRS" in document["fairness"]
    releases.condensation(tmp_path, real.images, F.one_hot(real.labels, 10) * 9.0, "res.pt")
    assert "--file-labels logits" in ddbench(*released).message()
    soft = ddbench(*released, "--file-labels", "logits")
    rows = {line.split()[0]: line for line in soft.out.splitlines()}
    assert ["labels", "stored", "soft"] in [line.split() for line in soft.out.splitlines()]
    assert all(rows[name].endswith("; hard labels") for name in ("random_subset", "full_data"))
    assert not rows["random_subset+teacher"].endswith("labels") and "in fractions" not in soft.out
    document = ddbench(*released, "--file-labels", "logits", "--json").json()
    assert document["label_regime"] == "stored soft" and document["fairness"].keys() == {"IOR"}
    companions = document["companions"]
    assert companions["random_subset+teacher"]["label_regime"] == "stored soft"
    # The gain over random images is over those with soft labels.
    gain = document["score"]["mean"] - companions["random_subset+teacher"]["mean"]
    assert document["fairness"]["IOR"] == pytest.approx(gain)
    assert "loss" in companions["full_data"]["metrics"]


def test_unknown_names_are_reported_before_scoring(ddbench, tmp_path: Path, real: Real) -> None:
    releases.condensation(tmp_path, real.images, real.labels, "res.pt")
    released = ("evaluate", "res.pt", *SCORED)
    for flag, kind in (("--cross-network", "network"), ("--also-on", "dataset")):
        result = ddbench(*released, flag, "nosuch")
        assert result.code == 2 and f"there is no {kind} called 'nosuch'" in result.message()
        assert "Scoring" not in result.err


@pytest.fixture
def artefact(tmp_path, make_prepared):
    """A set as a run leaves it, scored on one network; `classes` puts other names into its metadata."""
    prepared = make_prepared(images_per_class=1, steps=1, protocol="replay/v1", eval_networks=1)
    real = prepared.train.random_subset(1, torch.Generator().manual_seed(0))

    def build(classes: tuple[str, ...]) -> list[str]:
        distilled = DistilledSet(real.inputs[None], real.labels[None])
        distilled.described(classes=list(classes), spec=prepared.settings.canonical()).save(
            tmp_path / "own.safetensors"
        )
        return ["evaluate", "own.safetensors"]

    return build


def test_a_set_of_other_classes_is_refused_before_anything_is_scored(ddbench, artefact):
    own = artefact(tuple("0123456789"))
    result = ddbench(*own, "--json")
    assert result.code == 0, result.err
    assert result.json()["others"] == []
    for flag, source in (("--dataset", "own.safetensors"), ("--also-on", "digits")):
        refused = ddbench(*own, flag, "fashion_mnist")
        assert refused.code == 2
        assert f"label 0 is '0' in {source} and 'T-shirt' in fashion_mnist" in refused.message()
        assert "Scoring" not in refused.err
    for classes, message in (("1023456789", "label 0 is '1'"), ("012345678", "label 9 is no class")):
        assert message in ddbench(*artefact(tuple(classes))).message()


def test_options_about_foreign_files_are_refused_for_our_own(ddbench, artefact):
    own = artefact(tuple("0123456789"))
    for option in (
        "--repetition 0",
        "--file-mean 0.5 --file-std 1",
        "--file-tiles 2",
        "--file-rate 0.1",
        "--resize images",
        "--file-whitening undo",
        "--file-labels logits",
        "--from dc",
    ):
        refused = ddbench(*own, *option.split())
        assert refused.code == 2 and f"{option.split()[0]} is about files that others made" in refused.message()
