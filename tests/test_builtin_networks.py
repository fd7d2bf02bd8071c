import pytest
import torch

from ddbench.contract.examples import DatasetInfo
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError


def info(channels: int, size: int, classes: int = 10) -> DatasetInfo:
    names = tuple(map(str, range(classes)))
    return DatasetInfo("x", names, (channels, size, size), (0.0,) * channels, (1.0,) * channels, "image", "", False)


def build(catalog: Catalog, name: str, facts: DatasetInfo, **options: object) -> torch.nn.Module:
    component = catalog.get("network", name, facts)
    return component.call(component.validated(options), facts)


@pytest.mark.parametrize(
    ("name", "channels", "size", "parameters"),
    [
        # 61 706 weights for MNIST and 62 006 at 32x32 colour are those of the paper's LeNet.
        ("lenet", 1, 28, 61_706),
        ("lenet", 3, 32, 62_006),
        ("alexcifarnet", 3, 32, 1_756_426),
        # ConvNet-3 of Dataset Condensation has 320 010 weights.
        ("convnet", 3, 32, 320_010),
        ("linear", 1, 28, 7_850),
        ("mlp", 1, 8, 64 * 128 + 128 + 128 * 128 + 128 + 1290),
    ],
)
def test_sizes_of_the_literature(catalog, name, channels, size, parameters):
    facts = info(channels, size)
    module = build(catalog, name, facts)
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert module(torch.zeros(2, channels, size, size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "channels", "size"), [("lenet", 1, 16), ("alexcifarnet", 1, 28), ("convnet", 1, 8), ("mlp", 3, 32)]
)
def test_other_sizes(catalog, name, channels, size):
    assert build(catalog, name, info(channels, size, 7))(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_options(catalog):
    narrow = build(catalog, "convnet", info(3, 32), width=8, depth=2)
    assert narrow.conv2.weight.shape == (8, 8, 3, 3)
    assert [n for n, _ in build(catalog, "mlp", info(1, 8), depth=0).named_children()] == ["flatten", "classifier"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_open_names(catalog, name, channels):
    module = build(catalog, name, info(channels, 32, 5)).eval()
    assert module(torch.zeros(2, channels, 32, 32)).shape == (2, 5)
    assert catalog.get("network", name, info(channels, 32)).name == name


def test_names_that_are_near(catalog):
    with pytest.raises(UsageError, match="torchvision has no model 'resnet19'. Did you mean 'resnet"):
        catalog.get("network", "torchvision/resnet19", info(3, 32))
    with pytest.raises(UsageError, match="Did you mean 'lenet'"):
        catalog.get("network", "lennet", info(3, 32))
    with pytest.raises(UsageError, match="at least 12x12"):
        build(catalog, "lenet", info(1, 8))
    with pytest.raises(UsageError, match="square images"):
        catalog.get("network", "lenet").call({}, DatasetInfo("x", ("a",), (4,), (0.0,), (1.0,), "vector", "", False))
