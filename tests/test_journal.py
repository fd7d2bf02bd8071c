import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddbench.contract.journal import Journal, digest
from ddbench.contract.observer import Silent
from ddbench.contract.sets import DistilledSet
from ddbench.errors import DdbenchError
from ddbench.protocols import get_protocol
from ddbench.protocols import train as train_module


def test_numbers_come_back_bit_for_bit(tmp_path: Path):
    values = [0.1 + 0.2, 1 / 3, 1e-308, float("inf"), torch.rand(1).item()]
    journal = Journal(tmp_path / "scores.jsonl", "run")
    journal.within(scored="the set").put({"loss": values, "nan": math.nan}, network=3)
    again = Journal(tmp_path / "scores.jsonl", "run").within(scored="the set")
    assert again.get(network=3)["loss"] == values and math.isnan(again.get(network=3)["nan"])
    assert again.get(network=2) is None and again.within(protocol="knn/v1").get(network=3) is None
    assert again.seconds >= 0


def test_half_a_line_and_lines_of_other_runs_are_ignored(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    journal = Journal(path, "run")
    for network in range(3):
        journal.put(network / 7, network=network)
    path.write_bytes(b'{"run": 3}\nnonsense\n[]\n' + path.read_bytes()[:-9])
    again = Journal(path, "run")
    assert [again.get(network=network) for network in range(3)] == [0.0, 1 / 7, None]
    again.put(0.5, network=2)
    assert Journal(path, "run").get(network=2) == 0.5
    assert Journal(path, "another run").get(network=0) is None


def test_without_a_path_nothing_is_kept():
    journal = Journal()
    journal.put(1.0, network=0)
    assert journal.get(network=0) is None and journal.seconds == 0


def test_many_threads_write_whole_lines(tmp_path: Path):
    journal = Journal(tmp_path / "scores.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda network: journal.put([network] * 50, network=network), range(200)))
    again = Journal(tmp_path / "scores.jsonl")
    assert all(again.get(network=network) == [network] * 50 for network in range(200))


def test_seconds_add_up_over_interruptions(tmp_path: Path):
    line = '{"run": "%s", "key": {}, "value": 1, "seconds": 40.5}\n'
    journal = Journal(tmp_path / "first.jsonl")
    journal.put(1, network=0)
    run = (tmp_path / "first.jsonl").read_text().split('"')[3]
    (tmp_path / "scores.jsonl").write_text(line % run)
    assert 40.5 <= Journal(tmp_path / "scores.jsonl").seconds < 50


def test_the_digest_covers_every_tensor():
    inputs, labels, lrs = torch.rand(1, 2, 1, 2, 2), torch.zeros(1, 2, dtype=torch.int64), torch.ones(3, 1)
    sets = [
        DistilledSet(inputs, labels),
        DistilledSet(inputs, labels, lrs),
        DistilledSet(inputs, labels, lrs * 2),
        DistilledSet(inputs, labels + 1, lrs),
        DistilledSet(inputs + 1, labels, lrs),
    ]
    assert len({digest([distilled]) for distilled in sets}) == len(sets)
    assert digest(sets[:2]) != digest(sets[1::-1])
    assert digest([replace(sets[0], metadata={"a": "b"})]) == digest(sets[:1])


class Counting(Silent):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.lines: list[str] = []

    def progress(self, done: int, total: int, values: object, seconds_left: float | None) -> None:
        self.seen.append((done, total))

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("protocol", ["replay/v1", "train/v1"])
def test_scoring_continues_with_the_networks_that_are_missing(
    make_prepared, tmp_path: Path, monkeypatch, protocol: str
):
    monkeypatch.setattr(train_module, "ANNOUNCE_SECONDS", 0)
    prepared = make_prepared(protocol=protocol)
    chosen = prepared.train.random_subset(1, torch.Generator().manual_seed(0))
    sets = [DistilledSet(chosen.inputs[None], chosen.labels[None])]
    scoring = get_protocol(protocol)
    if protocol == "train/v1":
        scoring = replace(scoring, epochs=3)
    whole = scoring.evaluate(sets, prepared.setting, 4, Counting())

    path = tmp_path / "scores.jsonl"
    recorded = replace(prepared.setting, journal=Journal(path)).scoring("the set")
    assert scoring.evaluate(sets, recorded, 4, Counting()) == whole
    lines = path.read_bytes().splitlines(keepends=True)
    kept = len(lines) - 3
    path.write_bytes(b"".join(lines[:kept]))
    resumed = replace(prepared.setting, journal=Journal(path)).scoring("the set")
    counting = Counting()
    assert scoring.evaluate(sets, resumed, 4, counting) == whole
    assert path.read_bytes().count(b"\n") == len(lines)
    assert counting.seen[-4:] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert any("Training 3 networks" in line for line in counting.lines) == (protocol == "train/v1")
    # Nothing is trained for what is known, and nothing of it serves another set.
    known = replace(prepared.setting, journal=Journal(path)).scoring("the set")
    monkeypatch.setattr("ddbench.protocols.base.measure", None)
    monkeypatch.setattr("ddbench.protocols.replay.measure", None)
    assert scoring.evaluate(sets, known, 4, Counting()) == whole
    with pytest.raises(TypeError):
        scoring.evaluate(sets, known.scoring("another"), 4, Counting())


def test_a_journal_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(DdbenchError, match=r"cannot read .*, which holds the values scored so far: is a directory"):
        Journal(tmp_path)
