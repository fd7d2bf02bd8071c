"""Scores of every protocol on real digits, as they were recorded."""

import json

import pytest

from ddbench.protocols import PROTOCOLS
from tests.golden.make_protocols import VALUES, score_all

RECORDED = json.loads(VALUES.read_text())


# Those that train from scratch for many epochs take seconds.
@pytest.mark.parametrize(
    "protocol",
    [pytest.param(name, marks=[pytest.mark.slow] if name.startswith("train") else []) for name in PROTOCOLS],
)
def test_a_protocol_gives_the_recorded_values(protocol: str):
    computed = score_all(protocol)
    recorded = RECORDED[protocol]
    assert computed.keys() == recorded.keys()
    for case, parts in recorded.items():
        for part, metrics in parts.items():
            assert computed[case][part] == {name: pytest.approx(values, rel=1e-6) for name, values in metrics.items()}
