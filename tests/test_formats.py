import math

import numpy as np
import pytest
import torch
from PIL import Image

from ddbench.contract.sets import DistilledSet
from ddbench.errors import UsageError
from ddbench.formats.families import read


@pytest.fixture
def chosen(make_prepared):
    """Ten real images of each class as normalised by the harness, their labels, and what is known of the data."""
    prepared = make_prepared()
    examples = prepared.train.random_subset(10, torch.Generator().manual_seed(0))
    return examples.inputs, examples.labels, examples.info


@pytest.fixture
def released(tmp_path, chosen):
    """The command that scores a released file on two linear networks."""
    images, labels, _ = chosen
    torch.save({"data": [[images, labels]]}, tmp_path / "res.pt")
    return [
        "evaluate",
        "res.pt",
        "-d",
        "digits",
        "--network",
        "linear",
        "--eval-networks",
        "2",
        "--protocol",
        "replay/v1",
    ]


def test_files_of_gradient_matching(tmp_path, chosen):
    images, labels, info = chosen
    other = (torch.zeros_like(images), labels)
    accuracies = [np.float64(0.5), np.float32(0.5), np.array([0.5]), np.bool_(True), np.str_("a")]
    content = {"data": [list(other), [images, labels]], "accs_all_exps": {"ConvNet": accuracies}}
    torch.save(content, tmp_path / "res.pt")
    distilled = read(tmp_path / "res.pt", 1).to_distilled(info)
    assert torch.equal(distilled.flat()[0], images)
    assert torch.equal(distilled.flat()[1], labels)
    again = read(tmp_path / "res.pt", 1).to_distilled(info, mean=(0.5,), std=(0.25,))
    torch.testing.assert_close(info.pixels(again.flat()[0]), images * 0.25 + 0.5)
    for mean, std in (((0.5,), None), ((0.5, 0.5), (0.25, 0.25))):
        with pytest.raises(UsageError, match="must both be given"):
            read(tmp_path / "res.pt", 1).to_distilled(info, mean, std)
    for mean, std in (((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((float("nan"),), (0.25,))):
        with pytest.raises(UsageError, match="the std above zero"):
            read(tmp_path / "res.pt", 1).to_distilled(info, mean, std)
    with pytest.raises(UsageError, match="holds 2 repetitions"):
        read(tmp_path / "res.pt", 2)


def test_files_with_scalars_of_numpy_1(tmp_path, chosen):
    """The module that numpy 2 renamed, put back into the pickle of a file in the format without an archive."""
    images, labels, info = chosen
    content = {"data": [[images, labels]], "accs_all_exps": {"ConvNet": [np.float64(0.5), np.array([0.5])]}}
    torch.save(content, tmp_path / "res.pt", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "res.pt").read_bytes()
    now = np.float64.__reduce__(np.float64(0))[0].__module__.encode()
    assert now in raw
    for then in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        (tmp_path / "res.pt").write_bytes(raw.replace(now, then))
        assert torch.equal(read(tmp_path / "res.pt").to_distilled(info).flat()[0], images)


def test_whole_numbers_need_the_scale_of_pixels(tmp_path, chosen, released, ddbench):
    images, labels, info = chosen
    pixels = (info.pixels(images) * 255).round().to(torch.uint8)
    torch.save({"data": [[pixels, labels]]}, tmp_path / "res.pt")
    message = ddbench(*released).message()
    assert "whole numbers (uint8)" in message and "--file-mean 0 --file-std 0.00392157" in message
    distilled = read(tmp_path / "res.pt").to_distilled(info, mean=(0.0,), std=(0.00392157,))
    torch.testing.assert_close(distilled.flat()[0], images, atol=0.02, rtol=0)


def test_whitening_is_undone(tmp_path, chosen, make_prepared, released, ddbench):
    """Whitened by the singular value decomposition, as the repositories do it, and undone by eigenvectors."""
    images, labels, info = chosen
    pixels = info.pixels(make_prepared().everything.inputs)
    flat = pixels.flatten(1)
    mean = flat.mean(0)
    u, s, _ = torch.linalg.svd((flat - mean).T @ (flat - mean) / len(flat))
    whiten = u @ torch.diag(1 / (s + 0.1).sqrt()) @ u.T
    whitened = ((info.pixels(images).flatten(1) - mean) @ whiten).view_as(images)
    torch.save({"data": [[whitened, labels]]}, tmp_path / "zca.pt")
    back = read(tmp_path / "zca.pt").to_distilled(info, whitened_by=pixels).flat()[0]
    torch.testing.assert_close(back, images, atol=1e-4, rtol=1e-4)

    def score(file: str, *flags: object) -> float:
        return ddbench("evaluate", file, *released[2:], *flags, "--json").json()["score"]["mean"]

    assert score("zca.pt", "--file-zca") == pytest.approx(score("res.pt"), abs=0.01)
    assert abs(score("zca.pt") - score("res.pt")) > 0.02
    refused = ddbench("evaluate", "zca.pt", *released[2:], "--file-zca", "--file-mean", "0.5", "--file-std", "0.5")
    assert refused.code == 2


def test_files_of_trajectory_matching(tmp_path, chosen):
    images, labels, info = chosen
    logits = torch.randn(100, 10, generator=torch.Generator().manual_seed(1))
    torch.save(images, tmp_path / "images_best.pt")
    for saved, said, wanted in (
        (labels, False, labels),
        (logits, True, logits.softmax(1)),
        (logits.softmax(1), False, logits.softmax(1)),
    ):
        torch.save(saved, tmp_path / "labels_best.pt")
        torch.testing.assert_close(read(tmp_path).to_distilled(info, logits=said).flat()[1], wanted)
    onehot = torch.nn.functional.one_hot(labels, 10).float()
    for wrong in (logits, onehot * 0.5, onehot * 2 - 0.3):
        torch.save(wrong, tmp_path / "labels_best.pt")
        with pytest.raises(UsageError, match="not probabilities") as caught:
            read(tmp_path).to_distilled(info)
        assert "--file-labels logits" in caught.value.hint
    torch.save(onehot[:, :7], tmp_path / "labels_best.pt")
    with pytest.raises(UsageError, match="of 7 classes, digits has 10"):
        read(tmp_path).to_distilled(info)
    torch.save(labels, tmp_path / "labels_best.pt")
    with pytest.raises(UsageError, match="not logits"):
        read(tmp_path).to_distilled(info, logits=True)


def test_a_notice_says_that_a_learned_rate_is_not_used(tmp_path, chosen):
    images, labels, _ = chosen
    torch.save(images, tmp_path / "images_best.pt")
    torch.save(labels, tmp_path / "labels_best.pt")
    assert read(tmp_path).notices == ()
    for rate in (torch.tensor(0.025), 0.025):
        torch.save(rate, tmp_path / "lr_best.pt")
        assert "learned rate 0.025" in read(tmp_path).notices[0]
    torch.save(_Code(), tmp_path / "lr_best.pt")
    with pytest.raises(UsageError, match="could run code"):
        read(tmp_path)
    for rate in (torch.zeros(2), "fast"):
        torch.save(rate, tmp_path / "lr_best.pt")
        with pytest.raises(UsageError, match="not hold one learned rate"):
            read(tmp_path)


def test_files_of_inducing_points(tmp_path, chosen):
    images, labels, info = chosen
    onehot = np.eye(10, dtype=np.float32)[labels.numpy()]
    smooth = 0.8 * onehot + 0.02
    for saved, wanted, message in (
        (onehot - 0.1, labels, "taken as hard"),
        (smooth, torch.from_numpy(smooth), ""),
        (smooth - 0.1, torch.from_numpy(smooth), "taken as soft"),
    ):
        np.savez(tmp_path / "kip.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=saved)
        kip = read(tmp_path / "kip.npz")
        assert message in "".join(kip.notices) and len(kip.notices) == bool(message)
        distilled = kip.to_distilled(info)
        assert torch.equal(distilled.flat()[0], images)
        torch.testing.assert_close(distilled.flat()[1], wanted)
    np.savez(tmp_path / "kip.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=onehot * 1.3 - 0.2)
    with pytest.raises(UsageError, match="not probabilities"):
        read(tmp_path / "kip.npz").to_distilled(info)
    with pytest.raises(UsageError, match="holds one set"):
        read(tmp_path / "kip.npz", 1)


def test_folders_of_images(tmp_path, chosen):
    images, labels, info = chosen
    pixels = (info.pixels(images) * 255).round().to(torch.uint8)
    for i in range(100):
        folder = tmp_path / "set" / info.classes[labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i, 0].numpy()).save(folder / f"{i:03}.png")
    distilled = read(tmp_path / "set").to_distilled(info)
    order = torch.argsort(labels, stable=True)
    torch.testing.assert_close(distilled.flat()[0], images[order], atol=0.02, rtol=0)
    assert torch.equal(distilled.flat()[1], labels[order])
    with pytest.raises(UsageError, match="are pixels"):
        read(tmp_path / "set").to_distilled(info, mean=(0.5,), std=(0.25,))
    (tmp_path / "set" / "7").rename(tmp_path / "set" / "seven")
    with pytest.raises(UsageError, match="'seven' is not a class"):
        read(tmp_path / "set").to_distilled(info)


class _Code:
    def __reduce__(self):
        return print, ("run",)


def test_files_of_no_family(tmp_path, chosen, capsys):
    images, labels, info = chosen
    torch.save({"data": [[_Code(), labels]]}, tmp_path / "code.pt")
    torch.save({"data": [[images[:5], labels]]}, tmp_path / "short.pt")
    torch.save({"data": [[images, labels]], "accs_all_exps": [np.float64(0.5), _Code()]}, tmp_path / "beside.pt")
    torch.save({"other": 1}, tmp_path / "other.pt")
    np.savez(tmp_path / "pickled.npz", images=np.array([object()]), labels=np.zeros(1))
    (tmp_path / "text.npz").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "code.pt": "does not hold tensors only",
        "beside.pt": "does not hold tensors only",
        "short.pt": "no images",
        "other.pt": "no list of",
        "none.pt": "no file",
        "pickled.npz": "no arrays",
        "text.npz": "no arrays",
        "empty": "no folders of images",
    }.items():
        with pytest.raises(UsageError, match=message):
            read(tmp_path / name)
    assert "run" not in capsys.readouterr().out
    np.savez(tmp_path / "words.npz", images=images.numpy(), labels=np.array(["a"] * 100))
    with pytest.raises(UsageError, match="no arrays"):
        read(tmp_path / "words.npz")
    torch.save({"data": [[torch.zeros(10, 3, 8, 8), labels[:10]]]}, tmp_path / "colour.pt")
    with pytest.raises(UsageError, match="are 3x8x8, those of digits 1x8x8"):
        read(tmp_path / "colour.pt").to_distilled(info)


def test_sets_that_cannot_be_scored(tmp_path, chosen):
    images, labels, info = chosen
    holed = images.clone()
    holed[3, 0, 2, 2] = float("nan")
    for entry, message in (
        ([images, labels, labels], "not a pair"),
        ([images], "not a pair"),
        (images[:2], "not a pair"),
        (None, "not a pair"),
        ([images, 3], "no images"),
        ([images, torch.tensor(3)], "no images"),
        ([images.to_sparse(), labels], "no images"),
        ([images[:0], labels[:0]], "an empty set"),
        ([images, labels > 4], "labels in .* are bool"),
        ([images, labels.float()], "labels in .* are float32"),
        ([images, torch.nn.functional.one_hot(labels)], "labels in .* are int64"),
        ([images.to(torch.complex64), labels], "images in .* are complex64"),
        ([images > 0, labels], "images in .* are bool"),
        ([holed, labels], "images in .* have NaN"),
        ([images / 0, labels], "images in .* have NaN"),
        ([images, labels + 1], "labels are 1 to 10"),
        ([images, torch.where(labels == 3, 4, labels)], "class '3' has no image in this file"),
    ):
        torch.save({"data": [entry]}, tmp_path / "res.pt")
        with pytest.raises(UsageError, match=message):
            read(tmp_path / "res.pt").to_distilled(info)


def test_a_released_file_is_scored(ddbench, released):
    result = ddbench(*released, "--cross-network", "mlp", "--json")
    assert result.code == 0, result.err
    document = result.json()
    assert document["settings"]["images_per_class"] == 10
    assert [one["settings"]["network"]["name"] for one in document["others"]] == ["mlp"]
    assert document["score"]["mean"] > 0.5
    assert "Name its dataset" in ddbench("evaluate", "res.pt").message()
    assert "for the 100 classes" not in result.err
    shown = ddbench(*released, "--cross-network", "mlp").out
    assert "linear on digits, replay/v1" in shown
    assert "mlp on digits, replay/v1" in shown


@pytest.mark.slow
def test_a_network_that_does_not_fit_leaves_the_other_scores(ddbench, released, tmp_path):
    result = ddbench(*released, "--cross-network", "linear,lenet,mlp,mlp,torchvision/vgg11", "--json")
    document = result.json()
    assert [one["settings"]["network"]["name"] for one in document["others"]] == ["mlp"]
    assert [one["network"] for one in document["skipped"]] == ["lenet", "torchvision/vgg11"]
    assert "at least 12x12" in document["skipped"][0]["reason"]
    assert "Skipped lenet: lenet needs images of at least 12x12" in " ".join(result.err.split())
    (tmp_path / "text.pt").write_text("hello")
    assert "not a file of tensors" in ddbench("evaluate", "text.pt", "-d", "digits").message()
    (tmp_path / "set" / "0").mkdir(parents=True)
    (tmp_path / "set" / "0" / "x.png").write_text("no picture")
    assert "x.png is not a picture" in ddbench("evaluate", "set", "-d", "digits").message()


def test_the_label_regime_is_reported(ddbench, released, tmp_path, chosen, make_prepared):
    # On a loaded machine the command would leave out networks on the full data, which take too long.
    make_prepared(protocol="replay/v1").setting.full_data(math.inf)
    hard = ddbench(*released)
    assert ["labels", "hard"] in [line.split() for line in hard.out.splitlines()]
    assert hard.out.splitlines()[-1].startswith("in fractions: IOR ")
    document = ddbench(*released, "--json").json()
    assert document["label_regime"] == "hard" and document["skipped"] == []
    gain = document["score"]["mean"] - document["companions"]["random_subset"]["mean"]
    assert document["fairness"]["IOR"] == pytest.approx(gain) and "LRS" in document["fairness"]
    images, labels, _ = chosen
    torch.save({"data": [[images, torch.nn.functional.one_hot(labels, 10) * 9.0]]}, tmp_path / "res.pt")
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


def test_unknown_names_are_reported_before_scoring(ddbench, released):
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
    for flag in ("--dataset", "--also-on"):
        refused = ddbench(*own, flag, "fashion_mnist")
        assert (
            refused.code == 2
            and "label 0 is '0' in own.safetensors and 'T-shirt' in fashion_mnist" in refused.message()
        )
        assert "Scoring" not in refused.err
    for classes, message in (("1023456789", "label 0 is '1'"), ("012345678", "label 9 is no class")):
        assert message in ddbench(*artefact(tuple(classes))).message()


def test_options_about_foreign_files_are_refused_for_our_own(ddbench, artefact):
    own = artefact(tuple("0123456789"))
    for option in ("--repetition 0", "--file-mean 0.5", "--file-std 1", "--file-zca", "--file-labels logits"):
        refused = ddbench(*own, *option.split())
        assert refused.code == 2 and f"{option.split()[0]} is about files that others made" in refused.message()
