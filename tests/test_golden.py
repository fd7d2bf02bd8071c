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
            # Hundreds of epochs spread the rounding of another processor: to a test image of 360, and to 3e-4 of a loss.
            long = protocol.startswith("train")
            image = pytest.approx(metrics["accuracy"], abs=0.006 if long else 0)
            assert values.pop("accuracy") == image, f"{case}, {part} training"
            expected = {metric: numbers for metric, numbers in metrics.items() if metric != "accuracy"}
            loss = 2e-3 if long else 1e-5
            assert values == {metric: pytest.approx(numbers, rel=loss) for metric, numbers in expected.items()}
