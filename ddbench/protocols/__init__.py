"""Ways of scoring a distilled set. They are versioned, not pluggable: every number names the one it came from.

May import: engine, contract, machine and errors.
Imported by: cli, testing, pipeline and records.
"""

import json

from ddbench.contract.component import did_you_mean
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import HARD, STORED_SOFT, TEACHER_ONLINE
from ddbench.errors import UsageError
from ddbench.machine.files import sha256
from ddbench.protocols.base import Evaluation, Protocol, Setting
from ddbench.protocols.knn import KNN_V1
from ddbench.protocols.replay import REPLAY_V1
from ddbench.protocols.train import TRAIN_DSA_V1, TRAIN_TEACHER_V1, TRAIN_V1

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (REPLAY_V1, TRAIN_V1, TRAIN_DSA_V1, TRAIN_TEACHER_V1, KNN_V1)
}


def get_protocol(name: str) -> Protocol:
    """Return the protocol of that name. Raises `UsageError` for an unknown one."""
    if name not in PROTOCOLS:
        raise UsageError(
            f"there is no protocol {name!r}.{did_you_mean(name, PROTOCOLS)}", f"There are: {', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[name]


def protocol_hash(protocol: Protocol) -> str:
    """Return the beginning of a SHA-256 over a protocol's name and definition, so over all it measures by."""
    return sha256(json.dumps([protocol.name, protocol.definition], sort_keys=True).encode())[:12]


def label_regime(protocol: Protocol, distilled: DistilledSet) -> str:
    """Return the kind of labels that networks are scored with: hard, stored soft or teacher online."""
    if protocol.teacher:
        return TEACHER_ONLINE
    return STORED_SOFT if distilled.soft else HARD


__all__ = ["PROTOCOLS", "Evaluation", "Protocol", "Setting", "get_protocol", "label_regime", "protocol_hash"]
