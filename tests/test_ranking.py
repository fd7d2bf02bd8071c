import json

import pytest

from ddbench.records.ranking import Line, compared, groups, ranks, seeds_of
from ddbench.records.stats import crossed
from tests.rows import make_record

COMPARED = {
    **dict.fromkeys(("dataset", "dataset_hash", "network", "eval_init", "protocol", "protocol_hash"), "other"),
    **dict.fromkeys(("label_regime", "metric", "objective", "target"), "other"),
    **dict.fromkeys(("network_options", "eval_init_options", "objective_options"), '{"a": 1}'),
    **dict.fromkeys(("train_images", "images_per_class", "steps", "epochs"), 2),
}


def seed(number: int, values: list[float], **changes: object):
    mean = sum(values) / len(values)
    return make_record(seed=number, run_id=f"r{number}", mean=mean, values=json.dumps(values), n=len(values), **changes)


def test_only_what_compares_shares_a_ranking():
    # A row of version 2 names one network, which scored too.
    assert {
        column.name.removeprefix("eval_") if "network" in column.name else column.name for column in compared()
    } == COMPARED.keys()
    records = [make_record(), *(make_record(**{name: cell}) for name, cell in COMPARED.items())]
    records += [make_record(method="other"), make_record(method="third")]
    sizes = [len(group) for group in groups(records)]
    assert sizes == [3] + [1] * len(COMPARED)


def test_groups_are_best_first_whichever_way_is_better():
    rows = [make_record(mean=m, method=str(m)) for m in (0.2, 0.9, 0.5)]
    [group] = groups(rows)
    assert [line.score.mean for line in group] == [0.9, 0.5, 0.2]
    [group] = groups([make_record(mean=m, method=str(m), higher_is_better=False) for m in (0.2, 0.9, 0.5)])
    assert [line.score.mean for line in group] == [0.2, 0.5, 0.9]


def test_seeds_share_a_line():
    values = {3: [0.5, 0.6], 0: [0.7, 0.9], 7: [0.6, 0.65]}
    records = [seed(number, own) for number, own in values.items()]
    other = make_record(method="other", mean=0.1)
    [[line, below]] = groups([*records, other])
    assert [record.settings.seed for record in line.records] == [0, 3, 7]
    assert line.score == crossed([values[0], values[3], values[7]])
    assert (line.first.run_id, below.records) == ("r0", (other,))
    assert seeds_of([*records, other], records[0]) == {record.settings.seed: record for record in records}
    # A seed that stands there twice (over other pools, say) is not averaged with itself.
    [twice] = groups([records[0], records[0].model_copy(update={"pretrained": {"pool": {}}})])
    assert [len(line.records) for line in twice] == [1, 1]


@pytest.mark.parametrize("higher", [True, False])
def test_ranks_are_shared_where_intervals_overlap(higher: bool):
    def line(mean: float, half: float | None) -> Line:
        mean = mean if higher else -mean
        low, high = (None, None) if half is None else (mean - half, mean + half)
        return Line.join([make_record(mean=mean, low=low, high=high, higher_is_better=higher)])

    group = [line(0.9, 0.02), line(0.89, 0.02), line(0.85, 0.01), line(0.6, 0.01), line(0.5, None)]
    assert ranks(group) == [1, 1, 3, 4, 1]
