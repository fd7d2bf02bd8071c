"""Pretrained-adaptation targets: digits from one dataset to another, and any pretrained network to any dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import AdaptationTarget, Component, DatasetInfo, MissingPrerequisite, UsageError
from ddbench.builtin.networks import AsTrained
from ddbench.builtin.pretrained import Count, HeldOut, Rate, Steps
from ddbench.contract.task import Side, Sources
from ddbench.engine.fit import POOL_RATE, POOL_STEPS
from ddbench.machine.files import load_tensors

Shape = tuple[int, int, int]
GREY_28: Shape = (1, 28, 28)
Fixed = Annotated[bool, Field(description="one network, the same while distilling and when scored, not a pool")]


def _from_pool(source: str, source_shape: Shape | None, fixed: bool, **pool: Any) -> Any:
    """A sampler of networks trained on the dataset `source`, its images converted to `source_shape`.

    `fixed` gives one and the same network on both sides.
    """
    if fixed:
        pool |= {"count": 1, "held_out": 0}

    def sample(
        network: nn.Module, info: DatasetInfo, n: int, generator: torch.Generator, side: Side, sources: Sources
    ) -> dict[str, Tensor]:
        asked: tuple[Side, int] = ("train", 1) if fixed else (side, n)
        drawn = sources.pool(*asked, generator, dataset=source, sample_shape=source_shape, **pool)
        for name, parameter in network.named_parameters():
            if name not in drawn or drawn[name].shape[1:] != parameter.shape:
                raise UsageError(
                    f"the networks trained on {source} do not fit {info.label}: {name} differs in shape.",
                    f"The images of both are converted so that they fit; {list(info.sample_shape)} does not.",
                )
        return drawn

    return sample


@ddbench.target
def svhn_to_mnist(
    *, fixed: Fixed = False, count: Count = 200, held_out: HeldOut = 20, steps: Steps = POOL_STEPS, lr: Rate = POOL_RATE
) -> AdaptationTarget:
    """LeNets trained on SVHN, adapted to MNIST (Wang et al. 2018, Section 4.2): grey digits are shown as RGB.

    The network has the same weights for 32x32 images, unpadded, and for 28x28 ones, padded.
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
    """LeNets trained on MNIST, adapted to USPS (Wang et al. 2018, Section 4.2): 16x16 digits are enlarged to 28x28."""
    return AdaptationTarget(
        "usps", "lenet", _from_pool("mnist", None, fixed, count=count, held_out=held_out, steps=steps, lr=lr), GREY_28
    )


@ddbench.target
def usps_to_mnist(
    *, fixed: Fixed = False, count: Count = 200, held_out: HeldOut = 20, steps: Steps = POOL_STEPS, lr: Rate = POOL_RATE
) -> AdaptationTarget:
    """LeNets trained on USPS, its digits enlarged to 28x28, adapted to MNIST (Wang et al. 2018, Section 4.2)."""
    return AdaptationTarget(
        "mnist", "lenet", _from_pool("usps", GREY_28, fixed, count=count, held_out=held_out, steps=steps, lr=lr)
    )


Triple = tuple[float, float, float]
Weights = Annotated[str, Field(description="file with the weights; else they are fetched from the model library")]
Mean = Annotated[Triple, Field(description="of the pixels in [0, 1] that the weights were trained on; ImageNet's")]
Std = Annotated[Triple, Field(description="of the same pixels")]
KnownMean = Annotated[Triple | None, Field(description="of the pixels in [0, 1]; what the library says when left out")]
KnownStd = Annotated[Triple | None, Field(description="of the same pixels")]
KnownSize = Annotated[int | None, Field(ge=1, description="side that images are resized to; the library's")]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


def _pretrained(network: str, weights: str, mean: Triple, std: Triple, size: int) -> AdaptationTarget:
    def adapt(module: nn.Module, info: DatasetInfo) -> nn.Module:
        state = _read(Path(weights)) if weights else _fetch(network, module)
        _load(module, state, weights or network)
        return AsTrained(module, info, mean, std)

    return AdaptationTarget(
        None, network, adapt=adapt, sample_shape=(3, size, size), files=(weights,) if weights else ()
    )


def _as_published(network: str) -> tuple[Triple, Triple, int]:
    """Mean, std and side of the images that the library's pretrained weights were trained on."""
    source, _, architecture = network.partition("/")
    try:
        if source == "timm":
            import timm

            found = timm.get_pretrained_cfg(architecture)
            if found is not None:
                return _triple(found.mean), _triple(found.std), found.input_size[-1]
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


Size = Annotated[int, Field(ge=1, description="side that images are resized to, as RGB")]


@ddbench.target
def pretrained(
    *,
    network: Annotated[str, Field(description="network that the weights are of")] = "resnet20",
    weights: Weights = "",
    mean: Mean = IMAGENET_MEAN,
    std: Std = IMAGENET_STD,
    size: Size = 32,
) -> AdaptationTarget:
    """One network with weights from a file, adapted to the run's dataset; its last layer starts from zero weights.

    `--target pretrained --set target.network=resnet20 --set target.weights=FILE --dataset svhn`. The file is read
    without running code from it: safetensors, or what torch.save wrote of tensors alone.
    """
    return _pretrained(network, weights, mean, std, size)


@ddbench.hookimpl
def ddbench_find_target(name: str) -> Component | None:
    if not name.startswith(("timm/", "torchvision/")):
        return None

    @ddbench.target
    def of_library(
        *, weights: Weights = "", mean: KnownMean = None, std: KnownStd = None, size: KnownSize = None
    ) -> AdaptationTarget:
        """A pretrained network of a model library, adapted to the run's dataset; its last layer from zero."""
        known = _as_published(name)
        return _pretrained(name, weights, mean or known[0], std or known[1], size or known[2])

    return ddbench.component_of(of_library, "target").named(name)


@ddbench.hookimpl
def ddbench_targets() -> list[object]:
    return [svhn_to_mnist, mnist_to_usps, usps_to_mnist, pretrained]


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict of a file; runs no code from it. Raises `UsageError` where it cannot be read as one."""
    try:
        content = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{path} is damaged or no weights file: {_line(error)}.", "Fetch it again.") from error
    while isinstance(content, Mapping) and isinstance(content.get("state_dict", content.get("model")), Mapping):
        content = content.get("state_dict", content.get("model"))
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"{path} holds no state dict.", "Save the network with torch.save(model.state_dict(), ...).")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _fetch(network: str, module: nn.Module) -> dict[str, Tensor]:
    """Pretrained weights from the model library. Raises `MissingPrerequisite` without a network or a source."""
    source, _, architecture = network.partition("/")
    try:
        if source == "torchvision":
            import torchvision

            weights = torchvision.models.get_model_weights(architecture).DEFAULT
            found: dict[str, Tensor] = weights.get_state_dict(progress=False)
            return found
        if source == "timm":
            import timm

            return dict(timm.create_model(architecture, pretrained=True).state_dict())
    except Exception as error:
        raise MissingPrerequisite(
            f"the weights of {network} could not be fetched: {_line(error)}.", "Give a file: --weights FILE"
        ) from error
    raise MissingPrerequisite(f"{network} has no weights to fetch.", "Give a file: --weights FILE")


def _load(module: nn.Module, state: Mapping[str, Tensor], whence: str) -> None:
    """Load all but the last layer, whose weights become zero and biases one (Wang et al. 2018, Section 4.2).

    Raises `UsageError` for weights of another network.
    """
    own = module.state_dict()
    last = list(dict(module.named_parameters()))[-1].rpartition(".")[0]
    inner = {name for name in own if name.rpartition(".")[0] != last and not name.endswith("num_batches_tracked")}
    missing = sorted(inner - state.keys())
    unknown = sorted(name for name in state.keys() - own.keys() if name.rpartition(".")[0] != last)
    misfits = sorted(name for name in inner & state.keys() if state[name].shape != own[name].shape)
    for names, what in ((missing, "lacks"), (misfits, "has another shape of"), (unknown, "has the unknown")):
        if names:
            raise UsageError(
                f"{whence} is of another network: it {what} {names[0]}"
                + (f" and {len(names) - 1} more." if len(names) > 1 else "."),
                "Name the network that the weights were trained for.",
            )
    with torch.no_grad():
        for name in own:
            if name in inner:
                own[name].copy_(state[name])
            elif name.rpartition(".")[0] == last:
                # Zero biases would leave nothing to learn from where a ReLU follows, as in SqueezeNet.
                own[name].fill_(float(name.endswith("bias")))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
