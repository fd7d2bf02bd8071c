"""The index that commands read instead of loading plugins."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddbench.discovery.index import Index


def current_index(paths: Iterable[Path] = (), *, recheck: bool = False) -> "Index":
    """Return the index of the installed plugins and those at `paths`; load them if the stored one is stale.

    With `recheck`, plugins are loaded if one was broken: the cause can lie outside of its files. With `DDBENCH_TRACE`
    they are loaded always, since the trace shows how. Raises `UsageError` for a
    `ddbench.toml` that cannot be read.
    """
    from ddbench.discovery import index
    from ddbench.discovery.calls import traced

    stored = None if traced() else index.stored(paths)
    if stored is not None and not (recheck and stored.broken):
        return stored
    from ddbench.protocols import PROTOCOLS

    protocols = [
        index.Entry(kind="protocol", name=protocol.name, summary=protocol.summary, source="ddbench")
        for protocol in PROTOCOLS.values()
    ]
    return index.build(protocols, paths)
