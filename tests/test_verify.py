import csv
import json
import shutil
from pathlib import Path

import pytest

from ddbench.contract.observer import Silent
from ddbench.contract.sets import DistilledSet
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, UsageError
from ddbench.pipeline.runner import run
from ddbench.pipeline.verify import find, verify
from ddbench.records.audit import faults
from ddbench.records.leaderboard import Row, read
from ddbench.records.result import artifact_path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    fields = {"method": "random_subset", "network": "linear", "eval_networks": 4}
    run(fields, runs=folder / "runs", leaderboards=folder / "boards")
    return folder / "boards"


@pytest.fixture
def boards(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "boards")


def changed(boards: Path, **cells: object) -> None:
    path = boards / "classification.csv"
    [row] = list(csv.DictReader(path.read_text().splitlines()))
    row |= {name: str(value) for name, value in cells.items()}
    with path.open("w") as stream:
        writer = csv.DictWriter(stream, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)


def test_a_row_that_was_written_holds(boards, catalog: Catalog):
    assert faults(boards) == []
    [row] = read(boards)
    assert find(boards, row.run_id) == find(boards, row.fingerprint[:8]) == row
    verdict = verify(row, boards, catalog, Silent())
    assert (verdict.holds, verdict.how) == (True, "reproduced exactly")


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ({"mean": 0.99}, "mean 0.99 is not that of its values"),
        ({"std": 0.001}, "std 0.001 is not that of its values"),
        ({"values": "[0.9, 0.9, 0.9, 0.9]"}, "is not that of its values, 0.9"),
        ({"values": "[0.9, 0.9]"}, "2 values where n is 4"),
        ({"values": '"many"'}, "values is not a JSON list"),
        ({"values": '["a", "b", "c", "d"]'}, "not a list of numbers"),
        ({"values": "[NaN, 0.5, 0.5, 0.5]"}, "not all of its figures are finite"),
        ({"images_per_class": 50}, "says images_per_class 50, its artefact 1"),
        ({"method": "herding"}, "says method 'herding', its artefact 'random_subset'"),
        ({"bytes": 3}, "says bytes 3"),
        ({"fingerprint": "0" * 64}, "fingerprint is not that of its artefact"),
        ({"dataset_hash": "0" * 64}, "says dataset_hash"),
        ({"dataset": "mnist"}, "says dataset 'mnist'"),
        ({"dataset": "digits@12345678"}, "is not that of its hash"),
        ({"network_options": '{"width": 3}'}, "says network_options"),
        ({"sample_shape": "3x8x8"}, "says sample_shape '3x8x8'"),
        ({"label_regime": "stored soft"}, "says label_regime"),
        ({"run_id": "herding-digits-ipc1-000000"}, "says run_id"),
        ({"protocol_hash": "0" * 12}, "not that of replay/v1"),
        ({"schema_version": 1}, "is of schema 1"),
        ({"created": "never"}, "is no time"),
        ({"artifact_sha256": "../../../etc/passwd"}, "artifact_sha256 is no SHA-256"),
        ({"companions": "[]"}, "companions is not a JSON object"),
        ({"companions": '{"random_subset": {"mean": 0.1}}'}, "no mean, std and n"),
        ({"companions": '{"full_data": {"mean": NaN, "std": 0.1, "n": 5}}'}, "not all of its figures are finite"),
        ({"environment": "not JSON"}, "environment is not a JSON object"),
        ({"peak_memory_mb": "nan"}, "not all of its figures are finite"),
        ({"seconds_distill": -5}, "less than nothing"),
    ],
)
def test_tampered_rows(boards, catalog, cells, told):
    changed(boards, **cells)
    assert any(told in fault for fault in faults(boards)), faults(boards)
    with pytest.raises(DdbenchError, match="is at fault"):
        verify(read(boards)[0], boards, catalog, Silent())


def test_tampered_artefacts(boards, catalog):
    [row] = read(boards)
    path = artifact_path(boards, row.artifact_sha256)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\0\0\1")
    assert "another file than the one that was scored" in faults(boards)[0]
    distilled = DistilledSet.load(path)
    digest = distilled.described(fingerprint="f" * 64).save(boards / "artifacts" / "forged")
    (boards / "artifacts" / "forged").rename(boards / "artifacts" / f"{digest}.safetensors")
    changed(boards, artifact_sha256=digest)
    assert "fingerprint is not that of its artefact" in faults(boards)[0]


@pytest.mark.parametrize("values", [[0.95, 0.951, 0.952, 0.953], [0.99, 0.1, 0.9, 0.2]], ids=["narrow", "wide"])
def test_a_figure_that_does_not_hold(boards, catalog, values):
    """A row consistent in itself, whose figures its artefact does not reach, however wide the interval."""
    from ddbench.records.stats import summarise

    made_up = summarise(values)
    cells = {name: getattr(made_up, name) for name in ("mean", "std", "low", "high")}
    changed(boards, values=json.dumps(made_up.values), **cells)
    assert faults(boards) == []
    verdict = verify(read(boards)[0], boards, catalog, Silent())
    assert not verdict.holds
    assert "does not hold" in verdict.how


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ({"metric": "accuracy2"}, "says metric 'accuracy2', scoring again 'accuracy'"),
        ({"higher_is_better": False}, "says higher_is_better False"),
        ({"train_images": 99}, "says train_images 99"),
        ({"selected_on": "test images"}, "says selected_on 'test images'"),
        ({"before": 0.9}, "says 0.9000 before training"),
    ],
)
def test_what_only_scoring_again_can_tell(boards, catalog, cells, told):
    changed(boards, **cells)
    assert faults(boards) == []
    with pytest.raises(DdbenchError, match=told):
        verify(read(boards)[0], boards, catalog, Silent())


def test_rows_twice_and_names_of_none(boards):
    path = boards / "classification.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    assert any("stands there twice" in fault for fault in faults(boards))
    with pytest.raises(UsageError, match="2 rows"):
        find(boards, read(boards)[0].run_id)
    with pytest.raises(UsageError, match="no rows"):
        find(boards, "nothing")


def test_the_commands(ddbench, boards, tmp_path):
    folder = ["--leaderboards", boards]
    [row] = read(boards)
    assert "1 rows, none at fault" in ddbench("leaderboard", "--check", *folder).out
    done = ddbench("verify", row.run_id, *folder)
    assert (done.code, "reproduced exactly" in done.out) == (0, True)
    assert ddbench("verify", "--all", *folder, "--json").json()["rows"][row.run_id]["holds"]
    assert ddbench("verify", *folder).code == 2
    changed(boards, mean=0.99)
    bad = ddbench("leaderboard", "--check", *folder)
    assert bad.code == 1
    assert "mean 0.99" in bad.out
    assert "is at fault" in ddbench("verify", row.run_id, *folder).told()


@pytest.mark.parametrize("cells", [{"companions": "[]"}, {"metrics": '{"loss": "much"}'}, {"sample_shape": "wide"}])
def test_rows_that_cannot_be_shown_are_named(ddbench, boards, cells, tmp_path):
    changed(boards, **cells)
    [row] = read(boards)
    assert faults(boards)
    for how in ([], ["--json"], ["--html", tmp_path / "page"]):
        done = ddbench("leaderboard", "--leaderboards", boards, *how)
        assert done.code == 1
        assert f"the row of {row.run_id} cannot be used" in done.told()


COMMITTED = Path(__file__).parents[1] / "leaderboards"


def test_the_committed_rows_are_without_fault():
    assert faults(COMMITTED) == []


def test_committed_rows_hold(catalog, real_data):
    """On the first network: the smallest row of each dataset, objective and protocol that needs no pool and is quick.

    Where a protocol selects, the selection is over all networks, so only rows of one network can be taken.
    """
    rows = [row for row in read(COMMITTED) if json.loads(row.pretrained) == {}]
    rows = [row for row in rows if row.n == 1 or row.selected_on == "nothing"]
    rows = [row for row in rows if artifact_path(COMMITTED, row.artifact_sha256).exists()]
    rows = [row for row in rows if row.seconds_evaluate / row.n < 10]
    smallest: dict[tuple[str, ...], Row] = {}
    for row in sorted(rows, key=lambda row: row.bytes):
        smallest.setdefault((row.dataset, row.objective, row.target, row.protocol, row.network), row)
    assert smallest
    for row in smallest.values():
        verdict = verify(row, COMMITTED, catalog, Silent(), networks=1, fetch=False)
        assert verdict.holds, f"{row.run_id} {verdict.how}"


def test_the_first_few_networks_are_those_of_the_row(catalog, boards):
    [row] = read(boards)
    verdict = verify(row, boards, catalog, Silent(), networks=1)
    assert verdict.how == f"reproduced exactly on 1 of {row.n} networks"
    assert verdict.found.values == json.loads(row.values)[:1]
    # Whose value another network's is not.
    assert json.loads(row.values)[0] != json.loads(row.values)[1]


def test_what_is_not_here_is_passed_over(ddbench, boards, monkeypatch, tmp_path):
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "elsewhere"))
    pool = ["--init", "random_pretrained", "--set", "init.count=5", "--set", "init.held_out=2", "--set", "init.steps=5"]
    common = ["--network", "linear", "--eval-networks", 2, "--leaderboards", boards]
    assert ddbench("run", "-m", "random_subset", *pool, *common).code == 0
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "empty"))
    done = ddbench("verify", "--all", "--leaderboards", boards, "--json")
    assert done.code == 0
    assert (len(done.json()["rows"]), len(done.json()["missing"])) == (1, 1)
    assert "lacks networks" in done.err


def test_two_rows_are_compared_on_the_same_networks(ddbench, boards, tmp_path):
    """Random images against herded ones under three seeds; then against themselves."""

    def made(method: str, seed: int) -> str:
        spec = {"method": method, "seed": seed, "network": "linear", "eval_networks": 4}
        return run(spec, runs=tmp_path / "runs", leaderboards=boards).run_id

    for seed in (1, 2):
        made("random_subset", seed)
    herded = [made("herding", seed) for seed in (0, 1, 2)]
    random = find(boards, next(row.run_id for row in read(boards) if row.method == "random_subset"))
    found = ddbench("compare", random.run_id, herded[0], "--leaderboards", boards, "--json").json()
    assert (found["n"], found["of"], found["seeds"]) == (3, "seeds on 4 networks", [0, 1, 2])
    rows = {row.run_id: row for row in read(boards)}
    gaps = [a.mean - b.mean for a in rows.values() for b in rows.values()
            if a.method == "random_subset" and b.method == "herding" and a.seed == b.seed]  # fmt: skip
    assert found["mean"] == pytest.approx(sum(gaps) / 3)
    begun = ddbench("compare", "random_subset-", "herding-", "--leaderboards", boards, "--json").json()
    assert begun == found
    same = ddbench("compare", herded[0], herded[0], "--leaderboards", boards)
    assert "no difference shown" in same.out
    ddbench("run", "-m", "herding", "--network", "mlp", "--eval-networks", 4, "--leaderboards", boards)
    other = next(row.run_id for row in read(boards) if row.network == "mlp")
    refused = ddbench("compare", random.run_id, other, "--leaderboards", boards).told()
    assert "do not share a ranking: their rows say network 'linear' and 'mlp'" in " ".join(refused.split())


def test_rows_that_cannot_be_verified_do_not_stop_the_others(ddbench, boards, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch, ddbench\n"
        "@ddbench.init\n"
        "def zeros(network, info, n, generator, side):\n"
        '    """All zeros."""\n'
        "    return {name: torch.zeros(n, *p.shape) for name, p in network.named_parameters()}\n"
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
