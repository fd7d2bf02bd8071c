"""How a distilled set is scored. Protocols are versioned, not pluggable: every number names the one it came from."""

import json

from ddbench.contract.component import did_you_mean
from ddbench.contract.sets import DistilledSet
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
    """The protocol of that name. Raises `UsageError` for an unknown one."""
    if name not in PROTOCOLS:
        raise UsageError(
            f"there is no protocol {name!r}.{did_you_mean(name, PROTOCOLS)}", f"There are: {', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[name]


def protocol_hash(name: str) -> str:
    """The beginning of a SHA-256 over a protocol's name and definition: what a row's number was measured by."""
    protocol = get_protocol(name)
    return sha256(json.dumps([protocol.name, protocol.definition], sort_keys=True).encode())[:12]


def label_regime(protocol: str, distilled: DistilledSet) -> str:
    """What kind of labels networks are trained on when the set is scored; hard, stored soft or teacher online."""
    if get_protocol(protocol).teacher:
        return "teacher online"
    return "stored soft" if distilled.soft else "hard"


__all__ = ["PROTOCOLS", "Evaluation", "Protocol", "Setting", "get_protocol", "label_regime", "protocol_hash"]
