import numpy as np
import pytest
import torch
from PIL import Image

from ddbench.errors import UsageError
from ddbench.foreign import read


@pytest.fixture
def chosen(make_bench):
    """Ten real images of each class as normalised by the harness, their labels, and what is known of the data."""
    bench = make_bench()
    examples = bench.train.random_subset(10, torch.Generator().manual_seed(0))
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
    torch.save({"data": [list(other), [images, labels]], "accs_all_exps": {"ConvNet": [0.5]}}, tmp_path / "res.pt")
    found = read(tmp_path / "res.pt", 1).as_set(info)
    assert torch.equal(found.flat()[0], images)
    assert torch.equal(found.flat()[1], labels)
    again = read(tmp_path / "res.pt", 1).as_set(info, mean=(0.5,), std=(0.25,))
    torch.testing.assert_close(info.pixels(again.flat()[0]), images * 0.25 + 0.5)
    for mean, std in (((0.5,), None), ((0.5, 0.5), (0.25, 0.25))):
        with pytest.raises(UsageError, match="must both be given"):
            read(tmp_path / "res.pt", 1).as_set(info, mean, std)
    with pytest.raises(UsageError, match="holds 2 repetitions"):
        read(tmp_path / "res.pt", 2)


def test_whitened_files_come_back_as_pixels(tmp_path, chosen, make_bench, released, ddbench):
    """Whitened by the singular value decomposition, as the repositories do it, and undone by eigenvectors."""
    images, labels, info = chosen
    pixels = info.pixels(make_bench().everything.inputs)
    flat = pixels.flatten(1)
    mean = flat.mean(0)
    u, s, _ = torch.linalg.svd((flat - mean).T @ (flat - mean) / len(flat))
    whiten = u @ torch.diag(1 / (s + 0.1).sqrt()) @ u.T
    whitened = ((info.pixels(images).flatten(1) - mean) @ whiten).view_as(images)
    torch.save({"data": [[whitened, labels]]}, tmp_path / "zca.pt")
    back = read(tmp_path / "zca.pt").as_set(info, whitened_by=pixels).flat()[0]
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
    for saved, wanted in ((labels, labels), (logits, logits.softmax(1)), (logits.softmax(1), logits.softmax(1))):
        torch.save(saved, tmp_path / "labels_best.pt")
        torch.testing.assert_close(read(tmp_path).as_set(info).flat()[1], wanted)


def test_files_of_inducing_points(tmp_path, chosen):
    images, labels, info = chosen
    onehot = np.eye(10, dtype=np.float32)[labels.numpy()] - 0.1
    np.savez(tmp_path / "kip.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=onehot)
    found = read(tmp_path / "kip.npz").as_set(info)
    assert torch.equal(found.flat()[0], images)
    assert torch.equal(found.flat()[1], labels)


def test_folders_of_images(tmp_path, chosen):
    images, labels, info = chosen
    pixels = (info.pixels(images) * 255).round().to(torch.uint8)
    for i in range(100):
        folder = tmp_path / "set" / info.classes[labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i, 0].numpy()).save(folder / f"{i:03}.png")
    found = read(tmp_path / "set").as_set(info)
    order = torch.argsort(labels, stable=True)
    torch.testing.assert_close(found.flat()[0], images[order], atol=0.02, rtol=0)
    assert torch.equal(found.flat()[1], labels[order])
    (tmp_path / "set" / "7").rename(tmp_path / "set" / "seven")
    with pytest.raises(UsageError, match="'seven' is no class"):
        read(tmp_path / "set").as_set(info)


class _Code:
    def __reduce__(self):
        return print, ("run",)


def test_files_that_hold_none(tmp_path, chosen, capsys):
    images, labels, info = chosen
    torch.save({"data": [[_Code(), labels]]}, tmp_path / "code.pt")
    torch.save({"data": [[images[:5], labels]]}, tmp_path / "short.pt")
    torch.save({"other": 1}, tmp_path / "other.pt")
    np.savez(tmp_path / "pickled.npz", images=np.array([object()]), labels=np.zeros(1))
    (tmp_path / "text.npz").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, told in {
        "code.pt": "not a file of tensors alone",
        "short.pt": "no images",
        "other.pt": "no list of",
        "none.pt": "no file",
        "pickled.npz": "no arrays",
        "text.npz": "no arrays",
        "empty": "no folders of images",
    }.items():
        with pytest.raises(UsageError, match=told):
            read(tmp_path / name)
    assert "run" not in capsys.readouterr().out
    torch.save({"data": [[torch.zeros(10, 3, 8, 8), labels[:10]]]}, tmp_path / "colour.pt")
    with pytest.raises(UsageError, match="are 3x8x8, those of digits 1x8x8"):
        read(tmp_path / "colour.pt").as_set(info)


def test_a_released_file_is_scored(ddbench, released):
    found = ddbench(*released, "--cross-network", "mlp", "--json")
    assert found.code == 0, found.err
    document = found.json()
    assert document["spec"]["images_per_class"] == 10
    assert [one["spec"]["network"]["name"] for one in document["others"]] == ["mlp"]
    assert document["score"]["mean"] > 0.5
    assert "Name its dataset" in ddbench("evaluate", "res.pt").told()
    assert "for the 100 classes" not in ddbench(*released).err
    shown = ddbench(*released, "--cross-network", "mlp").out
    assert "linear on digits, replay/v1" in shown
    assert "mlp on digits, replay/v1" in shown


def test_what_was_scored_outlives_a_network_that_does_not_fit(ddbench, released, tmp_path):
    found = ddbench(*released, "--cross-network", "linear,lenet,mlp", "--json")
    assert [one["spec"]["network"]["name"] for one in found.json()["others"]] == ["mlp"]
    assert "Passed over lenet: lenet needs images of at least 12x12" in " ".join(found.err.split())
    (tmp_path / "text.pt").write_text("hello")
    assert "no file of tensors" in ddbench("evaluate", "text.pt", "-d", "digits").told()
    (tmp_path / "set" / "0").mkdir(parents=True)
    (tmp_path / "set" / "0" / "x.png").write_text("no picture")
    assert "x.png is no picture" in ddbench("evaluate", "set", "-d", "digits").told()
