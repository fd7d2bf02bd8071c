"""Scores of every protocol on real digits, as they were recorded."""

import json
from collections.abc import Mapping

import pytest

from ddbench.protocols import PROTOCOLS
from tests.golden.make_protocols import VALUES, Values, score_all

RECORDED = [json.loads(path.read_text()) for path in sorted(VALUES.parent.glob("protocols*.json"))]


# Those that train from scratch for many epochs take seconds.
@pytest.mark.parametrize(
    "protocol",
    [pytest.param(name, marks=[pytest.mark.slow] if name.startswith("train") else []) for name in PROTOCOLS],
)
def test_a_protocol_gives_the_recorded_values(protocol: str):
    computed = score_all(protocol)
    # Hundreds of epochs spread the rounding of a processor, so there are records of two kinds of them.
    known = [record[protocol] for record in RECORDED if protocol in record]
    assert any(agree(computed, record) for record in known), (computed, known)


def agree(computed: Mapping[str, Values], recorded: Mapping[str, Values]) -> bool:
    """Return True where accuracies are equal, and other metrics are but for rounding."""
    if computed.keys() != recorded.keys():
        return False
    for case, parts in recorded.items():
        for part, metrics in parts.items():
            values = dict(computed[case][part])
            if values.keys() != metrics.keys() or values.pop("accuracy") != metrics["accuracy"]:
                return False
            expected = {metric: numbers for metric, numbers in metrics.items() if metric != "accuracy"}
            if values != {metric: pytest.approx(numbers, rel=1e-5) for metric, numbers in expected.items()}:
                return False
    return True
