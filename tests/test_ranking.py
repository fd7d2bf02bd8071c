import json
import math

import pytest

from ddbench.contract.metric import Metric, missed_thresholds
from ddbench.protocols import PROTOCOLS
from ddbench.records.columns import COLUMNS, phrases
from ddbench.records.ranking import IGNORED, Line, compared, groups, ranks, seeds_of
from ddbench.records.result import RunResult
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
    # A row of version 2 names one network, which scored too; it has no other test data, no decoder and no limit on bytes.
    assert {
        column.name.removeprefix("eval_") if "network" in column.name else column.name
        for column in compared(make_record())
    } == COMPARED.keys() | {"eval_dataset", "byte_budget", "decoder"}
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


@pytest.mark.parametrize("protocol", ["train/v1", "train-dsa/v1", "train-teacher/v1", "knn/v1"])
def test_settings_that_a_protocol_ignores_do_not_part_rows(protocol: str):
    rows = [
        make_record(protocol=protocol, method=f"m{steps}{epochs}", steps=steps, epochs=epochs)
        for steps, epochs in ((1, 1), (10, 1), (10, 3))
    ]
    [group] = groups(rows)
    assert len(group) == 3
    networks = groups([make_record(protocol=protocol, network=name) for name in ("mlp", "linear")])
    assert len(networks) == (1 if protocol == "knn/v1" else 2)


def test_a_decoder_parts_rows_and_is_named():
    record = make_record()
    parametrised = record.model_copy(update={"artifact": record.artifact.model_copy(update={"decoder": "tiles/v1"})})
    assert [len(group) for group in groups([record, parametrised])] == [1, 1]
    assert phrases(record) == [] and phrases(record, usual=True) == ["hard labels"]
    assert phrases(parametrised) == ["decoder tiles/v1"]


def test_the_record_says_what_its_protocol_ignores():
    def under(ignores: tuple[str, ...] | None, steps: int) -> RunResult:
        record = make_record(protocol="of another version", steps=steps)
        protocol = record.protocol.model_copy(update={"ignores": ignores})
        return record.model_copy(update={"protocol": protocol})

    assert [len(group) for group in groups([under(None, 1), under(None, 2)])] == [1, 1]
    assert [len(group) for group in groups([under(("steps",), 1), under(("steps",), 2)])] == [2]
    # Steps that are ignored still make two lines, not one over seeds.
    assert [len(line.records) for line in groups([under(("steps",), 1), under(("steps",), 2)])[0]] == [1, 1]


def test_earlier_records_are_ranked_as_their_protocols_declare():
    ranking_fields = {column.field for column in COLUMNS if column.compares == "ranking"}
    for name, fields in IGNORED.items():
        assert PROTOCOLS[name].ignores & ranking_fields == set(fields)


def poisoned(success: float, others: float | None, run: str, seed: int = 0) -> RunResult:
    record = make_record(
        metric="attack_success", mean=success, low=success - 0.01, high=success + 0.01, method=run, run_id=run, seed=seed,
        metrics="{}" if others is None else json.dumps({"accuracy_others": others}),
    )  # fmt: skip
    metrics = (
        Metric("attack_success", "share"),
        Metric("accuracy_others", "share", beside=True, threshold=0.5),
    )
    return record.model_copy(update={"metrics": metrics})


def test_a_row_that_misses_a_threshold_ranks_behind():
    rows = [
        poisoned(1.0, 0.1, "wrecks"), poisoned(0.7, 0.8, "second"), poisoned(0.9, 0.5, "first"),
        poisoned(0.95, None, "unknown"),
    ]  # fmt: skip
    [group] = groups(rows)
    assert [line.first.run_id for line in group] == ["first", "second", "wrecks", "unknown"]
    assert ranks(group) == [1, 2, 3, 4]
    assert [[metric.name for metric in line.missed] for line in group] == [[], [], *[["accuracy_others"]] * 2]


def test_a_threshold_is_of_the_mean_over_seeds():
    rows = [poisoned(1.0, others, "one", seed) for seed, others in enumerate((0.4, 0.7))]
    rows = [row.model_copy(update={"run_id": f"r{row.settings.seed}"}) for row in rows]
    [[line]] = groups(rows)
    assert line.means["accuracy_others"] == pytest.approx(0.55) and line.missed == []


def test_thresholds_of_either_direction():
    metrics = [Metric("loss", higher_is_better=False, threshold=1.0), Metric("accuracy", threshold=0.5), Metric("x")]
    assert missed_thresholds(metrics, {"loss": 1.0, "accuracy": 0.5}) == []
    assert missed_thresholds(metrics, {"loss": 1.1, "accuracy": 0.4}) == metrics[:2]
    assert missed_thresholds(metrics, {"loss": math.nan, "accuracy": 0.6}) == metrics[:1]


def test_committed_poisoning_rows_have_a_threshold_though_they_do_not_hold_it():
    record = make_record(objective="poisoning", metric="attack_success", metrics='{"accuracy_others": 0.3}')
    assert {metric.name: metric.threshold for metric in record.metrics} == {
        "attack_success": None,
        "accuracy_others": 0.5,
    }
    assert Line.join([record]).missed
