"""The matrix of methods and rankings: which line stands for a method, and its gain over random real images."""

import pytest

from ddbench.records.matrix import Matrix, baselines, cells, gain, mean_gain, network_of, usual
from ddbench.records.ranking import groups
from tests.rows import add, make_record


def companion(mean: float, name: str = "random") -> str:
    return f'{{"{name}": {{"mean": {mean}, "std": 0.1, "n": 2}}}}'


def scored(mean: float, **cells: object):
    """Return a record whose two networks scored around `mean`."""
    name = f"{cells.get('method', 'x')}-{mean}-{cells.get('seed', 1)}"
    values = f"[{mean - 0.01}, {mean + 0.01}]"
    spread = dict(mean=mean, low=mean - 0.02, high=mean + 0.02, values=values)
    return make_record(**{**spread, "fingerprint": name, "run_id": name, **cells})


def test_companions_that_bound_a_score_are_no_baselines():
    names = ["random", "full_data", "no_adaptation", "best_coreset:herding"]
    assert baselines(names) == ["random"]
    assert baselines([*names, "random+teacher"]) == ["random+teacher"]


def test_the_gain_is_over_the_baseline_in_the_better_direction():
    [[up]] = groups([scored(0.5, companions=companion(0.2))])
    assert gain(up) == pytest.approx(0.3)
    [[down]] = groups([scored(0.5, companions=companion(0.2), higher_is_better=False, metric="loss")])
    assert gain(down) == pytest.approx(-0.3)
    [[without]] = groups([scored(0.5, companions="{}")])
    assert gain(without) is None
    two = '{"a": {"mean": 0.2, "std": 0.1, "n": 2}, "b": {"mean": 0.4, "std": 0.1, "n": 2}}'
    [[better]] = groups([scored(0.5, companions=two)])
    assert gain(better) == pytest.approx(0.1)


def test_the_gain_of_seeds_is_the_mean_of_theirs():
    seeds = [scored(0.5, seed=1, companions=companion(0.2)), scored(0.7, seed=2, companions=companion(0.3))]
    [[line]] = groups(seeds)
    assert gain(line) == pytest.approx(0.35)


def test_the_score_does_not_choose_the_line_of_a_method():
    best_alone = scored(0.9, method_options='{"a": 1}')
    two_seeds = [scored(0.5, method_options='{"a": 2}', seed=seed) for seed in (1, 2)]
    newest = scored(0.4, method_options='{"a": 3}', created="2026-05-01T00:00:00+00:00")
    [ranking] = groups([best_alone, *two_seeds, newest])
    [(name, cell)] = cells(ranking).items()
    assert (name, cell.line.score.mean, cell.lines, cell.of) == ("x", pytest.approx(0.5), 3, 3)
    assert cell.rank == 2
    [ranking] = groups([best_alone, newest])
    assert cells(ranking)["x"].line.first == newest


def test_the_baseline_itself_gains_nothing():
    own, other = scored(0.25, method="random"), scored(0.5, companions=companion(0.2))
    [ranking] = groups([own, other])
    assert cells(ranking)["random"].gain == 0.0
    assert cells(ranking)["x"].gain == pytest.approx(0.3)


def test_methods_stand_by_their_mean_gain_and_rankings_by_dataset_and_images_per_class():
    def row(method: str, count: int, mean: float, dataset: str = "b"):
        return scored(mean, method=method, images_per_class=count, dataset=dataset, companions=companion(0.2))

    rows = [row("low", 10, 0.3), row("low", 2, 0.3), row("high", 10, 0.9), row("middle", 2, 0.5, dataset="a")]
    nothing = scored(0.9, method="alone", images_per_class=10, dataset="b", companions="{}")
    matrix = Matrix.build(groups([*rows, nothing]))
    places = [(r[0].first.dataset.name, r[0].first.settings.images_per_class) for r in matrix.rankings]
    assert places == [("a", 2), ("b", 2), ("b", 10)]
    assert matrix.methods == ("high", "middle", "low", "alone")
    assert [sorted(column) for column in matrix.cells] == [["middle"], ["low"], ["alone", "high", "low"]]
    assert mean_gain("low", matrix.cells) == pytest.approx(0.1)
    assert mean_gain("alone", matrix.cells) is None


def test_the_usual_view_is_that_of_most_lines():
    few = [scored(0.5, protocol="a/v1", network="one")]
    many = [scored(0.5, protocol="b/v1", network=name, method=name) for name in ("one", "two")]
    more = scored(0.5, protocol="b/v1", network="two", method="other")
    assert usual(groups([*few, *many, more])) == ("b/v1", "two")
    assert usual([]) == ("", "")
    assert network_of(scored(0.5, protocol="knn/v1", network="one")) == ""


def test_learned_images_decide_the_usual_view_before_the_number_of_lines():
    chosen = [scored(0.5, protocol="a/v1", network="one", method=name, outer_steps=0) for name in ("x", "y", "z")]
    learned = scored(0.5, protocol="a/v1", network="two", method="w", outer_steps=10)
    assert usual(groups([*chosen, learned])) == ("a/v1", "two")


def test_an_architecture_is_named_with_its_options_in_one_order():
    names = {
        network_of(scored(0.5, network="convnet", network_options=options))
        for options in ('{"width": 16, "depth": 3}', '{"depth": 3, "width": 16}')
    }
    assert names == {"convnet(depth=3, width=16)"}


@pytest.mark.slow
def test_the_terminal_shows_the_matrix_then_the_largest_ranking(ddbench, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    boards = tmp_path / "boards"
    many = [scored(0.5 + i / 10, method=f"m{i}", images_per_class=10, companions=companion(0.6)) for i in range(3)]
    for record in [*many, scored(0.45, method="m0", images_per_class=50, protocol="b/v1")]:
        add(boards, record)
    (boards / "published.csv").write_text(
        "method,dataset,images_per_class,network,setting,metric,unit,mean,std,source\n"
    )
    shown = ddbench("leaderboard", "--leaderboards", boards).out
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0][:5] == ["Every", "method", "in", "every", "ranking:"]
    # Above, at, and below the mean of random real images.
    assert ["m2", "70.0±2.0+"] in lines and ["m1", "60.0±2.0"] in lines and ["m0", "50.0±2.0-"] in lines
    assert shown.index("70.0±2.0+") < shown.index("images per class, ") and "b/v1" not in shown.split("more ranking")[0]
    assert "1 more ranking: add --dataset NAME" in shown and "Other matrices: --protocol b/v1." in shown
    other = ddbench("leaderboard", "--leaderboards", boards, "--protocol", "b/v1").out
    assert "45.0" in other and "70.0" not in other
    none = ddbench("leaderboard", "--leaderboards", boards, "--network", "absent")
    assert none.code == 0 and none.out == "There are no records of that dataset, method, protocol or network.\n"


def test_columns_of_a_matrix_that_does_not_fit_go_on_below(capsys, monkeypatch):
    from ddbench.render.rankings import matrix

    monkeypatch.setenv("COLUMNS", "60")
    names = ["short", "a_long_name_of_a_dataset", "other"]
    rows = [scored(0.5, dataset=name, dataset_hash=name, images_per_class=c) for name in names for c in (1, 10)]
    matrix(Matrix.build(groups(rows)))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 60
    assert shown.count("images per class") == 2 and shown.count("50.0±2.0") == 6
    assert "a_long_name_of_a_dataset" in shown
