"""Trained networks in the cache, pools and experts, as text; read without torch."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddbench.machine.files import explained_os_errors, locked, tensor_file_header
from ddbench.machine.folders import cache_dir

KINDS = {"pools": "pool.json", "experts": "experts.json"}
"""Folders in the cache, and the file that describes the networks in each folder below them."""


@dataclass(frozen=True)
class StoredNetworks:
    """The networks of one folder in the cache, a pool or experts.

    Attributes:
        description: the file that describes them.
        kind: `pool` or `experts`.
        spec: the data, network and training that they follow from.
        count: number of networks.
        bytes: size of the files.
        summary: one line about them.
        unused_days: days since a run asked for them.
    """

    description: Path
    kind: str
    spec: dict[str, Any]
    count: int
    bytes: int
    summary: str
    unused_days: float

    @property
    def folder(self) -> Path:
        """The folder of the networks."""
        return self.description.parent

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def facts(self) -> dict[str, Any]:
        """The facts as JSON values."""
        network, dataset = self.spec["network"]["name"], self.spec["dataset"]["name"]
        size = round(self.bytes / 1e6, 3)
        return {"kind": self.kind, "dataset": dataset, "network": network, "count": self.count, "megabytes": size}


def pools() -> Iterator[StoredNetworks]:
    """Yield the pools in the cache, then the experts, by name; skip folders that are neither."""
    for kind, file in KINDS.items():
        for path in sorted((cache_dir() / kind).glob(f"*/{file}")):
            try:
                yield _read(path)
            except (OSError, ValueError, KeyError, TypeError):
                continue


def summary_of(folder: Path) -> str:
    """Return `lenet on mnist, 200 networks to train on and 20 held out; validation accuracy 98.6 % (97.9 to 98.9) ...`.

    Raises `OSError` for a folder without networks.
    """
    return _read(next(folder / file for file in KINDS.values() if (folder / file).exists())).summary


def remove(networks: StoredNetworks) -> None:
    """Remove a folder of the cache. Raises `DdbenchError` while another process trains in it."""
    with explained_os_errors(networks.folder), locked(networks.description, timeout=0):
        shutil.rmtree(networks.folder)


def _read(path: Path) -> StoredNetworks:
    spec, folder = json.loads(path.read_text()), path.parent
    kind = "pool" if path.name == KINDS["pools"] else "experts"
    files = sorted(folder.glob("*.safetensors"))
    try:
        text = _pool_summary(folder, spec) if kind == "pool" else _expert_summary(folder, spec)
    except (OSError, ValueError) as error:
        text = f"damaged: {error}. Remove the file; the same network is trained again when it is needed."
    size = sum(file.stat().st_size for file in files)
    text += f"; {size / 1e6:.1f} MB" if files else ""
    days = (time.time() - path.stat().st_mtime) / 86400
    return StoredNetworks(path, kind, spec, len(files), size, text, days)


def _pool_summary(folder: Path, spec: dict[str, Any]) -> str:
    train, held_out = list(_accuracies(folder, "train")), list(_accuracies(folder, "evaluation"))
    both = train + held_out
    if not both:
        return "no networks yet"
    return (
        f"{spec['network']['name']} on {spec['dataset']['name']}, {len(train)} networks to train on and "
        f"{len(held_out)} held out; {_range(both)} after {spec.get('steps')} steps at {spec.get('lr'):g}"
    )


def _expert_summary(folder: Path, spec: dict[str, Any]) -> str:
    accuracies = list(_accuracies(folder, "expert"))
    if not accuracies:
        return "no experts yet"
    recipe = spec["recipe"]
    extras = [f"{name} {recipe[name]}" for name in ("momentum", "decay", "augment") if recipe[name]]
    training = [f"{recipe['epochs']} epochs at {recipe['lr']:g}", f"batches of {recipe['batch']}", *extras]
    subject = f"{spec['network']['name']} on {spec['dataset']['name']}, {len(accuracies)} experts"
    return f"{subject}; {_range(accuracies)} after {', '.join(training)}"


def _range(accuracies: list[float]) -> str:
    shares = sum(accuracies) / len(accuracies), min(accuracies), max(accuracies)
    mean, low, high = (100 * share for share in shares)
    return f"validation accuracy {mean:.1f} % ({low:.1f} to {high:.1f})"


def _accuracies(folder: Path, side: str) -> Iterator[float]:
    """Yield the validation accuracy of each network of a side, from the headers of the safetensors files.

    Raises `ValueError` for a damaged file.
    """
    number = 0
    while (path := folder / f"{side}-{number:05d}.safetensors").exists():
        try:
            facts = tensor_file_header(path)["__metadata__"]
            yield float((json.loads(facts["facts"]) if "facts" in facts else facts)["accuracy"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the header of {path} is invalid") from error
        number += 1
