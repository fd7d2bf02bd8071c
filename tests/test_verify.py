import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ddbench.contract.observer import Silent
from ddbench.contract.sets import DistilledSet
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, UnknownFields, UsageError
from ddbench.pipeline.runner import run
from ddbench.pipeline.verify import verify
from ddbench.records.audit import audit
from ddbench.records.leaderboard import find
from ddbench.records.result import RunResult
from ddbench.records.stats import summarise
from ddbench.records.store import artifact_path, read, rebuild


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    fields = {"method": "random_subset", "network": "linear", "eval_networks": 4}
    run(fields, runs=folder / "runs", leaderboards=folder / "boards")
    return folder / "boards"


@pytest.fixture
def boards(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "boards")


def changed(boards: Path, changes: dict[str, Any]) -> None:
    """Change fields of the one record, named by their dotted path, and write the CSV to match."""
    [path] = boards.glob("records/*/*.json")
    fields = json.loads(path.read_text())
    for name, value in changes.items():
        *parents, last = name.split(".")
        branch = fields
        for parent in parents:
            branch = branch[int(parent) if isinstance(branch, list) else parent]
        branch[int(last) if isinstance(branch, list) else last] = value
    path.write_text(json.dumps(fields))
    rebuild(boards)


def test_a_record_that_was_written_holds(boards, catalog: Catalog):
    assert audit(boards).problems == []
    [record] = read(boards)
    assert find(boards, record.run_id) == find(boards, record.fingerprint[:8]) == record
    verdict = verify(record, boards, catalog, Silent())
    assert (verdict.holds, verdict.how) == (True, "reproduced exactly")


SCORE, COMPANION = "scores.accuracy", {"n": 5, "mean": 0.1, "std": 0.1}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({f"{SCORE}.mean": 0.99}, "mean 0.99 is not that of its values"),
        ({f"{SCORE}.std": 0.001}, "std 0.001 is not that of its values"),
        ({f"{SCORE}.low": None}, "low None is not that of its values"),
        ({f"{SCORE}.values": [0.9, 0.9, 0.9, 0.9]}, "is not that of its values, 0.9"),
        ({f"{SCORE}.values": [0.9, 0.9]}, "2 values where n is 4"),
        ({f"{SCORE}.values": [float("nan"), 0.5, 0.5, 0.5]}, "not all of its figures are finite"),
        ({"companions.full_data": {**COMPANION, "mean": float("nan")}}, "not all of its figures are finite"),
        ({"peak_memory_mb": float("nan")}, "not all of its figures are finite"),
        ({"settings.images_per_class": 50}, "says images_per_class 50, its distilled set 1"),
        ({"settings.method.name": "herding"}, "says method 'herding', its distilled set 'random_subset'"),
        ({"settings.network.options": {"width": 3}}, "says network_options"),
        ({"settings.eval_networks": 3}, "its fingerprint is not that of its settings"),
        ({"fingerprint": "0" * 64}, "its fingerprint is not that of its settings"),
        ({"artifact.bytes": 3}, "says bytes 3"),
        ({"artifact.label_regime": "stored soft"}, "says label_regime"),
        ({"artifact.label_regime": "kind"}, "label regime 'kind' is not one of"),
        ({"artifact.sha256": "../../../etc/passwd"}, "artifact is not named by a SHA-256"),
        ({"dataset.content_hash": "0" * 64}, "says dataset_hash"),
        ({"dataset.name": "mnist"}, "says dataset 'mnist'"),
        ({"dataset.name": "digits@12345678"}, "is not that of its hash"),
        ({"dataset.sample_shape": [3, 8, 8]}, "says sample_shape '3x8x8'"),
        ({"run_id": "herding-digits-ipc1-000000"}, "says run_id"),
        ({"protocol.hash": "0" * 12}, "protocol hash is not that of replay/v1"),
        ({"protocol.name": "replay/v0"}, "there is no protocol 'replay/v0'"),
        ({"protocol.name": "knn/v1"}, "its settings say replay/v1"),
        ({"created": "never"}, "which is not a time"),
        ({"seconds.distill": -5}, "a duration is negative"),
        ({"dataset.test": 0}, "a count is below one"),
    ],
)
def test_tampered_records(boards, catalog, changes, problem):
    changed(boards, changes)
    assert any(problem in line for line in audit(boards).problems), audit(boards).problems
    with pytest.raises(DdbenchError, match="is invalid"):
        verify(read(boards)[0], boards, catalog, Silent())


def test_tampered_artefacts(boards, catalog):
    [record] = read(boards)
    path = artifact_path(boards, record.artifact.sha256)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\0\0\1")
    assert "another file than the one that was scored" in audit(boards).problems[0]
    distilled = DistilledSet.load(path)
    digest = distilled.described(fingerprint="f" * 64).save(boards / "artifacts" / "forged")
    (boards / "artifacts" / "forged").rename(boards / "artifacts" / f"{digest}.safetensors")
    changed(boards, {"artifact.sha256": digest})
    assert "its settings are not those of its distilled set" in audit(boards).problems[0]


@pytest.mark.parametrize("values", [[0.95, 0.951, 0.952, 0.953], [0.99, 0.1, 0.9, 0.2]], ids=["narrow", "wide"])
def test_a_figure_that_does_not_hold(boards, catalog, values):
    """A record consistent in itself, whose figures its distilled set does not reach, however wide the interval."""
    changed(boards, {SCORE: summarise(values).model_dump()})
    assert audit(boards).problems == []
    verdict = verify(read(boards)[0], boards, catalog, Silent())
    assert not verdict.holds
    assert "does not hold" in verdict.how


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metrics.0.unit": ""}, "says unit '', scoring again 'share'"),
        ({"metrics.0.higher_is_better": False}, "says higher_is_better False"),
        ({"dataset.train": 99}, "says dataset.train 99"),
        ({"protocol.selected": "test images"}, "says selected 'test images'"),
        ({"before.accuracy.mean": 0.9}, "says 0.9000 before training"),
    ],
)
def test_what_only_scoring_again_shows(boards, catalog, changes, problem):
    changed(boards, changes)
    assert audit(boards).problems == []
    with pytest.raises(DdbenchError, match=problem):
        verify(read(boards)[0], boards, catalog, Silent())


def test_records_twice_and_names_of_none(boards):
    [path] = boards.glob("records/*/*.json")
    shutil.copy(path, path.with_stem("copy"))
    assert any("there are two records of this spec" in line for line in audit(boards).problems)
    with pytest.raises(UsageError, match="2 records"):
        find(boards, read(boards)[0].run_id)
    with pytest.raises(UsageError, match="no records"):
        find(boards, "nothing")


def test_the_commands(ddbench, boards, tmp_path):
    folder = ["--leaderboards", boards]
    [record] = read(boards)
    assert "1 record, none invalid." in ddbench("leaderboard", "--check", *folder).out
    done = ddbench("verify", record.run_id, *folder)
    assert (done.code, "reproduced exactly" in done.out) == (0, True)
    assert ddbench("verify", "--all", *folder, "--json").json()["rows"][record.run_id]["holds"]
    assert ddbench("verify", *folder).code == 2
    changed(boards, {f"{SCORE}.mean": 0.99})
    bad = ddbench("leaderboard", "--check", *folder)
    assert bad.code == 1
    assert "mean 0.99" in bad.out
    assert "is invalid" in ddbench("verify", record.run_id, *folder).message()


COMMITTED = Path(__file__).parents[1] / "leaderboards"


def test_the_committed_records_are_valid():
    assert audit(COMMITTED).problems == []


@pytest.mark.slow
def test_committed_records_hold(catalog, real_data):
    """On the first network: the smallest set of each dataset, objective and protocol that needs no pool and is quick.

    Where a protocol selects, the selection is over all networks, so only records of one network can be taken.
    """
    records = [r for r in read(COMMITTED) if not r.pretrained and artifact_path(COMMITTED, r.artifact.sha256).exists()]
    records = [r for r in records if r.score.n == 1 or r.protocol.selected == "nothing"]
    records = [r for r in records if r.seconds.evaluate / r.score.n < 10]
    smallest: dict[tuple[object, ...], RunResult] = {}
    for record in sorted(records, key=lambda record: record.artifact.bytes):
        s = record.settings
        key = (record.dataset.name, s.objective.name, s.target and s.target.name, s.protocol, s.network.name)
        smallest.setdefault(key, record)
    assert smallest
    for record in smallest.values():
        verdict = verify(record, COMMITTED, catalog, Silent(), networks=1, fetch=False)
        assert verdict.holds, f"{record.run_id} {verdict.how}"


def test_the_first_few_networks_are_those_of_the_row(catalog, boards):
    [record] = read(boards)
    verdict = verify(record, boards, catalog, Silent(), networks=1)
    assert verdict.how == f"reproduced exactly on 1 of {record.score.n} networks"
    assert verdict.score.values == record.score.values[:1] != record.score.values[1:2]


@pytest.mark.slow
def test_what_is_not_here_is_skipped(ddbench, boards, monkeypatch, tmp_path):
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "elsewhere"))
    pool = ["--init", "random_pretrained", "--set", "init.count=5", "--set", "init.held_out=2", "--set", "init.steps=5"]
    common = ["--network", "linear", "--eval-networks", 2, "--leaderboards", boards]
    assert ddbench("run", "-m", "random_subset", *pool, *common).code == 0
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "empty"))
    done = ddbench("verify", "--all", "--leaderboards", boards, "--json")
    assert done.code == 0
    assert (len(done.json()["rows"]), len(done.json()["missing"])) == (1, 1)
    assert "lacks networks" in done.err


@pytest.mark.slow
def test_two_records_are_compared_on_the_same_networks(ddbench, boards, tmp_path):
    """Random images against herded ones under three seeds; then against themselves."""

    def made(method: str, seed: int) -> str:
        spec = {"method": method, "seed": seed, "network": "linear", "eval_networks": 4}
        return run(spec, runs=tmp_path / "runs", leaderboards=boards).run_id

    for seed in (1, 2):
        made("random_subset", seed)
    herded = [made("herding", seed) for seed in (0, 1, 2)]
    random = find(boards, next(r.run_id for r in read(boards) if r.settings.method.name == "random_subset"))
    found = ddbench("compare", random.run_id, herded[0], "--leaderboards", boards, "--json").json()
    assert (found["n"], found["of"], found["seeds"]) == (3, "seeds on 4 networks", [0, 1, 2])
    means = {(r.settings.method.name, r.settings.seed): r.score.mean for r in read(boards)}
    gaps = [means["random_subset", seed] - means["herding", seed] for seed in (0, 1, 2)]
    assert found["mean"] == pytest.approx(sum(gaps) / 3)
    begun = ddbench("compare", "random_subset-", "herding-", "--leaderboards", boards, "--json").json()
    # The beginning of a name may stand for another seed of the same method.
    named = (found.pop("missed"), begun.pop("missed"))
    assert begun == found and all(not metrics for missed in named for metrics in missed.values())
    same = ddbench("compare", herded[0], herded[0], "--leaderboards", boards)
    assert "no difference shown" in same.out
    ddbench("run", "-m", "herding", "--network", "mlp", "--eval-networks", 4, "--leaderboards", boards)
    other = next(r.run_id for r in read(boards) if r.settings.network.name == "mlp")
    refused = ddbench("compare", random.run_id, other, "--leaderboards", boards).message()
    assert "do not share a ranking: their records say eval_network 'linear' and 'mlp'" in " ".join(refused.split())


@pytest.mark.slow
def test_records_that_cannot_be_verified_do_not_stop_the_others(ddbench, boards, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch, ddbench\n"
        "@ddbench.init\n"
        "def zeros(request):\n"
        '    """All zeros."""\n'
        "    return {name: torch.zeros(request.n, *p.shape) for name, p in request.network.named_parameters()}\n"
        "@ddbench.hookimpl\n"
        "def ddbench_inits():\n"
        "    return [zeros]\n"
    )
    run_it = ["run", "-m", "random_subset", "--network", "linear", "--eval-networks", 2, "--leaderboards", boards]
    assert ddbench(*run_it, "--plugin", "mine.py", "--init", "zeros").code == 0
    done = ddbench("verify", "--all", "--leaderboards", boards, "--json")
    assert done.code == 1
    document = done.json()
    assert [verdict["how"] for verdict in document["rows"].values()] == ["reproduced exactly"]
    assert len(document["not_verified"]) == 1
    assert "there is no init called 'zeros'" in " ".join(done.err.split())


def test_records_of_a_newer_version_are_a_notice(ddbench, boards, catalog):
    changed(boards, {"version": 4})
    checked = ddbench("leaderboard", "--check", "--leaderboards", boards, "--json")
    assert (checked.code, checked.json()["problems"]) == (0, [])
    [notice] = checked.json()["notices"]
    assert "is of version 4, newer than this ddbench" in notice
    with pytest.raises(DdbenchError, match="was not verified: it is of version 4") as raised:
        verify(read(boards)[0], boards, catalog, Silent())
    assert raised.value.hint == "Use a later version of ddbench."


def test_a_setting_that_is_not_known_is_ignored_in_sets_as_in_records(boards, catalog):
    [record] = read(boards)
    distilled = DistilledSet.load(artifact_path(boards, record.artifact.sha256))
    newer = json.dumps({**json.loads(distilled.metadata["spec"]), "temperature": 2})
    digest = distilled.described(spec=newer, fingerprint="f" * 64).save(boards / "artifacts" / "newer")
    (boards / "artifacts" / "newer").rename(artifact_path(boards, digest))
    changed(boards, {"artifact.sha256": digest})
    with pytest.warns(UnknownFields, match="were ignored: temperature"):
        assert audit(boards).problems == []
    with pytest.warns(UnknownFields, match="were ignored: temperature"):
        assert verify(read(boards)[0], boards, catalog, Silent()).holds
