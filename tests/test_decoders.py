"""Decoders against the numbers of the authors' own code, and through a run."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from ddbench import DatasetInfo, DistilledSet, MissingPrerequisite, UsageError, decode
from ddbench.decoders import join_tiles, split_tiles
from ddbench.discovery.decoders import Decoders
from ddbench.errors import PluginError
from ddbench.records.ranking import groups
from ddbench.records.store import read

GOLDEN = Path(__file__).parent / "golden"
INFO = DatasetInfo("toy", ("a", "b", "c"), (3, 32, 32), (0.0,) * 3, (1.0,) * 3, "image", "", False)


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / name) as file:
        arrays = {key: file[key] for key in file.files if file[key].dtype.kind in "fi"}
    # Inputs are stored as float16; those are exactly the values used.
    return {k: torch.from_numpy(a.astype(np.float64) if a.dtype.kind == "f" else a) for k, a in arrays.items()}


def agrees(actual: torch.Tensor, expected: torch.Tensor, within: float = 1e-8) -> None:
    assert actual.shape == expected.shape
    assert float(((actual - expected).norm() / expected.norm()).detach()) < within


class ConvNet(torch.nn.Module):
    """Three blocks of convolution, instance norm, relu and average pooling, and a linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(c, width, 3, padding=1) for c in (3, width, width))
        self.norms = torch.nn.ModuleList(torch.nn.GroupNorm(width, width) for _ in range(3))
        self.fc = torch.nn.Linear(16 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.avg_pool2d(F.relu(norm(conv(x))), 2)
        return self.fc(x.flatten(1))


def network(numbers: dict[str, torch.Tensor], *, norms_last: bool) -> tuple[ConvNet, dict[str, torch.Tensor]]:
    """Return the golden network and its weights by name; the order of its parameters is the authors' own."""
    names = [f"{kind}.{i}.{part}" for i in range(3) for kind in ("convs", "norms") for part in ("weight", "bias")]
    names = sorted(names, key=lambda name: name.startswith("norms")) if norms_last else names
    module = ConvNet(int(numbers["width"]), 3 if norms_last else 4).double()
    shapes = dict(module.named_parameters())
    weights, start = {}, 0
    for name in [*names, "fc.weight", "fc.bias"]:
        size = shapes[name].numel()
        weights[name] = numbers["w0"][start : start + size].view(shapes[name].shape)
        start += size
    assert start == numbers["w0"].numel()
    return module, weights


@pytest.mark.parametrize(
    ("case", "options", "precision"),
    [
        ("single", {"factor": 2}, 1e-8),
        ("multi", {"factor": 2, "undivided": True}, 1e-6),  # stored as float32
        ("bound", {"factor": 2, "bound": 6}, 1e-6),
    ],
)
def test_tiles_are_those_of_idc(catalog, case, options, precision):
    numbers = golden("field_idc.npz")
    stored = numbers["data"][2:4]
    agrees(Decoders(catalog, INFO)("tiles/v1", {"images": stored}, **options), numbers[f"decoded_{case}"], precision)


def test_gradients_go_through_tiles(catalog):
    """The published matching loss of a class, its gradient with respect to the stored images."""
    numbers = golden("field_idc.npz")
    module, weights = network(numbers, norms_last=True)
    weights = {name: tensor.requires_grad_() for name, tensor in weights.items()}
    convolutions = [weights[f"convs.{i}.weight"] for i in range(3)]
    mean, std = (numbers[name].view(3, 1, 1) for name in ("mean", "std"))

    def gradients(images: torch.Tensor, **kept: bool) -> tuple[torch.Tensor, ...]:
        logits = functional_call(module, weights, ((images - mean) / std,))
        loss = F.cross_entropy(logits, torch.full((len(images),), int(numbers["class"])))
        return torch.autograd.grad(loss, convolutions, **kept)

    stored = numbers["data"][2:4].clone().requires_grad_()
    decoded = Decoders(catalog, INFO)("tiles/v1", {"images": stored}, factor=2)
    pairs = zip(gradients(numbers["real_images"][1]), gradients(decoded, create_graph=True), strict=True)
    loss = torch.stack([(real - own).abs().sum() for real, own in pairs]).sum()
    agrees(loss, numbers["loss_single_grad_l1"])
    agrees(torch.autograd.grad(loss, stored)[0], numbers["grad_data_single_grad_l1"])


def test_sides_that_are_not_divisible_are_padded_with_grey(catalog):
    info = DatasetInfo("toy", ("a", "b"), (1, 3, 5), (0.25,), (0.5,), "image", "", False)
    stored = torch.rand(2, 1, 3, 5)
    decoded = Decoders(catalog, info)("tiles/v1", {"images": stored}, factor=2)
    padded = F.pad((stored * 0.5 + 0.25), (0, 1, 0, 1), value=0.5)
    tiles = [padded[:, :, y : y + 2, x : x + 3] for y in (0, 2) for x in (0, 3)]
    expected = F.interpolate(torch.cat(tiles), (3, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoded * 0.5 + 0.25, expected)


def test_tiles_start_from_real_images():
    numbers = golden("field_idc.npz")
    assert torch.equal(join_tiles(numbers["mix_images"], 2, (32, 32)), numbers["mixed"])
    with pytest.raises(ValueError, match="7 images do not make"):
        join_tiles(numbers["mix_images"][:7], 2, (32, 32))
    # Each tile of a joined picture is one of its parts, in the order in which it is split again.
    parts = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 6, 6)
    assert torch.equal(split_tiles(join_tiles(parts, 2, (6, 6)), 2), parts)
    # 10 pixels in three tiles: 4, 3 and 3.
    line = join_tiles(torch.arange(9.0).view(9, 1, 1, 1), 3, (10, 10))[0, 0, 0]
    assert line.tolist() == [0.0] * 4 + [1.0] * 3 + [2.0] * 3


def test_bases_are_composed_as_by_their_authors(catalog):
    """Unrolled training with momentum on composed images: the loss, and its gradients by bases and coefficients."""
    numbers = golden("field_linba.npz")
    module, weights = network(numbers, norms_last=False)
    bases, coefficients = (numbers[name].requires_grad_() for name in ("basis", "coefficients"))
    images = Decoders(catalog, INFO)("linear_bases/v1", {"bases": bases, "coefficients": coefficients})
    weights = {name: tensor.requires_grad_() for name, tensor in weights.items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for batch in numbers["batch_indices"]:
        loss = F.cross_entropy(functional_call(module, weights, (images[batch],)), numbers["syn_labels"][batch])
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        velocity = {name: numbers["momentum"] * v + g for (name, v), g in zip(velocity.items(), grads, strict=True)}
        weights = {name: w - numbers["lr"] * velocity[name] for name, w in weights.items()}
    loss = F.cross_entropy(functional_call(module, weights, (numbers["real_images"],)), numbers["real_labels"])
    agrees(loss, numbers["loss_basis"])
    for leaf, name in ((bases, "grad_basis"), (coefficients, "grad_coefficients")):
        agrees(torch.autograd.grad(loss, leaf, retain_graph=True)[0], numbers[name])


@pytest.mark.parametrize(
    ("name", "payload", "options", "error", "message"),
    [
        ("tile/v1", {}, {}, MissingPrerequisite, "the decoder 'tile/v1' is unknown: no plugin here offers it. Did you mean 'tiles/v1'?"),
        ("tiles/v2", {}, {}, MissingPrerequisite, "the decoder 'tiles/v2' is unknown"),
        ("tiles/v1", {}, {}, UsageError, "the payload has no images [n, 3, 32, 32], but: nothing"),
        ("tiles/v1", {"images": torch.zeros(2, 3, 8, 8)}, {}, UsageError, "images of shape [2, 3, 8, 8] where"),
        ("tiles/v1", {"images": torch.zeros(2, 3, 32, 32)}, {"factor": 0}, UsageError, "factor=0"),
        ("tiles/v1", {"images": torch.zeros(2, 3, 32, 32)}, {"size": 2}, UsageError, "has no option 'size'"),
        ("linear_bases/v1", {"bases": torch.zeros(2, 3, 32, 32), "coefficients": torch.zeros(4, 3)}, {}, UsageError, "coefficients of shape [4, 3] where coefficients [n, 2]"),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded(catalog, name, payload, options, error, message):
    with pytest.raises(error) as failure:
        Decoders(catalog, INFO)(name, payload, **options)
    assert message in failure.value.message


PLUGIN = '''
import torch
import ddbench
from ddbench import DistilledSet, UsageError
from ddbench.decoders import join_tiles

def example(info, generator):
    return {"half": torch.randn((2, *info.sample_shape), generator=generator)}

@ddbench.decoder(version=3, example=example)
def doubled(payload, info):
    """Return the payload and its negative."""
    if "half" not in payload:
        raise UsageError("the payload has no half.")
    return BODY

@ddbench.method
def tiled(task, run, *, name: str = "tiles/v1"):
    """Store real images as tiles, two along each side."""
    ipc = task.budget.images_per_class
    chosen = task.train.random_subset(4 * ipc, run.generator)
    parts = [join_tiles(part, 2, task.info.sample_shape[1:]) for part in chosen.inputs.split(4 * ipc)]
    images, labels = torch.cat(parts), torch.arange(len(task.info.classes)).repeat_interleave(ipc)
    if name == "tiles/v1":
        return DistilledSet.encoded(name, {"images": images}, labels.repeat(4)[None], {"factor": 2})
    return DistilledSet.encoded(name, {"half": images}, labels.repeat(2)[None])

@ddbench.hookimpl
def ddbench_decoders():
    return [doubled]

@ddbench.hookimpl
def ddbench_methods():
    return [tiled]
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "tiled.py"
    path.write_text(PLUGIN.replace("BODY", 'torch.cat([payload["half"], -payload["half"]])'))
    return path


@pytest.mark.slow
def test_a_parametrised_set_through_every_command(ddbench, plugin, tmp_path):
    run = ["run", "--plugin", plugin, "--method", "tiled", "--eval-networks", 2, "--protocol", "knn/v1", "--json"]
    done = ddbench(*run)
    assert done.code == 0, done.err
    artifact = done.json()["artifact"]
    # 10 stored images of 8x8 float32, and a label for each of the 40 that they decode to.
    wanted = {"decoder": "tiles/v1", "images": 10, "decoded_images": 40, "bytes": 10 * 64 * 4 + 40 * 8}
    assert wanted.items() <= artifact.items()
    folder = Path(done.json()["run_dir"])
    assert (tmp_path / folder / "distilled.png").exists()
    assert ddbench("leaderboard", "--check").code == 0
    assert ddbench("verify", "--all").code == 0
    again = ddbench("evaluate", folder, "--json")
    assert again.json()["score"]["values"] == done.json()["score"]["values"]
    stored = DistilledSet.load(tmp_path / artifact["path"])
    assert stored.stored == 10 and stored.count == 40
    with pytest.raises(UsageError, match="holds a payload of the decoder tiles/v1"):
        stored.pixels()
    assert decode(stored).flat()[0].shape == (40, 1, 8, 8)
    # A plain set of the same budget is not ranked with it.
    assert ddbench("run", "--method", "random_subset", "--eval-networks", 2, "--protocol", "knn/v1").code == 0
    rankings = groups(read(tmp_path / "leaderboards"))
    assert sorted(line.first.artifact.decoder for [line] in rankings) == ["", "tiles/v1"]
    page = ddbench("leaderboard", "--html", "page")
    assert page.code == 0, page.err


@pytest.mark.slow
def test_a_set_whose_decoder_is_not_installed(ddbench, plugin, tmp_path):
    own = ["--plugin", plugin, "--method", "tiled", "--set", "name=doubled/v3", "--eval-networks", 1]
    done = ddbench("run", *own, "--protocol", "knn/v1", "--json")
    assert done.code == 0, done.err
    folder = done.json()["run_dir"]
    assert ddbench("evaluate", folder, "--plugin", plugin).code == 0
    absent = ddbench("evaluate", folder)
    assert absent.code == 3
    assert "the decoder 'doubled/v3' is unknown: no plugin here offers it." in absent.message()
    assert "Install its plugin" in absent.message()
    unknown = ddbench("run", "--plugin", plugin, "--method", "tiled", "--set", "name=halved/v1")
    assert unknown.code == 3 and "'halved/v1' is unknown" in unknown.message()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("payload", "returned dict where [n, 3, 32, 32] is expected"),
        ('payload["half"][:, :1]', "returned a tensor of shape [2, 1, 32, 32]"),
        ('payload["other"]', "raised KeyError"),
    ],
)
def test_decoders_that_break_the_contract_are_named(tmp_path, body, message):
    from ddbench import Catalog

    path = tmp_path / "faulty.py"
    path.write_text(PLUGIN.replace("BODY", body))
    with pytest.raises(PluginError) as error:
        Decoders(Catalog([path]), INFO)("doubled/v3", {"half": torch.zeros(2, 3, 32, 32)})
    assert "doubled/v3" in error.value.message and message in error.value.message


def test_a_payload_counts_as_the_images_that_its_values_would_fill():
    labels = torch.zeros((1, 40), dtype=torch.int64)

    def stored(**payload: torch.Tensor) -> int:
        return DistilledSet.encoded("x/v1", payload, labels).stored_examples((1, 8, 8))

    assert stored(images=torch.zeros(10, 1, 8, 8)) == 10
    assert stored(images=torch.zeros(10, 1, 8, 8), shift=torch.zeros(1)) == 11
    # Short numbers save bytes, not images; long ones hold more than one value.
    assert stored(images=torch.zeros(10, 1, 8, 8, dtype=torch.float16)) == 10
    assert stored(images=torch.zeros(10, 1, 8, 8, dtype=torch.int64)) == 20
    assert math.isclose(stored(bits=torch.zeros(64 * 7 + 1, dtype=torch.uint8)), 8)
