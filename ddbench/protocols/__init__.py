"""Ways of scoring a distilled set. They are versioned, not pluggable: every number names the one it came from.

May import: engine, contract, machine and errors.
Imported by: cli, testing, pipeline and records.
"""

import json
from typing import Any

from ddbench.contract.component import did_you_mean
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import HARD, STORED_SOFT, TEACHER_ONLINE, RunSpec, Settings
from ddbench.errors import UsageError
from ddbench.machine.files import sha256
from ddbench.protocols.base import Evaluation, Protocol, Setting
from ddbench.protocols.knn import KNN_V1
from ddbench.protocols.krr import KRR_V1
from ddbench.protocols.own import PREFIX, content_of, read_protocol, stored_protocol
from ddbench.protocols.replay import REPLAY_MOMENTUM_V1, REPLAY_V1
from ddbench.protocols.train import (
    TRAIN_DSA_RATE_V1,
    TRAIN_DSA_V1,
    TRAIN_IMAGENET_V1,
    TRAIN_TEACHER_V1,
    TRAIN_V1,
    TRAIN_VIEWS_V1,
    Train,
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        REPLAY_V1, REPLAY_MOMENTUM_V1, TRAIN_V1, TRAIN_DSA_V1, TRAIN_DSA_RATE_V1, TRAIN_TEACHER_V1, TRAIN_IMAGENET_V1,
        TRAIN_VIEWS_V1, KNN_V1, KRR_V1,
    )
}  # fmt: skip


def get_protocol(name: str) -> Protocol:
    """Return the protocol of that name, or of that file. Raises `UsageError` for an unknown or invalid one."""
    if name.startswith(PREFIX):
        return read_protocol(name)
    if name not in PROTOCOLS:
        raise UsageError(
            f"there is no protocol {name!r}.{did_you_mean(name, PROTOCOLS)}",
            f"There are: {', '.join(PROTOCOLS)}; or one of your own: file:mine.toml.",
        )
    return PROTOCOLS[name]


def protocol_of(spec: RunSpec | Settings) -> Protocol:
    """Return the protocol that a spec names. The content of a file is the one in the spec, if that holds it.

    Raises `UsageError` for an unknown or invalid one.
    """
    content = spec.protocol_content
    if content is not None and content.get("name") == spec.protocol:
        return stored_protocol(content)
    return get_protocol(spec.protocol)


def content_in_settings(protocol: Protocol) -> dict[str, Any] | None:
    """Return what settings hold of a protocol beside its name: the content of a file, None for one of ddbench."""
    return content_of(protocol) if isinstance(protocol, Train) and protocol.name.startswith(PREFIX) else None


def protocol_hash(protocol: Protocol) -> str:
    """Return the beginning of a SHA-256 over a protocol's name and definition, so over all it measures by."""
    return sha256(json.dumps([protocol.name, protocol.definition], sort_keys=True).encode())[:12]


def label_regime(protocol: Protocol, distilled: DistilledSet) -> str:
    """Return the kind of labels that networks are scored with: hard, stored soft or teacher online."""
    if protocol.teacher:
        return TEACHER_ONLINE
    return STORED_SOFT if distilled.soft or protocol.stored else HARD


__all__ = [
    "PREFIX",
    "PROTOCOLS",
    "Evaluation",
    "Protocol",
    "Setting",
    "content_in_settings",
    "get_protocol",
    "label_regime",
    "protocol_hash",
    "protocol_of",
]
