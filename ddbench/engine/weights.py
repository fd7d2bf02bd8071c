"""Weights files of networks that were trained elsewhere: read without running code, checked against a network."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddbench.contract.examples import DatasetInfo
from ddbench.errors import UsageError
from ddbench.machine.files import load_tensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a file, safetensors or a `torch.save` of tensors, read without running code.

    Raises `UsageError` for any other file.
    """
    try:
        content = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
    except (safetensors.SafetensorError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(f"{path} is damaged or not a weights file: {reason}.", "Fetch it again.") from error
    while isinstance(content, Mapping) and isinstance(content.get("state_dict", content.get("model")), Mapping):
        content = content.get("state_dict", content.get("model"))
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(
            f"{path} does not hold a state dict.", "Save the network with torch.save(model.state_dict(), ...)."
        )
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def check_weights(module: nn.Module, state: Mapping[str, Tensor], origin: str, but: str | None = None) -> set[str]:
    """Return the names of the tensors that `state` has for `module`, those of the layer `but` left out.

    `origin` is the name of `state` in messages. Raises `UsageError` for weights of another network.
    """
    own = module.state_dict()
    inner = {name for name in own if name.rpartition(".")[0] != but and not name.endswith("num_batches_tracked")}
    missing = sorted(inner - state.keys())
    unknown = sorted(name for name in state.keys() - own.keys() if name.rpartition(".")[0] != but)
    misfits = sorted(name for name in inner & state.keys() if state[name].shape != own[name].shape)
    for names, verb in ((missing, "lacks"), (misfits, "has another shape of"), (unknown, "has the unknown")):
        if names:
            raise UsageError(
                f"{origin} belongs to another network: it {verb} {names[0]}"
                + (f" and {len(names) - 1} more." if len(names) > 1 else "."),
                "Name the network that the weights were trained for.",
            )
    return inner


class SourceNormalised(nn.Module):
    """A pretrained network behind a change of normalisation.

    Images of a run are normalised by the statistics of their dataset, `info.mean` and `info.std`. The network expects
    `mean` and `std` of the dataset that it was trained on. One affine map per channel converts the first to the second.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, info: DatasetInfo, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        run_mean, run_std = torch.tensor(info.mean), torch.tensor(info.std)
        source_mean, source_std = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (run_std / source_std).view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", ((run_mean - source_mean) / source_std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits


class ChosenClasses(nn.Module):
    """A network of more classes, of whose logits some are taken."""

    def __init__(self, network: nn.Module, chosen: list[int]) -> None:
        super().__init__()
        self.network, self.chosen = network, chosen

    def forward(self, images: Float[Tensor, " n *sample"]) -> Float[Tensor, "n classes"]:
        """Return the logits of the chosen classes, in their order."""
        logits: Tensor = self.network(images)[:, self.chosen]
        return logits
