"""`ddbench export`: the files that it writes, read as other programs read them and by `ddbench evaluate`."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import changed
from torch import Tensor

from ddbench import DistilledSet, UsageError, data_dir, decode
from ddbench.cli.export import LayoutName
from ddbench.errors import DdbenchError
from ddbench.formats.scales import DC, MTT
from ddbench.formats.writers import LAYOUTS
from ddbench.machine.files import sha256
from ddbench.pipeline.export import export

ARTIFACTS = sorted((Path(__file__).parent.parent / "leaderboards" / "artifacts").glob("*.safetensors"))
SUFFIX = {"dc": ".pt", "mtt": "", "folder": "", "npz": ".npz", "webdataset": ".tar"}
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
SVHN = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
EPS = 1e-6
HALF_A_LEVEL = 1 / 510 + 1e-9


def artefact(dataset: str, channels: int, steps: int, *, rates: bool = False) -> Path:
    """Return the first committed set of a dataset with class numbers and images of its own."""
    for path in ARTIFACTS:
        distilled = DistilledSet.load(path)
        if distilled.soft or distilled.decoder:
            continue
        shape = (distilled.metadata["dataset"].partition("@")[0], distilled.inputs.shape[2], len(distilled.inputs))
        if shape == (dataset, channels, steps) and rates == (distilled.lrs is not None):
            return path
    raise LookupError(dataset)


def pixels(distilled: DistilledSet) -> Tensor:
    """Return the images as pixels, by the metadata, neither clipped nor ordered."""
    mean, std = (torch.tensor(json.loads(distilled.metadata[name])).view(-1, 1, 1) for name in ("mean", "std"))
    return (distilled.inputs.double() * std + mean).flatten(0, 1)


def toy(**fields: object) -> DistilledSet:
    """Return six grey images of three classes, of which some leave the range of pixels, and their labels."""
    inputs = torch.randn((1, 6, 1, 4, 5), generator=torch.Generator().manual_seed(0)) * 2
    plain = DistilledSet(inputs, torch.tensor([[2, 0, 1, 0, 2, 1]]))
    return replace(plain, **fields).described(classes=["a", "b", "c"], mean=[0.5], std=[0.25], dataset="toy")


def soft(kind: str | None) -> DistilledSet:
    numbers = torch.randn((1, 6, 3), generator=torch.Generator().manual_seed(1))
    labels = numbers.softmax(-1) if kind in (None, "distribution") else numbers
    return toy(labels=labels, label_kind=kind)


@pytest.fixture
def save(tmp_path: Path):
    def write(distilled: DistilledSet) -> Path:
        distilled.save(tmp_path / "distilled.safetensors")
        return tmp_path / "distilled.safetensors"

    return write


def picture(source: Path | bytes) -> Tensor:
    """Return a PNG as pixels `[channels, height, width]` in [0, 1]."""
    with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
        array = np.asarray(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).permute(2, 0, 1).double() / 255


def denormalised(images: Tensor, scale: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in scale)
    return images.double() * std + mean


def test_the_command_line_names_every_layout():
    assert {name.value for name in LayoutName} == LAYOUTS.keys() == SUFFIX.keys()
    assert {name: layout.suffix for name, layout in LAYOUTS.items()} == SUFFIX


@pytest.mark.parametrize(
    ("dataset", "channels", "steps", "rates", "dc", "mtt"),
    [
        ("cifar10", 3, 1, True, CIFAR10, CIFAR10),
        ("mnist", 1, 10, True, ((0.1307,), (0.3081,)), None),
        ("mnist", 3, 10, False, None, None),
        ("fashion_mnist", 1, 10, False, ((0.2861,), (0.3530,)), None),
        ("svhn", 3, 1, True, SVHN, None),
        ("usps", 1, 10, True, None, None),
        ("folder:imagenette", 3, 1, True, None, None),
    ],
)
def test_the_sets_of_the_leaderboards(tmp_path, catalog, dataset, channels, steps, rates, dc, mtt):
    path = artefact(dataset, channels, steps, rates=rates)
    distilled = DistilledSet.load(path)
    labels, wanted = distilled.labels.flatten(), pixels(distilled)
    own = tuple(tuple(json.loads(distilled.metadata[name])) for name in ("mean", "std"))
    written = {name: export(path, name, catalog, tmp_path / f"x{suffix}{name}") for name, suffix in SUFFIX.items()}
    for exported in written.values():
        found = [exported.path] if exported.path.is_file() else [p for p in exported.path.rglob("*") if p.is_file()]
        assert exported.files == {str(p): sha256(p.read_bytes()) for p in found}
        assert any("the order of the 10 steps" in what for what in exported.lost) == (steps == 10)

    content = torch.load(written["dc"].path, weights_only=True)
    assert content.keys() == {"data", "accs_all_exps"} and content["accs_all_exps"] == {}
    [[images, found]] = content["data"]
    order = labels.argsort(stable=True)
    assert found.dtype == torch.int64 and torch.equal(found, labels[order])
    assert images.dtype == torch.float32
    torch.testing.assert_close(denormalised(images, dc or own), wanted[order], atol=EPS, rtol=0)
    assert ("DC has no numbers for" in written["dc"].notes[0]) == (dc is None)
    if dc is None:
        torch.testing.assert_close(images, distilled.inputs.flatten(0, 1)[order], atol=EPS, rtol=EPS)

    images, found = (
        torch.load(written["mtt"].path / f"{name}_best.pt", weights_only=True) for name in ("images", "labels")
    )
    assert images.dtype == torch.float32 and found.dtype == torch.int64 and torch.equal(found, labels)
    torch.testing.assert_close(denormalised(images, mtt or own), wanted, atol=EPS, rtol=0)

    with np.load(written["npz"].path, allow_pickle=False) as file:
        assert file["images"].dtype == np.float32 and file["labels"].dtype == np.int64
        stored = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).double()
        torch.testing.assert_close(stored, wanted, atol=EPS, rtol=0)
        assert torch.equal(torch.from_numpy(file["labels"]), labels)
        assert file.files == ["images", "labels", *(["lrs"] if rates else [])]
        assert not rates or torch.equal(torch.from_numpy(file["lrs"]), distilled.lrs)

    classes = json.loads(distilled.metadata["classes"])
    pictures = sorted(written["folder"].path.rglob("*.png"), key=lambda p: int(p.stem))
    assert [p.parent.name for p in pictures] == [classes[label] for label in labels]
    torch.testing.assert_close(torch.stack(list(map(picture, pictures))), wanted.clamp(0, 1), atol=HALF_A_LEVEL, rtol=0)

    with tarfile.open(written["webdataset"].path) as archive:
        content = {entry.name: archive.extractfile(entry).read() for entry in archive}
    assert list(content) == [f"{i:06}.{ending}" for i in range(len(labels)) for ending in ("png", "cls")]
    assert [int(content[f"{i:06}.cls"]) for i in range(len(labels))] == labels.tolist()
    shown = torch.stack([picture(content[f"{i:06}.png"]) for i in range(len(labels))])
    torch.testing.assert_close(shown, wanted.clamp(0, 1), atol=HALF_A_LEVEL, rtol=0)


def test_clipped_values_are_counted(save, catalog):
    distilled = toy()
    levels = (pixels(distilled) * 255).round()
    clipped = int(((levels < 0) | (levels > 255)).sum())
    assert 0 < clipped < 120
    for layout in ("folder", "webdataset"):
        assert f"; {clipped} of 120 values were clipped to [0, 1]." in export(save(distilled), layout, catalog).notes[0]
    # The pixel 1 of a real image, which rounding of float32 has put a little above 1, is not clipped.
    edge = toy(inputs=torch.full((1, 6, 1, 4, 5), 2.000001))
    assert "; 0 of 120 values" in export(save(edge), "folder", catalog, force=True).notes[0]


@pytest.mark.parametrize("layout", SUFFIX)
def test_equal_sets_give_equal_bytes(tmp_path, catalog, save, layout):
    first, second = (export(save(toy()), layout, catalog, tmp_path / name / "x") for name in "ab")
    assert [*first.files.values()] == [*second.files.values()]


def test_entries_of_a_tar_have_no_time_and_no_owner(save, catalog):
    with tarfile.open(export(save(toy()), "webdataset", catalog).path) as archive:
        assert {(entry.mtime, entry.uid, entry.uname, entry.mode) for entry in archive} == {(0, 0, "", 0o644)}


@pytest.fixture
def own(tmp_path, make_prepared):
    """Real digits as a run leaves them, in no order of classes, and the words that score on two linear networks."""
    prepared = make_prepared(images_per_class=10, steps=1, protocol="replay/v1", eval_networks=2)
    chosen = prepared.train.random_subset(10, torch.Generator().manual_seed(0))
    mixed = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    info = prepared.train.info
    distilled = DistilledSet(chosen.inputs[mixed][None], chosen.labels[mixed][None])
    facts = {"classes": list(info.classes), "mean": list(info.mean), "std": list(info.std), "dataset": info.label}
    distilled.described(**facts, spec=prepared.settings.canonical()).save(tmp_path / "run" / "distilled.safetensors")
    (tmp_path / "run" / "spec.json").write_text(prepared.settings.canonical())
    return "-d", "digits", "--network", "linear", "--eval-networks", 2, "--protocol", "replay/v1", "--json"


@pytest.mark.slow
def test_what_is_written_is_scored_the_same(ddbench, own, tmp_path):
    before = ddbench("evaluate", "run", "--json").json()["score"]["values"]
    facts = DistilledSet.load(tmp_path / "run" / "distilled.safetensors").metadata
    digits = [facts[name].strip("[]") for name in ("mean", "std")]
    scales = {"dc": digits, "mtt": digits, "npz": ["0", "1"], "folder": None}
    for layout, scale in scales.items():
        done = ddbench("export", "run", "--to", layout)
        assert done.code == 0, done.err
        flags = ["--file-mean", scale[0], "--file-std", scale[1]] if scale else []
        scored = ddbench("evaluate", f"run/export-{layout}{SUFFIX[layout]}", *flags, *own)
        assert scored.code == 0, scored.err
        # At most one of the 360 test images, which lie between two classes, is classified otherwise.
        assert scored.json()["score"]["values"] == pytest.approx(before, abs=1 / 300), layout


@pytest.mark.slow
def test_a_set_of_cifar10_is_scored_the_same(ddbench, real_data):
    """The published std is not that of the data: read back by the numbers that the export names, nothing changes."""
    path = artefact("cifar10", 3, 1)
    words = ["--network", "linear", "--eval-networks", 2, "--protocol", "replay/v1", "--json"]
    before = ddbench("evaluate", path, *words).json()["score"]["values"]
    mean, std = (",".join(map(str, numbers)) for numbers in CIFAR10)
    for layout in ("dc", "mtt"):
        assert ddbench("export", path, "--to", layout, "--out", f"x{SUFFIX[layout]}").code == 0
        scored = ddbench(
            "evaluate", f"x{SUFFIX[layout]}", "-d", "cifar10", "--file-mean", mean, "--file-std", std, *words
        )
        assert scored.code == 0, scored.err
        assert scored.json()["score"]["values"] == pytest.approx(before, abs=1e-3), layout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "within"), [("mnist", 1e-4), ("fashion_mnist", 2e-3), ("cifar10", 3e-4)])
def test_published_numbers_are_those_of_the_data(real_data, catalog, name, within):
    """For CIFAR-10 the std is the mean over images of each image's own; for the others it is over all pixels."""
    images = catalog.get("dataset", name).call({}, data_dir(), False).train_images.flatten(2).float() / 255
    per_image = name == "cifar10"
    std = images.std(2).mean(0) if per_image else images.transpose(0, 1).flatten(1).std(1)
    assert images.mean((0, 2)).tolist() == pytest.approx(DC[name].mean, abs=within)
    assert std.tolist() == pytest.approx(DC[name].std, abs=within)
    assert not per_image or MTT[name] == DC[name]


def test_soft_labels_of_mtt_are_logits(save, catalog):
    labels = soft("distribution").labels.clone()
    labels[0, 0] = torch.tensor([0.0, 1.0, 0.0])
    logits = soft("logits")
    for distilled in (replace(soft("distribution"), labels=labels), replace(soft(None), labels=labels), logits):
        path = export(save(distilled), "mtt", catalog, force=True).path / "labels_best.pt"
        stored = torch.load(path, weights_only=True)
        assert stored.dtype == torch.float32 and torch.isfinite(stored).all()
        torch.testing.assert_close(stored.softmax(-1), distilled.targets()[0], atol=EPS, rtol=0)
    assert torch.equal(stored, logits.labels[0])


@pytest.mark.parametrize("kind", [None, "distribution", "logits", "regression"])
def test_soft_labels_of_the_other_layouts(save, catalog, kind):
    distilled, shown = soft(kind), kind or "distribution"
    with np.load(export(save(distilled), "npz", catalog).path) as file:
        assert torch.equal(torch.from_numpy(file["labels"]), distilled.labels[0])
    with tarfile.open(export(save(distilled), "webdataset", catalog).path) as archive:
        assert archive.getnames()[:2] == ["000000.png", "000000.json"]
        found = [json.load(archive.extractfile(f"{i:06}.json")) for i in range(6)]
    assert found == [{"label": label, "label_kind": shown} for label in distilled.labels[0].tolist()]
    for layout, remedy in (("dc", "--to mtt or npz"), ("folder", "--to webdataset or npz")):
        with pytest.raises(UsageError, match=f"soft labels, which the layout {layout} cannot hold") as error:
            export(save(distilled), layout, catalog)
        assert remedy in error.value.hint


@pytest.mark.parametrize("kind", ["regression", None])
def test_targets_of_a_regression_are_no_logits(save, catalog, kind):
    with pytest.raises(UsageError, match="neither classes, probabilities nor logits"):
        export(save(replace(soft("regression"), label_kind=kind)), "mtt", catalog)


def full() -> DistilledSet:
    """Return a set of two steps with every field that a set can have beside a payload."""
    plain = toy().described(inner_optimiser="adam")
    return replace(
        plain,
        inputs=plain.inputs.view(2, 3, 1, 4, 5),
        labels=plain.labels.view(2, 3),
        lrs=torch.arange(1.0, 7.0).view(3, 2),
        weights=torch.arange(6.0).view(2, 3),
        extras={"teacher": torch.ones(2), "crops": torch.ones(2)},
    )


WEIGHTS, EXTRAS = "the weights of the examples", "the extras crops, teacher"
ORDER, OPTIMISER = "the order of the 2 steps, of 3 images each", "the optimiser that the rates were made for, adam"
RATES = "the learning rates of the 6 gradient steps"


@pytest.mark.parametrize(
    ("layout", "lost", "lost_of_one_rate"),
    [
        ("dc", [ORDER, RATES, OPTIMISER, WEIGHTS, EXTRAS], ["the learning rate", OPTIMISER]),
        ("mtt", [ORDER, RATES, OPTIMISER, WEIGHTS, EXTRAS], [OPTIMISER]),
        ("folder", [ORDER, RATES, OPTIMISER, WEIGHTS, EXTRAS], ["the learning rate", OPTIMISER]),
        ("npz", [ORDER, OPTIMISER, EXTRAS], [OPTIMISER]),
        ("webdataset", [ORDER, RATES, OPTIMISER, WEIGHTS, EXTRAS], ["the learning rate", OPTIMISER]),
    ],
)
def test_what_a_layout_cannot_hold_is_reported(save, catalog, layout, lost, lost_of_one_rate):
    assert export(save(full()), layout, catalog).lost == tuple(lost)
    one_rate = toy(lrs=torch.tensor(0.5)).described(inner_optimiser="adam")
    assert export(save(one_rate), layout, catalog, force=True).lost == tuple(lost_of_one_rate)
    assert export(save(toy()), layout, catalog, force=True).lost == ()


def test_what_the_command_prints(save, ddbench, tmp_path):
    save(full())
    document = ddbench("export", "distilled.safetensors", "--to", "dc", "--json").json()
    note = "DC has no numbers for toy in 1 channel: images are normalised by the set's own mean (0.5) and std (0.25)."
    assert document == {
        "status": "ok",
        "path": "export-dc.pt",
        "layout": "dc",
        "files": {"export-dc.pt": sha256((tmp_path / "export-dc.pt").read_bytes())},
        "notes": [note],
        "lost": [ORDER, RATES, OPTIMISER, WEIGHTS, EXTRAS],
    }
    shown = ddbench("export", "distilled.safetensors", "--to", "dc", "--force").out.splitlines()
    assert shown == ["Wrote export-dc.pt", note, f"Not kept: {'; '.join(document['lost'])}."]
    save(toy())
    assert "Not kept" not in ddbench("export", "distilled.safetensors", "--to", "dc", "--force").out


def test_weights_and_rates_that_a_layout_holds(save, catalog):
    weights, lrs = torch.arange(6.0).view(1, 6), torch.full((3, 1), 0.25)
    distilled = toy(weights=weights, lrs=lrs)
    with np.load(export(save(distilled), "npz", catalog).path) as file:
        assert torch.equal(torch.from_numpy(file["weights"]), weights[0])
        assert torch.equal(torch.from_numpy(file["lrs"]), lrs)
    exported = export(save(distilled), "mtt", catalog)
    rate = torch.load(exported.path / "lr_best.pt", weights_only=True)
    assert rate.shape == () and rate.dtype == torch.float32 and rate == 0.25
    assert exported.lost == ("the number of gradient steps, 3", WEIGHTS)
    # No rate of an earlier export stays behind.
    assert not (export(save(toy()), "mtt", catalog, force=True).path / "lr_best.pt").exists()


def test_a_payload_is_decoded(save, catalog):
    images = torch.randn((2, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    stored = DistilledSet.encoded("tiles/v1", {"images": images}, torch.tensor([[0, 1] * 4]), {"factor": 2})
    stored = replace(stored, metadata=toy().metadata).described(sample_shape=[1, 4, 4])
    exported = export(save(stored), "npz", catalog)
    assert exported.notes[0] == "The payload of tiles/v1, 128 bytes, is decoded to images of 512 bytes as float32."
    with np.load(exported.path) as file:
        found = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).double()
    torch.testing.assert_close(found, pixels(decode(stored, catalog)), atol=EPS, rtol=0)
    with pytest.raises(DdbenchError, match="'tiles/v9' is unknown"):
        export(save(replace(stored, decoder="tiles/v9")), "dc", catalog)


def test_names_of_classes_are_safe_for_file_systems(save, catalog):
    distilled = toy().described(classes=["../x:y", "A b", "a B"])
    exported = export(save(distilled), "folder", catalog)
    assert {path.name for path in exported.path.iterdir()} == {"_x_y", "A b", "2_a B"}
    assert "'../x:y' is '_x_y', 'a B' is '2_a B'" in exported.notes[1]
    unnamed = toy()
    del unnamed.metadata["classes"]
    with pytest.raises(UsageError, match="does not say the names of its classes"):
        export(save(unnamed), "folder", catalog, force=True)
    export(save(unnamed), "dc", catalog)


def test_a_run_by_its_name(ddbench, tmp_path):
    toy().save(tmp_path / "runs" / "mine" / "distilled.safetensors")
    assert ddbench("export", "mine", "--to", "npz").out.startswith("Wrote runs/mine/export-npz.npz\n")
    assert ddbench("export", "runs/mine", "--to", "dc", "--out", "new/x.pt", "--json").json()["path"] == "new/x.pt"


@pytest.fixture
def places(tmp_path):
    """Folders and files that are no sets, or that are in the way."""
    toy().save(tmp_path / "run" / "distilled.safetensors")
    (tmp_path / "plain").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "spec.json").write_text("{}")
    whole = (tmp_path / "run" / "distilled.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-9])
    (tmp_path / "file").write_text("text")
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "holiday.jpg").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "messages"),
    [
        (["nothing", "--to", "dc"], 2, ["there is no file nothing"]),
        (["plain", "--to", "dc"], 2, ["plain is not a run folder", "See the folders in runs/"]),
        (["begun", "--to", "dc"], 2, ["has no distilled set yet", "ddbench resume begun"]),
        (["cut.safetensors", "--to", "dc"], 2, ["cut.safetensors is damaged"]),
        (["file", "--to", "mtt"], 2, ["file is damaged or not a distilled set"]),
        (["run", "--to", "hdf5"], 2, ["'hdf5' is not one of 'dc', 'mtt'"]),
        (["run"], 2, ["Missing option '--to'"]),
        (["run", "--to", "dc", "--out", "file/x.pt"], 1, ["cannot write file/x.pt"]),
        (["run", "--to", "folder", "--out", "file/x"], 1, ["cannot write file/x"]),
        (["run", "--to", "dc", "--out", "file"], 2, ["file exists", "--force"]),
        (["run", "--to", "mtt", "--out", "plain"], 2, ["plain exists", "--force"]),
        (["run", "--to", "mtt", "--out", "file", "--force"], 2, ["file is a file, which --force does not replace"]),
        (["run", "--to", "dc", "--out", "plain", "--force"], 2, ["plain is a folder"]),
        (["run", "--to", "folder", "--out", "album", "--force"], 2, ["a folder with other files"]),
        (["run", "--to", "folder", "--out", ".", "--force"], 2, ["a folder with other files"]),
        (["run", "--to", "npz", "--out", "run/distilled.safetensors", "--force"], 2, ["is the set itself"]),
    ],
)  # fmt: skip
def test_what_a_user_can_get_wrong(ddbench, places, words, code, messages):
    before = {path: path.read_bytes() for path in places.rglob("*") if path.is_file()}
    done = ddbench("export", *words)
    assert done.code == code, done.err
    for message in messages:
        assert message in " ".join(done.message().replace("│", " ").split())
    assert {path: path.read_bytes() for path in places.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("layout", SUFFIX)
def test_force_replaces_what_an_export_wrote(ddbench, places, layout):
    path = places / "run" / f"export-{layout}{SUFFIX[layout]}"
    assert ddbench("export", "run", "--to", layout).code == 0
    assert ddbench("export", "run", "--to", layout).code == 2
    other = toy(inputs=toy().inputs[:, :3], labels=toy().labels[:, :3])
    other.save(places / "run" / "distilled.safetensors")
    done = ddbench("export", "run", "--to", layout, "--force", "--json").json()
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    assert {places / name: digest for name, digest in done["files"].items()} == {
        p: sha256(p.read_bytes()) for p in found
    }
    assert not list(places.rglob("*.tmp"))


@pytest.mark.parametrize("layout", SUFFIX)
def test_a_full_disk_leaves_what_was_there(ddbench, places, layout):
    """A limit on the size of files stands in for the disk."""
    assert ddbench("export", "run", "--to", layout).code == 0
    before = {path: path.read_bytes() for path in places.rglob("*") if path.is_file()}
    done = ddbench("export", "run", "--to", layout, "--force", file_limit=60)
    assert done.code == 1
    assert "cannot write" in done.message()
    assert {path: path.read_bytes() for path in places.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_replaced_stays(save, catalog, monkeypatch):
    before = export(save(toy()), "mtt", catalog).files
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("the disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(DdbenchError, match="cannot write"):
        export(save(full()), "mtt", catalog, force=True)
    assert {name: sha256(Path(name).read_bytes()) for name in before} == before


def without(name: str) -> DistilledSet:
    distilled = toy()
    del distilled.metadata[name]
    return distilled


@pytest.mark.parametrize(
    ("distilled", "message"),
    [
        (without("mean"), "does not say by which mean and std its 1 channels were normalised"),
        (without("std"), "does not say by which mean and std"),
        (toy().described(mean=[0.5, 0.5]), "does not say by which mean and std"),
        (toy().described(std=[0.0]), "does not say by which mean and std"),
        (toy().described(mean="half"), "does not say by which mean and std"),
        (toy().described(mean=None), "does not say by which mean and std"),
        (toy().described(classes="five"), "does not say what its classes are"),
        (toy().described(classes=["a", "b"]), "has labels 0 to 2 and names 2 classes"),
        (changed(toy(), labels=torch.zeros((1, 5), dtype=torch.int64)), "is damaged"),
        (toy(inputs=torch.full((1, 6, 1, 4, 5), torch.nan)), "is damaged"),
        (toy(label_kind="logits"), "is damaged"),
        (toy(inputs=torch.zeros((1, 0, 1, 4, 5)), labels=torch.zeros((1, 0), dtype=torch.int64)), "is damaged"),
        (toy(inputs=torch.zeros((1, 6, 7))), "holds examples of shape [7], not images"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["dc", "npz"])
def test_sets_that_cannot_be_exported(save, catalog, without_shape_checks, distilled, message, layout):
    path = save(distilled)
    with pytest.raises(UsageError) as error:
        export(path, layout, catalog)
    assert message in error.value.message and error.value.hint
    assert [path] == list(path.parent.iterdir())


@pytest.mark.parametrize("layout", ["folder", "webdataset"])
def test_pictures_are_grey_or_rgb(save, catalog, layout):
    two = toy(inputs=torch.zeros((1, 6, 2, 4, 4)))
    with pytest.raises(UsageError, match="have 2 channels, PNG holds one"):
        export(save(two), layout, catalog)
    assert export(save(two), "npz", catalog).path.exists()
