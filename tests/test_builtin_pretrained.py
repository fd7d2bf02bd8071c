import pytest
import torch

from ddbench.errors import PluginError, UsageError
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare
from ddbench.pipeline.runner import run
from ddbench.records.store import read

QUICK = {"steps": 40, "lr": 0.01}


def networks(make_prepared, init: dict, side: str, n: int, seed: int = 0):
    prepared = make_prepared(init=init)
    return prepared.setting.networks(side, torch.Generator().manual_seed(seed)).sample(n).params["classifier.weight"]


def test_random_pretrained_holds_out_those_that_score(make_prepared):
    init = {"name": "random_pretrained", "options": {"count": 3, "held_out": 2, **QUICK}}
    train, scored = networks(make_prepared, init, "train", 3), networks(make_prepared, init, "evaluation", 2)
    assert not any(torch.equal(a, b) for a in train for b in scored)


def test_fixed_pretrained_is_one_network_on_both_sides(make_prepared):
    def init(index: int):
        return {"name": "fixed_pretrained", "options": {"index": index, **QUICK}}

    train, scored = networks(make_prepared, init(0), "train", 4), networks(make_prepared, init(0), "evaluation", 20, 1)
    assert torch.equal(train, scored)
    assert len(train) == 1
    assert not torch.equal(networks(make_prepared, init(1), "train", 1), train)


@pytest.mark.slow
def test_a_mixture_draws_from_each_part(make_prepared):
    fixed = {"name": "fixed", "options": {"seed": 3}}
    mixed = networks(make_prepared, {"name": "mixture", "options": {"of": [fixed, "random"]}}, "train", 40)
    same = [torch.equal(weight, networks(make_prepared, fixed, "train", 1)[0]) for weight in mixed]
    assert 8 < sum(same) < 32
    others = [weight for weight, is_fixed in zip(mixed, same, strict=True) if not is_fixed]
    assert not any(torch.equal(others[0], other) for other in others[1:])


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (["random"], "at least 2 items"),
        (["random", "mixture"], "cannot contain a mixture"),
        (["random", {"options": {}}], "names no init distribution"),
        (["random", "randon"], "Did you mean 'random'"),
        (["random", {"name": "fixed", "options": {"sead": 1}}], "no option 'sead'"),
    ],
)
def test_mixtures_that_cannot_be_drawn_from(make_prepared, of, message):
    with pytest.raises((UsageError, PluginError), match=message):
        networks(make_prepared, {"name": "mixture", "options": {"of": of}}, "train", 40)


@pytest.mark.slow
def test_scored_on_another_distribution_than_it_was_made_for(catalog, tmp_path):
    fields = {
        "method": "random_subset",
        "network": "linear",
        "init": {"name": "random_pretrained", "options": {"count": 1, "held_out": 1, **QUICK}},
        "eval_init": {"name": "random", "options": {"scheme": "kaiming"}},
        "eval_networks": 3,
    }
    result = run(fields, catalog=catalog, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
    [record] = read(tmp_path / "boards")
    assert (record.settings.init.name, record.settings.eval_init.name) == ("random_pretrained", "random")
    assert record.settings.eval_init.options["scheme"] == "kaiming"
    assert [pool["networks"] for pool in record.pretrained.values()] == [1]
    assert record.score.n == 3
    assert result.before["accuracy"].mean < 0.4

    from ddbench.contract.spec import RunSpec

    prepared = prepare(plan_run(RunSpec.parse(fields), catalog), catalog)
    task = prepared.task(torch.Generator())
    distilled_for = task.networks.sample(1).params["classifier.weight"][0]
    scored_on = prepared.setting.networks("evaluation", torch.Generator()).sample(1).params["classifier.weight"][0]
    assert distilled_for.std() != scored_on.std()
