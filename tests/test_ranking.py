import json

import pytest

from ddbench.records.ranking import Line, groups, ranks, seeds_of
from ddbench.records.stats import crossed
from tests.rows import make_row

COMPARED = (
    "dataset", "dataset_hash", "network", "network_options", "eval_init", "eval_init_options",
    "protocol", "protocol_hash", "label_regime", "metric", "objective", "objective_options", "target",
)  # fmt: skip


def seed(number: int, values: list[float], **changes: object):
    mean = sum(values) / len(values)
    return make_row(seed=number, run_id=f"r{number}", mean=mean, values=json.dumps(values), n=len(values), **changes)


def test_only_what_compares_shares_a_ranking():
    rows = [make_row(), *(make_row(**{column: "other"}) for column in COMPARED)]
    rows += [make_row(images_per_class=2), make_row(method="other"), make_row(method="third")]
    sizes = [len(group) for group in groups(rows)]
    assert sizes == [3] + [1] * (len(COMPARED) + 1)


def test_groups_are_best_first_whichever_way_is_better():
    rows = [make_row(mean=m, method=str(m)) for m in (0.2, 0.9, 0.5)]
    [group] = groups(rows)
    assert [line.score.mean for line in group] == [0.9, 0.5, 0.2]
    [group] = groups([row.model_copy(update={"higher_is_better": False}) for row in rows])
    assert [line.score.mean for line in group] == [0.2, 0.5, 0.9]


def test_seeds_share_a_line():
    values = {3: [0.5, 0.6], 0: [0.7, 0.9], 7: [0.6, 0.65]}
    rows = [seed(number, its) for number, its in values.items()]
    other = make_row(method="other", mean=0.1)
    [[line, below]] = groups([*rows, other])
    assert [row.seed for row in line.rows] == [0, 3, 7]
    assert line.score == crossed([values[0], values[3], values[7]])
    assert (line.first.run_id, below.rows) == ("r0", (other,))
    assert seeds_of([*rows, other], rows[0]) == {row.seed: row for row in rows}
    # A seed that stands there twice (over other pools, say) is not averaged with itself.
    [twice] = groups([rows[0], rows[0].model_copy(update={"pretrained": "{}"})])
    assert [len(line.rows) for line in twice] == [1, 1]


@pytest.mark.parametrize("higher", [True, False])
def test_ranks_are_shared_where_intervals_overlap(higher: bool):
    def line(mean: float, half: float | None) -> Line:
        mean = mean if higher else -mean
        low, high = (None, None) if half is None else (mean - half, mean + half)
        return Line.of([make_row(mean=mean, low=low, high=high, higher_is_better=higher)])

    group = [line(0.9, 0.02), line(0.89, 0.02), line(0.85, 0.01), line(0.6, 0.01), line(0.5, None)]
    assert ranks(group) == [1, 1, 3, 4, 1]
