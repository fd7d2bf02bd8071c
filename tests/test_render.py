import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from ddbench.contract.metric import Metric
from ddbench.contract.sets import DistilledSet
from ddbench.records.result import Companion
from ddbench.records.stats import summarise
from ddbench.render.live import Bar, Plain, duration, live
from ddbench.render.pictures import _spread_evenly_in_ratio, contact_sheet, draw_curve, draw_images
from ddbench.render.tables import number, score_lines, score_text

ACCURACY, LOSS = Metric("accuracy", "share"), Metric("loss", higher_is_better=False)


def shaded(soft: bool = False) -> DistilledSet:
    """Two steps of three classes; image i has the shade i / 10."""
    shades = torch.arange(6.0).view(2, 3, 1, 1, 1) / 10
    inputs = ((shades - 0.5) / 0.25).expand(2, 3, 1, 8, 8).clone()
    labels = torch.arange(3).repeat(2, 1)
    metadata = {"classes": '["ant", "bee", "cat"]', "mean": "[0.5]", "std": "[0.25]", "method": "m", "dataset": "d"}
    if soft:
        labels = torch.nn.functional.one_hot(labels, 3).float() * 0.7 + 0.1
    return DistilledSet(inputs, labels, torch.tensor([[0.1, 0.2], [0.3, 0.4]]), metadata)


@pytest.mark.parametrize("soft", [False, True])
def test_the_picture_shows_every_image_at_its_shade(tmp_path: Path, soft: bool):
    path = tmp_path / "distilled.png"
    draw_images(shaded(soft), path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    shown = {shade for shade in range(256) if (pixels == shade).sum() > 1000}
    assert {0, 26, 51, 76, 102, 128} <= {s + d for s in shown for d in (-1, 0, 1)}


@pytest.mark.parametrize("soft", [False, True])
def test_a_contact_sheet_has_a_column_a_class_and_a_row_a_step(soft: bool):
    sheet = contact_sheet(shaded(soft))
    assert sheet.labels == [[0, 1, 2], [0, 1, 2]] and sheet.size == (8, 8)
    with Image.open(io.BytesIO(sheet.png)) as picture:
        pixels = np.asarray(picture)
    larger = 320 // 26
    assert pixels.shape == (17 * larger, 26 * larger)
    for step in range(2):
        for label in range(3):
            middle = pixels[(9 * step + 4) * larger, (9 * label + 4) * larger]
            assert abs(int(middle) - round(25.5 * (3 * step + label))) <= 1
    # White between them.
    assert (pixels[8 * larger] == 255).all() and (pixels[:, 8 * larger] == 255).all()


def test_a_contact_sheet_of_many_colour_images_is_cut():
    many = DistilledSet(
        torch.rand(1, 500, 3, 4, 4),
        torch.arange(10).repeat(50)[None],
        metadata={"classes": json.dumps(list("abcdefghij"))},
    )
    with Image.open(io.BytesIO(contact_sheet(many).png)) as picture:
        assert picture.mode == "RGB"
        assert picture.size == (49 * 6, 49 * 6)


def test_lines_of_one_method_are_told_apart(capsys, monkeypatch):
    from ddbench.records.ranking import groups
    from ddbench.render.rankings import ranking
    from tests.rows import make_record

    monkeypatch.setenv("COLUMNS", "200")
    rows = [
        make_record(
            run_id=f"r{i}", method=method, method_options=options, method_source=source, mean=0.9 - i / 10, low=0.8 - i / 10, high=1 - i / 10, pretrained=pools,
        )
        for i, (method, options, source, pools) in enumerate(
            [
                ("mine", '{"a": 1, "b": 2}', "mine.py@1234", "{}"),
                ("mine", '{"a": 3, "b": 2}', "mine.py@1234", "{}"),
                ("mine", '{"a": 3, "b": 2}', "mine.py@5678", "{}"),
                ("alone", '{"a": 7}', "p 1", "{}"),
                ("pooled", "{}", "p 1", '{"x": {"networks": 1}}'),
                ("pooled", "{}", "p 1", '{"x": {"networks": 2}}'),
            ]
        )
    ]  # fmt: skip
    ranking(groups(rows))
    shown = capsys.readouterr().out
    for name in (
        "mine (a=1, from=1234)",
        "mine (a=3, from=1234)",
        "mine (a=3, from=5678)",
        "alone ",
        "pooled (other pools)",
    ):
        assert name in shown
    assert "alone (" not in shown


def test_as_good_as_a_companion():
    score = summarise([0.5, 0.5])
    companion = Companion(**score.model_dump())
    lines = list(score_lines([ACCURACY], {"accuracy": score}, score, {"random": companion}, "hard"))
    assert lines[1].endswith("this run is as good, but the intervals overlap")


def test_a_difference_within_the_intervals_is_called_one():
    score = summarise([0.4, 0.6])
    near, far = (Companion(**summarise(values).model_dump()) for values in ([0.45, 0.55], [0.01, 0.02]))
    narrow = summarise([0.50, 0.51])
    [_, overlapping, _] = score_lines([ACCURACY], {"accuracy": score}, score, {"random": near}, "hard")
    [_, apart, _] = score_lines([ACCURACY], {"accuracy": narrow}, narrow, {"random": far}, "hard")
    assert overlapping.endswith("but the intervals overlap")
    assert apart.endswith("points better")


def test_the_labels_of_companions_are_named_where_they_are_others():
    score = summarise([0.5, 0.5])
    hard, soft = (Companion(**score.model_dump(), label_regime=regime) for regime in ("hard", "stored soft"))
    companions = {"random": hard, "random+teacher": soft, "full_data": hard}
    lines = list(score_lines([ACCURACY], {"accuracy": score}, score, companions, "stored soft"))
    assert [line.endswith("; hard labels") for line in lines] == [False, True, False, True, False]
    lines = list(score_lines([ACCURACY], {"accuracy": score}, score, companions, "hard"))
    assert [line.endswith("; stored soft labels") for line in lines] == [False, False, True, False, False]
    # A record of an earlier version does not hold them: companions had hard labels, or those of the teacher.
    earlier = Companion(**score.model_dump())
    assert earlier.regime_beside("random", "stored soft") == "hard"
    assert earlier.regime_beside("random", "teacher online") == "teacher online"
    assert earlier.regime_beside("full_data", "teacher online") == "hard"
    assert earlier.regime_beside("no_adaptation", "stored soft") == ""


def test_a_companion_that_wrecks_the_network_is_marked(capsys, monkeypatch):
    from ddbench.records.ranking import groups
    from ddbench.render.rankings import ranking
    from tests.rows import make_record

    monkeypatch.setenv("COLUMNS", "200")
    record = make_record(metric="attack_success", metrics='{"accuracy_others": 0.8}', mean=0.8, run_id="good")
    wrecked = record.companions["random"].model_copy(update={"mean": 0.9, "metrics": {"accuracy_others": 0.126}})
    record = record.model_copy(update={"companions": {"random": wrecked}})
    ranking(groups([record]))
    shown = capsys.readouterr().out
    assert "-10.0†" in shown and "80.0 %†" not in shown
    assert "† random beside good: accuracy_others 12.6 % misses 50.0 %." in shown
    ranking(groups([record.model_copy(update={"scores": record.scores | {"accuracy_others": wrecked}})]))
    missing = {name: score.model_copy(update={"mean": 0.2}) for name, score in record.scores.items()}
    ranking(
        groups([record.model_copy(update={"scores": record.scores | {"accuracy_others": missing["accuracy_others"]}})])
    )
    shown = capsys.readouterr().out
    assert (
        "80.0 %†" in shown
        and "† good is ranked behind rows that reach it: accuracy_others 20.0 % misses 50.0 %." in shown
    )


def test_sets_without_metadata_or_with_many_images_are_drawn(tmp_path: Path):
    draw_images(DistilledSet(torch.rand(1, 50, 3, 4, 4), torch.arange(50)[None]), tmp_path / "plain.png")
    draw_images(shaded(), tmp_path / "again.png")
    with Image.open(tmp_path / "plain.png") as picture:
        assert picture.width > 500


def test_the_curve_has_a_panel_for_each_logged_figure(tmp_path: Path):
    records = [{"loop": 0, "step": i, "seconds": i, "loss": 1 / (i + 1), "accuracy": i / 50} for i in range(50)]
    draw_curve(records, tmp_path / "two.png")
    draw_curve([{**r, "loss": float("nan")} for r in records], tmp_path / "nan.png")
    draw_curve([{"loop": 0, "step": 0, "seconds": 0}], tmp_path / "none.png")
    with Image.open(tmp_path / "two.png") as picture:
        assert picture.width > 600


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([0.1, 1, 10], True),
        ([1, 10, 30, 100], True),
        ([0.001, 0.003, 0.01, 0.03, 0.1, 0.3], True),
        ([1, 2, 5, 10, 20], False),
        ([1, 50, 100, 150], False),
        ([0, 1, 100], False),
        ([-1, 1, 100], False),
        (["adam", "sgd", "lars"], False),
        ([True, False], False),
    ],
)
def test_the_axis_of_a_sweep_is_logarithmic_for_values_spread_evenly_in_ratio(values, logarithmic):
    assert _spread_evenly_in_ratio(values) == logarithmic


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]):
    with live() as reporter:
        assert isinstance(reporter, Plain)
        reporter.stage("Distilling")
        reporter.progress(1, 100, {"loss": 0.5}, 99.0)
        reporter.progress(100, 100, {"train_accuracy": 0.123456}, 0.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "Distilling ...\n  Distilling: 100/100  train accuracy 0.123  0.0 s left\n"


def test_a_bar_on_a_terminal():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, no_color=True, highlight=False)
    with Progress(console=console) as progress:
        bar = Bar(progress)
        bar.say("Data [bold] as it is")
        bar.stage("Distilling")
        bar.progress(3, 10, {"loss": 0.5}, 75)
        [task] = progress.tasks
        assert (task.completed, task.total) == (3, 10)
        assert task.fields["figures"] == "3/10  loss 0.5  1 min 15 s left"
        bar.stage("Scoring")
        assert [t.description for t in progress.tasks] == ["Scoring"]
    assert "Data [bold] as it is" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.97, "10 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_scores_for_people():
    score, companion = summarise([0.8, 0.9]), summarise([0.5, 0.6])
    assert score_text(ACCURACY, score).startswith("85.0 % (std 7.1, 95 % interval 21.5 to 100.0")
    assert score_text(LOSS, summarise([0.5])) == "0.5 (1 network, so no interval)"
    companions = {"random_subset": Companion(**companion.model_dump())}
    lines = list(score_lines([ACCURACY], {"accuracy": score}, summarise([0.1]), companions, "hard"))
    assert "this run is 30.0 points better" in lines[1]
    assert "10.0 %" in lines[2]
    lines = list(score_lines([LOSS], {"loss": score}, summarise([0.1]), companions, "hard"))
    assert "this run is 0.3 worse" in lines[1]
    assert number(ACCURACY, 0.5, signed=True) == "+50.0 %"
    assert json.loads(score.model_dump_json())["values"] == [0.8, 0.9]
