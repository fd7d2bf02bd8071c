"""Findings about this installation, each with its remedy."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddbench.contract.examples import ImageSplits, Splits
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, MissingPrerequisite
from ddbench.machine.environment import describe, free_memory, resolve_device
from ddbench.machine.folders import cache_dir, data_dir

LITTLE_MEMORY = 2e9
"""Bytes below which a run of the usual size may not fit."""


@dataclass(frozen=True)
class Finding:
    """A finding.

    Attributes:
        about: the subject, such as `device` or `dataset mnist`.
        status: `ok`; `missing`, if a run can fetch it or work without it; `fault`, if it needs a fix.
        text: the finding in one line.
        fix: what to do about it.
    """

    about: str
    status: Literal["ok", "missing", "fault"]
    text: str
    fix: str = ""


def examine(catalog: Catalog, runs: Path, leaderboards: Path) -> Iterator[Finding]:
    """Examine libraries, device, memory, folders, plugins and data, in this order."""
    yield from _libraries()
    yield from _machine()
    for about, folder in (("cache", cache_dir()), ("data", data_dir()), ("runs", runs), ("leaderboards", leaderboards)):
        yield _writable(about, folder)
    disabled = f"; DDBENCH_DISABLE disables {', '.join(catalog.disabled)}" if catalog.disabled else ""
    yield Finding("plugins", "ok", f"{len(catalog.plugins)} loaded{disabled}")
    for broken in catalog.broken:
        yield Finding("plugins", "fault", str(broken), f"{broken.fix} The others work.")
    for slow in catalog.slow():
        yield Finding("plugins", "ok", slow)
    for dataset in catalog.components("dataset"):
        try:
            loaded = dataset.call(dataset.validated({}), data_dir(), False)
        except MissingPrerequisite as error:
            yield Finding(f"dataset {dataset.name}", "missing", error.message, error.hint)
        except DdbenchError as error:
            yield Finding(f"dataset {dataset.name}", "fault", error.message, error.hint)
        else:
            partial = isinstance(loaded, ImageSplits | Splits) and loaded.partial
            text = "a copy that is not known to be the full original" if partial else "here, verified"
            yield Finding(f"dataset {dataset.name}", "ok", text)


def _libraries() -> Iterator[Finding]:
    import torch

    versions = describe(torch.device("cpu"))
    try:
        # A torchvision that was built for another torch imports, but lacks its own operators.
        import torchvision
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        text = f"torch {torch.__version__} and torchvision do not go together: {str(error).splitlines()[0]}"
        yield Finding("libraries", "fault", text, "Install the pair together: pip install -U torch torchvision")
        return
    python = versions.get("python", "")
    yield Finding(
        "libraries", "ok", f"python {python}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def _machine() -> Iterator[Finding]:
    import torch

    device = resolve_device("auto")
    yield Finding("device", "ok", f"{device}, {torch.get_num_threads()} threads")
    free = free_memory(device)
    low = free < LITTLE_MEMORY
    fix = "Close other programs, or choose a smaller network or fewer images per class." if low else ""
    yield Finding("memory", "fault" if low else "ok", f"{free / 1e9:.1f} GB free", fix)


def _writable(about: str, folder: Path) -> Finding:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        variable = {"cache": " with DDBENCH_CACHE", "data": " with DDBENCH_DATA"}.get(about, f" with --{about}")
        text = f"{folder} cannot be written to: {(error.strerror or str(error)).lower()}"
        return Finding(about, "fault", text, f"Name another folder{variable}.")
    return Finding(about, "ok", f"{folder}, writable")
