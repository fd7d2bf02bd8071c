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
    assert computed.keys() == RECORDED[protocol].keys()
    for case, parts in RECORDED[protocol].items():
        for part, metrics in parts.items():
            values = dict(computed[case][part])
            assert values.pop("accuracy") == metrics["accuracy"], f"{case}, {part} training"
            expected = {metric: numbers for metric, numbers in metrics.items() if metric != "accuracy"}
            assert values == {metric: pytest.approx(numbers, rel=1e-5) for metric, numbers in expected.items()}
