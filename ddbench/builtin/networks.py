"""Networks of the dataset-distillation literature, and any architecture of torchvision or timm by name."""

from collections import OrderedDict
from typing import Annotated, Literal

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

import ddbench
from ddbench import BornLater, Component, DatasetInfo, UsageError

Width = Annotated[int, pydantic.Field(ge=1, description="channels of each convolution, or units of each hidden layer")]


def _image_size(info: DatasetInfo, network: str, smallest: int) -> tuple[int, int]:
    """Return (channels, side in pixels). Raises `UsageError` unless images are square and `smallest` or more a side."""
    if len(info.sample_shape) != 3 or info.sample_shape[1] != info.sample_shape[2]:
        raise UsageError(
            f"{network} takes square images, not examples of shape {info.sample_shape}.", "Try --network mlp."
        )
    channels, size, _ = info.sample_shape
    if size < smallest:
        raise UsageError(
            f"{network} needs images of at least {smallest}x{smallest} pixels; {info.name} has {size}x{size}.",
            "Try --network convnet or --network mlp.",
        )
    return channels, size


@ddbench.network
def lenet(info: DatasetInfo) -> nn.Module:
    """LeNet: 5x5 convolutions of 6 and 16 channels, then 120-84-classes; the network for digits in Wang et al. 2018.

    LeCun et al. 1998 with ReLU and max-pooling. The first padding is 2 for images below 32 pixels, else 0.
    """
    # Pooling comes before ReLU, which gives the same output, and ReLU then handles a quarter of the values.
    channels, size = _image_size(info, "lenet", 12)
    padding = 2 if size < 32 else 0
    side = ((size + 2 * padding - 4) // 2 - 4) // 2
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5, padding=padding),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(6, 16, 5),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * side * side, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, len(info.classes)),
        )
    )


@ddbench.network
def alexcifarnet(info: DatasetInfo) -> nn.Module:
    """AlexCifarNet: two 5x5 convolutions of 64 channels and response normalisation, for CIFAR-10 in Wang et al. 2018.

    Local response normalisation over 4 channels with alpha .001/9, beta .75, k 1; 3x3 max-pooling of stride 2;
    fully connected 384-192-classes.
    """
    channels, size = _image_size(info, "alexcifarnet", 12)

    def normalisation() -> nn.Module:
        return nn.LocalResponseNorm(4, alpha=0.001 / 9.0, beta=0.75, k=1)

    side = (size + 1) // 2
    side = (side + 1) // 2
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 64, 5, padding=2),
            pool1=nn.MaxPool2d(3, 2, padding=1),  # before ReLU, as in lenet
            relu1=nn.ReLU(),
            norm1=normalisation(),
            conv2=nn.Conv2d(64, 64, 5, padding=2),
            relu2=nn.ReLU(),
            norm2=normalisation(),
            pool2=nn.MaxPool2d(3, 2, padding=1),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * side * side, 384),
            relu3=nn.ReLU(),
            fc2=nn.Linear(384, 192),
            relu4=nn.ReLU(),
            fc3=nn.Linear(192, len(info.classes)),
        )
    )


@ddbench.network
def convnet(
    info: DatasetInfo,
    *,
    width: Width = 128,
    depth: Annotated[int, pydantic.Field(ge=1, description="number of blocks")] = 3,
    norm: Annotated[
        Literal["instance", "batch"], pydantic.Field(description="normalisation behind each convolution"), BornLater()
    ] = "instance",
) -> nn.Module:
    """ConvNet: blocks of 3x3 convolution, normalisation, ReLU, average pooling; the field's usual network.

    Gidaris and Komodakis 2018, as used by Zhao et al. 2021 (Dataset Condensation): width 128, depth 3, instance norm.
    """
    channels, size = _image_size(info, f"convnet of depth {depth}", 2**depth)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block in range(1, depth + 1):
        layers[f"conv{block}"] = nn.Conv2d(channels, width, 3, padding=1)
        layers[f"norm{block}"] = nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(width, width)
        layers[f"relu{block}"] = nn.ReLU()
        layers[f"pool{block}"] = nn.AvgPool2d(2)
        channels, size = width, size // 2
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(width * size * size, len(info.classes))
    return nn.Sequential(layers)


@ddbench.network
def mlp(
    info: DatasetInfo,
    *,
    width: Width = 128,
    depth: Annotated[int, pydantic.Field(ge=0, description="number of hidden layers")] = 2,
) -> nn.Module:
    """Multi-layer perceptron: `depth` hidden layers of `width` ReLU units on the flattened example."""
    features = torch.Size(info.sample_shape).numel()
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for layer in range(1, depth + 1):
        layers[f"fc{layer}"] = nn.Linear(features, width)
        layers[f"relu{layer}"] = nn.ReLU()
        features = width
    layers["classifier"] = nn.Linear(features, len(info.classes))
    return nn.Sequential(layers)


@ddbench.network
def linear(info: DatasetInfo) -> nn.Module:
    """Linear classifier on the flattened example (logistic regression when trained with cross-entropy)."""
    features = torch.Size(info.sample_shape).numel()
    layers = OrderedDict(flatten=nn.Flatten(), classifier=nn.Linear(features, len(info.classes)))
    return nn.Sequential(layers)


class _CifarBlock(nn.Module):
    """A residual block: two 3x3 convolutions with batch normalisation and a shortcut without parameters.

    He et al. 2016, option A.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.new_channels = stride, out - channels

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Return the sum of both branches; the shortcut is strided, and new channels are zero."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        before = self.new_channels // 2
        return F.relu(residual + F.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before)))


class _CifarResNet(nn.Module):
    """A residual network: three stages of 16, 32 and 64 channels, each of `blocks` blocks."""

    @staticmethod
    def _stage(channels: int, out: int, stride: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(_CifarBlock(channels, out, stride), *[_CifarBlock(out, out, 1) for _ in range(blocks - 1)])

    def __init__(self, channels: int, classes: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


@ddbench.network
def resnet20(info: DatasetInfo) -> nn.Module:
    """ResNet-20 for 32x32 images: three stages of three blocks, 16 to 64 channels (He et al. 2016, Section 4.2)."""
    channels, _ = _image_size(info, "resnet20", 8)
    return _CifarResNet(channels, len(info.classes), blocks=3)


class _Block(nn.Module):
    """A residual block: two 3x3 convolutions with batch normalisation, a 1x1 convolution where the shape changes.

    He et al. 2016, option B.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Return the sum of both branches."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


@ddbench.network
def resnet18(info: DatasetInfo, *, width: Width = 64) -> nn.Module:
    """ResNet-18 for images of 32x32 and 64x64 pixels, as the field's teachers have it (He et al. 2016).

    The first convolution is 3x3 without stride, and no pooling follows it; four stages of two blocks have `width`, 2,
    4 and 8 times as many channels. Batch normalisation keeps running statistics.
    """
    channels, _ = _image_size(info, "resnet18", 8)
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["conv1"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    stages["bn1"], stages["relu1"] = nn.BatchNorm2d(width), nn.ReLU()
    before = width
    for stage in range(1, 5):
        out = width * 2 ** (stage - 1)
        stages[f"layer{stage}"] = nn.Sequential(_Block(before, out, 1 if stage == 1 else 2), _Block(out, out, 1))
        before = out
    stages["pool"], stages["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    stages["classifier"] = nn.Linear(before, len(info.classes))
    return nn.Sequential(stages)


class _GreyAsColour(nn.Module):
    """A colour network for grey images: each is repeated in all three channels."""

    def __init__(self, colour: nn.Module) -> None:
        super().__init__()
        self.colour = colour

    def forward(self, images: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        output: Tensor = self.colour(images.expand(-1, 3, -1, -1))
        return output


@ddbench.hookimpl
def ddbench_find_network(name: str, info: DatasetInfo) -> Component | None:
    source, _, architecture = name.partition("/")
    if source not in ("torchvision", "timm") or not architecture:
        return None
    if source == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
    else:
        import timm

        known = timm.list_models()
    if architecture not in known:
        raise UsageError(
            f"{source} has no model {architecture!r}.{ddbench.did_you_mean(architecture, known)}",
            f"List all models with {'torchvision.models' if source == 'torchvision' else 'timm'}.list_models().",
        )

    @ddbench.network
    def build(info: DatasetInfo) -> nn.Module:
        """Build an architecture of torchvision or timm, without pretrained weights."""
        channels = info.sample_shape[0]
        if source == "timm":
            return timm.create_model(architecture, pretrained=False, num_classes=len(info.classes), in_chans=channels)
        model: nn.Module = torchvision.models.get_model(architecture, weights=None, num_classes=len(info.classes))
        return _GreyAsColour(model) if channels == 1 else model

    return ddbench.component_of(build, "network").named(name)


@ddbench.hookimpl
def ddbench_networks() -> list[object]:
    return [lenet, alexcifarnet, convnet, resnet18, resnet20, mlp, linear]
