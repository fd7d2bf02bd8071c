"""Pools of trained networks in the cache, as text; read without torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddbench.machine.files import tensor_file_header
from ddbench.machine.folders import cache_dir


def pools() -> Iterator[tuple[str, str]]:
    """Yield name and summary of each pool in the cache, by name; skip folders that are not pools."""
    for path in sorted((cache_dir() / "pools").glob("*/pool.json")):
        try:
            spec = json.loads(path.read_text())
            network, dataset = spec["network"]["name"], spec["dataset"]["name"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        yield path.parent.name, _summary(path.parent, network, dataset, spec)


def pool_summary(folder: Path) -> str:
    """Return `lenet on mnist, 200 networks to train on and 20 held out; validation accuracy 98.6 % (97.9 to 98.9)`."""
    spec = json.loads((folder / "pool.json").read_text())
    return _summary(folder, spec["network"]["name"], spec["dataset"]["name"], spec)


def _summary(folder: Path, network: str, dataset: str, spec: dict[str, Any]) -> str:
    try:
        train, held_out = list(_accuracies(folder, "train")), list(_accuracies(folder, "evaluation"))
    except (OSError, ValueError) as error:
        return f"damaged: {error}. Remove the file; the same network is trained again when it is needed."
    both = train + held_out
    if not both:
        return "no networks yet"
    mean, low, high = (100 * value for value in (sum(both) / len(both), min(both), max(both)))
    return (
        f"{network} on {dataset}, {len(train)} networks to train on and {len(held_out)} held out; "
        f"validation accuracy {mean:.1f} % ({low:.1f} to {high:.1f}) "
        f"after {spec.get('steps')} steps at {spec.get('lr'):g}"
    )


def _accuracies(folder: Path, side: str) -> Iterator[float]:
    """Yield the validation accuracy of each network of a side, from the headers of the safetensors files.

    Raises `ValueError` for a damaged file.
    """
    number = 0
    while (path := folder / f"{side}-{number:05d}.safetensors").exists():
        try:
            yield float(tensor_file_header(path)["__metadata__"]["accuracy"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the header of {path} is invalid") from error
        number += 1
