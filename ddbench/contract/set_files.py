"""Files of distilled sets: tensors by name and metadata, in safetensors with a sorted header."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from ddbench.errors import UsageError
from ddbench.machine.files import atomic_write, sha256


def write_set(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write a file atomically and return its SHA-256. Equal content gives equal bytes."""
    # Tensors that share memory, such as views of one parameter, are refused by the library: each is copied.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    raw = _canonical(safetensors.torch.save(plain, metadata=dict(metadata)))
    atomic_write(path, raw)
    return sha256(raw)


def read_set(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file of `write_set`. Raises `UsageError` for any other file."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}.", "Give the path of a distilled.safetensors file.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(
            f"{path} is damaged or not a distilled set: {error}.",
            "Take an intact distilled.safetensors file from a run folder.",
        ) from error


def _canonical(raw: bytes) -> bytes:
    """Return the same safetensors file with its header sorted: the library leaves the order to chance.

    The format is eight bytes of header length, little-endian, the header as JSON padded with spaces, then the data.
    """
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]
