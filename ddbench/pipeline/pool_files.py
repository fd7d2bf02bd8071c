"""A pool on disk: a folder with a file for each network, named by everything that the weights follow from."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pydantic
import safetensors
import safetensors.torch
from torch import Tensor

from ddbench.contract.inits import Side
from ddbench.contract.observer import Reporter
from ddbench.contract.spec import Choice
from ddbench.contract.state import State
from ddbench.engine.fit import BATCH
from ddbench.errors import DdbenchError
from ddbench.machine.files import atomic_write, locked, sha256
from ddbench.machine.folders import cache_dir

MOST_LOADED = 2**30
"""Bytes of a pool's networks that are kept in memory; the rest is read when it is drawn."""
BUFFERS = "buffers/"
"""Prefix of the names of buffers in the file of a network; parameters stand under their own names."""


class PoolSpec(pydantic.BaseModel):
    """Everything that decides about the weights of a pool; a change of any of it changes the key."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    dataset: Choice
    dataset_hash: str
    sample_shape: tuple[int, ...]
    validation: float
    network: Choice
    network_source: str
    init: Choice
    steps: int = pydantic.Field(ge=1)
    lr: float = pydantic.Field(gt=0, allow_inf_nan=False)
    batch: int = BATCH

    @property
    def key(self) -> str:
        """SHA-256 of all fields."""
        return sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode())

    @property
    def folder(self) -> Path:
        """The folder of the pool."""
        return cache_dir() / "pools" / folder_name(self.dataset, self.network, self.key)


class Pool:
    """A pool on disk: one safetensors file a network, `train-00000` and so on, and `pool.json`.

    Attributes:
        folder: the folder of the files.
        spec: the data, network and training that the weights follow from.
    """

    def __init__(self, folder: Path, spec: PoolSpec) -> None:
        self.folder, self.spec = folder, spec
        self._loaded: dict[Path, State] = {}
        self._loaded_bytes = 0

    def count(self, side: Side) -> int:
        """Return the number of networks on disk, up to the first gap."""
        n = 0
        while self.path(side, n).exists():
            n += 1
        return n

    def path(self, side: Side, index: int) -> Path:
        """Return the file of one network."""
        return self.folder / f"{side}-{index:05d}.safetensors"

    def accuracies(self, side: Side) -> list[float]:
        """Return the accuracy of each network on the validation slice of the data it was trained on."""
        accuracies = []
        for index in range(self.count(side)):
            with readable(self.path(side, index)), safetensors.safe_open(self.path(side, index), "pt") as file:
                accuracies.append(float(file.metadata()["accuracy"]))
        return accuracies

    def weights(self, side: Side, indices: Sequence[int]) -> State:
        """Return the stack of the networks of these numbers, `{name: [n, *shape]}`."""
        return State.stack([self._read(self.path(side, index)) for index in indices])

    def write(self, side: Side, index: int, state: State, accuracy: float) -> None:
        """Write the file of one network."""
        raw = safetensors.torch.save(flattened(state), {"accuracy": repr(accuracy)})
        atomic_write(self.path(side, index), raw)

    def _read(self, path: Path) -> State:
        if path in self._loaded:
            return self._loaded[path]
        with readable(path):
            tensors = safetensors.torch.load_file(path)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        # Files of networks without running statistics that were written before buffers were kept have none.
        state = unflattened(tensors)
        if self._loaded_bytes + size <= MOST_LOADED:
            self._loaded[path] = state
            self._loaded_bytes += size
        return state


def flattened(state: State) -> dict[str, Tensor]:
    """Return parameters and buffers as one mapping for a file, the names of buffers with a prefix."""
    tensors = {**state.params, **{f"{BUFFERS}{name}": tensor for name, tensor in state.buffers.items()}}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def unflattened(tensors: Mapping[str, Tensor]) -> State:
    """Return the state that `flattened` made one mapping of."""
    params, buffers = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        (buffers if name.startswith(BUFFERS) else params)[name.removeprefix(BUFFERS)] = tensor
    return State(params, buffers)


def folder_name(dataset: Choice, network: Choice, key: str) -> str:
    """Return the name of the folder of networks trained on a dataset: `mnist-convnet-` and the beginning of the key."""
    name = "".join(c if c.isalnum() else "_" for c in f"{dataset.name}-{network.name}"[-60:])
    return f"{name}-{key[:12]}"


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn a failure to read a file of a network into a `DdbenchError`."""
    try:
        yield
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise DdbenchError(
            f"{path} is damaged: {error}.", "Remove the file; the same network is trained again when it is needed."
        ) from error


@contextlib.contextmanager
def alone(path: Path, reporter: Reporter) -> Iterator[None]:
    """Lock the folder of `path` for this process; wait for another one that trains in it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path, timeout=1))
        except DdbenchError:
            reporter.say(f"Another process trains networks of {path.parent.name}; waiting for it.")
            stack.enter_context(locked(path, timeout=24 * 3600))
        yield


def used(path: Path) -> None:
    """Note the time of this use: `ddbench prune` removes what was not used for long."""
    with contextlib.suppress(OSError):
        os.utime(path)
