"""Pretrained-adaptation targets: digits from one dataset to another, and any pretrained network to any dataset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import AdaptationTarget, Component, DatasetInfo, InitRequest, MissingPrerequisite, State, UsageError
from ddbench.builtin.pretrained import Count, HeldOut, Rate, Steps
from ddbench.networks import POOL_RATE, POOL_STEPS, SourceNormalised, check_weights, read_weights

Shape = tuple[int, int, int]
GREY_28: Shape = (1, 28, 28)
Fixed = Annotated[bool, Field(description="use one network for distilling and for scoring instead of a pool")]


def _from_pool(source: str, source_shape: Shape | None, fixed: bool, **pool: Any) -> Callable[[InitRequest], State]:
    """Return an init distribution of networks trained on the dataset `source`, with images of `source_shape`.

    With `fixed`, it has one network for both sides.
    """
    if fixed:
        pool |= {"count": 1, "held_out": 0}

    def sample(request: InitRequest) -> State:
        info = request.info
        if fixed:
            request = replace(request, side="train", n=1)
        drawn = request.pool(dataset=source, sample_shape=source_shape, **pool)
        for name, parameter in request.network.named_parameters():
            if name not in drawn.params or drawn.params[name].shape[1:] != parameter.shape:
                raise UsageError(
                    f"the networks trained on {source} do not fit {info.label}: {name} differs in shape.",
                    f"Leave out sample_shape: images of {list(info.sample_shape)} do not fit these networks.",
                )
        return drawn

    return sample


@ddbench.target
def svhn_to_mnist(
    *, fixed: Fixed = False, count: Count = 200, held_out: HeldOut = 20, steps: Steps = POOL_STEPS, lr: Rate = POOL_RATE
) -> AdaptationTarget:
    """LeNets trained on SVHN and adapted to MNIST (Wang et al. 2018, Section 4.2); grey digits become RGB.

    LeNet has the same weight shapes for 32x32 images without padding and for 28x28 images with padding.
    """
    return AdaptationTarget(
        "mnist",
        "lenet",
        _from_pool("svhn", None, fixed, count=count, held_out=held_out, steps=steps, lr=lr),
        (3, 28, 28),
    )


@ddbench.target
def mnist_to_usps(
    *, fixed: Fixed = False, count: Count = 200, held_out: HeldOut = 20, steps: Steps = POOL_STEPS, lr: Rate = POOL_RATE
) -> AdaptationTarget:
    """LeNets trained on MNIST and adapted to USPS, enlarged to 28x28 (Wang et al. 2018, Section 4.2)."""
    return AdaptationTarget(
        "usps", "lenet", _from_pool("mnist", None, fixed, count=count, held_out=held_out, steps=steps, lr=lr), GREY_28
    )


@ddbench.target
def usps_to_mnist(
    *, fixed: Fixed = False, count: Count = 200, held_out: HeldOut = 20, steps: Steps = POOL_STEPS, lr: Rate = POOL_RATE
) -> AdaptationTarget:
    """LeNets trained on USPS, enlarged to 28x28, and adapted to MNIST (Wang et al. 2018, Section 4.2)."""
    return AdaptationTarget(
        "mnist", "lenet", _from_pool("usps", GREY_28, fixed, count=count, held_out=held_out, steps=steps, lr=lr)
    )


Triple = tuple[float, float, float]
Weights = Annotated[str, Field(description="file with the weights; by default they are downloaded from the library")]
Mean = Annotated[
    Triple, Field(description="RGB mean, in [0, 1], that the network's training images were normalised by")
]
Std = Annotated[Triple, Field(description="RGB standard deviation that they were normalised by")]
LibraryMean = Annotated[
    Triple | None, Field(description="RGB mean, in [0, 1], of normalisation; default: the library's")
]
LibraryStd = Annotated[Triple | None, Field(description="RGB standard deviation; default: the library's")]
LibrarySize = Annotated[
    int | None, Field(ge=1, description="side in pixels to resize images to; default: the library's")
]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


def _pretrained(network: str, weights: str, mean: Triple, std: Triple, size: int) -> AdaptationTarget:
    """Build the target of one network, with weights from the file `weights` or from the network's library."""

    def adapt(module: nn.Module, info: DatasetInfo) -> nn.Module:
        state = read_weights(Path(weights)) if weights else _fetch(network, module)
        _load(module, state, weights or network)
        return SourceNormalised(module, info, mean, std)

    return AdaptationTarget(
        None, network, adapt=adapt, sample_shape=(3, size, size), files=(weights,) if weights else ()
    )


def _library_statistics(network: str) -> tuple[Triple, Triple, int]:
    """Return mean, std and side of the images that the library's weights were trained on; else those of ImageNet."""
    source, _, architecture = network.partition("/")
    try:
        if source == "timm":
            import timm

            config = timm.get_pretrained_cfg(architecture)
            if config is not None:
                return _triple(config.mean), _triple(config.std), config.input_size[-1]
        else:
            import torchvision

            images = torchvision.models.get_model_weights(architecture).DEFAULT.transforms()
            return _triple(images.mean), _triple(images.std), images.crop_size[0]
    except (RuntimeError, ValueError, AttributeError, IndexError, TypeError):
        pass
    return IMAGENET_MEAN, IMAGENET_STD, 224


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return red, green, blue


Size = Annotated[int, Field(ge=1, description="side in pixels to resize images to, as RGB")]


@ddbench.target
def pretrained(
    *,
    network: Annotated[str, Field(description="network that the weights belong to")] = "resnet20",
    weights: Weights = "",
    mean: Mean = IMAGENET_MEAN,
    std: Std = IMAGENET_STD,
    size: Size = 32,
) -> AdaptationTarget:
    """One network with weights from a file, adapted to the run's dataset; its last layer starts with zero weights.

    `--target pretrained --set target.network=resnet20 --set target.weights=FILE --dataset svhn`. The file is
    safetensors, or a `torch.save` of tensors only. It is read without running code.
    """
    return _pretrained(network, weights, mean, std, size)


@ddbench.hookimpl
def ddbench_find_target(name: str) -> Component | None:
    if not name.startswith(("timm/", "torchvision/")):
        return None

    @ddbench.target
    def library_network(
        *, weights: Weights = "", mean: LibraryMean = None, std: LibraryStd = None, size: LibrarySize = None
    ) -> AdaptationTarget:
        """Adapt a pretrained network of torchvision or timm to the run's dataset; its last layer starts from zero."""
        library_mean, library_std, library_size = _library_statistics(name)
        return _pretrained(name, weights, mean or library_mean, std or library_std, size or library_size)

    return ddbench.component_of(library_network, "target").named(name)


@ddbench.hookimpl
def ddbench_targets() -> list[object]:
    return [svhn_to_mnist, mnist_to_usps, usps_to_mnist, pretrained]


def _fetch(network: str, module: nn.Module) -> dict[str, Tensor]:
    """Download the weights from the network's library. Raises `MissingPrerequisite` where this is not possible."""
    source, _, architecture = network.partition("/")
    try:
        if source == "torchvision":
            import torchvision

            weights = torchvision.models.get_model_weights(architecture).DEFAULT
            state: dict[str, Tensor] = weights.get_state_dict(progress=False)
            return state
        if source == "timm":
            import timm

            return dict(timm.create_model(architecture, pretrained=True).state_dict())
    except Exception as error:
        raise MissingPrerequisite(
            f"the weights of {network} could not be downloaded: {_first_line(error)}.", "Give a file: --weights FILE"
        ) from error
    raise MissingPrerequisite(f"{network} has no weights to download.", "Give a file: --weights FILE")


def _load(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load all layers but the last, whose weights become zero and biases one (Wang et al. 2018, Section 4.2).

    `origin` is the name of `state` in messages. Raises `UsageError` for weights of another network.
    """
    module_state = module.state_dict()
    last = list(dict(module.named_parameters()))[-1].rpartition(".")[0]
    inner = check_weights(module, state, origin, but=last)
    with torch.no_grad():
        for name, tensor in module_state.items():
            if name in inner:
                tensor.copy_(state[name])
            elif name.rpartition(".")[0] == last:
                # With zero biases, a ReLU behind the layer (as in SqueezeNet) would pass no gradient.
                tensor.fill_(float(name.endswith("bias")))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
