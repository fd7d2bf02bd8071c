"""The leaderboard page in a real browser."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import ddbench
from ddbench.discovery.catalog import Catalog
from ddbench.pipeline.runner import run
from ddbench.records.leaderboard import published
from ddbench.records.store import read
from ddbench.render.site import write_site
from tests.rows import make_record

pytestmark = pytest.mark.slow
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A page of eight rows in three tables, made by real runs."""
    folder = tmp_path_factory.mktemp("site")
    boards = folder / "boards"
    places = dict(catalog=Catalog(), runs=folder / "runs", leaderboards=boards)
    common = {"network": "linear", "eval_networks": 3}
    for method in ("random_subset", "herding", "average_real"):
        for count in (1, 4):
            run({**common, "method": method, "images_per_class": count, "steps": 1}, **places)
    learned = {"name": "unrolled_gd", "options": {"outer_steps": 40}}
    run({**common, "method": learned, "images_per_class": 1, "steps": 1}, **places)
    run({**common, "method": "herding", "images_per_class": 1, "steps": 1, "objective": "poisoning"}, **places)
    shutil.copy(Path(__file__).parents[1] / "leaderboards" / "published.csv", boards)
    return write_site(folder / "page", read(boards), published(boards), boards, places["catalog"])


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, site) -> Iterator[object]:
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    faults: list[str] = []
    opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else faults.append(r.url))
    opened.goto(site.as_uri())
    yield opened
    opened.close()
    assert faults == []


def shown(page) -> list[str]:
    return [row.get_attribute("data-run") for row in page.locator("tr[data-run]").all()]


def test_all_rows_are_there_and_filters_stay_in_the_address(page, site):
    everything = shown(page)
    assert len(everything) == 8
    page.select_option("select[name=budget]", "4")
    four = shown(page)
    assert len(four) == 3
    assert all("ipc4" in run_id for run_id in four)
    assert "budget=4" in page.url
    assert "3 of 8 lines" in page.text_content("#status")
    page.goto("about:blank")
    page.goto(site.as_uri() + "#budget=4&objective=classification")
    assert shown(page) == four
    assert page.input_value("select[name=objective]") == "classification"
    page.select_option("select[name=budget]", "")
    assert len(shown(page)) == 7
    page.evaluate("location.hash = '#objective=poisoning'")
    page.wait_for_function("document.querySelectorAll('tr[data-run]').length === 1")


def test_tables_sort(page):
    page.select_option("select[name=budget]", "1")
    page.select_option("select[name=objective]", "classification")
    first = page.locator("table").first
    by_rank = shown(page)
    first.get_by_role("button", name="Time").click()
    assert first.locator("th[aria-sort]").get_attribute("data-key") == "seconds"
    assert shown(page)[0].startswith("unrolled_gd")
    first.get_by_role("button", name="Time").click()
    assert shown(page)[-1].startswith("unrolled_gd")
    first.get_by_role("button", name="#").click()
    assert sorted(shown(page)) == sorted(by_rank)
    scores = [float(cell.split(" ")[0]) for cell in first.locator("tr[data-run] td:nth-child(3)").all_text_contents()]
    assert scores[0] == max(scores)


def test_a_row_opens_to_pictures_curve_and_command(page):
    row = page.locator("details", has=page.get_by_text("run it again: unrolled_gd"))
    row.locator("summary").click()
    picture = row.locator("img")
    assert picture.evaluate("i => i.complete && i.naturalWidth > 100")
    assert "distilled images" in picture.get_attribute("alt")
    assert row.locator("figure svg polyline").count() >= 2
    command = row.locator("pre").text_content()
    assert command.startswith("ddbench run --method unrolled_gd ")
    assert "--network linear --ipc 1 --steps 1" in command
    assert "--set outer_steps=40" in command
    row.get_by_role("button", name="Copy").click()
    row.get_by_role("button", name="Copied").wait_for(timeout=5000)


def test_what_was_published_stands_apart(page):
    assert page.locator("#published tr").count() > 40
    page.select_option("select[name=dataset]", "digits")
    assert page.locator("#published table").count() == 0
    assert "unrolled_gd: Learn images" in page.text_content("#methods")
    assert page.locator("a[download]").first.get_attribute("href").startswith("data:text/csv;base64,")


def test_on_a_phone_and_in_the_dark(page, tmp_path):
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    # What a row is about is seen without scrolling sideways, and so is all of its detail.
    beyond = "[...document.querySelectorAll('#tables .scroll')].map(box => box.scrollWidth - box.clientWidth)"
    assert max(page.evaluate(beyond)) <= 60
    page.locator("details > summary").first.click()
    assert page.locator(".detail").first.bounding_box()["width"] <= 380
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != before
    page.screenshot(path=tmp_path / "phone.png")


def test_everything_has_a_name(page):
    nameless = page.evaluate(
        """[...document.querySelectorAll('select, button, img, svg[role=img]')].filter(node =>
            !(node.labels?.length || node.textContent.trim() || node.alt || node.getAttribute('aria-label'))).length"""
    )
    assert nameless == 0
    assert page.locator("table caption").count() == 3
    assert page.get_attribute("html", "lang") == "en"


def test_seeds_share_a_line(ddbench, tmp_path):
    for seed in (0, 1):
        ddbench("run", "-m", "herding", "--network", "linear", "--eval-networks", 3, "--seed", seed)
    told = ddbench("leaderboard").out
    assert "2 x 3" in told and "and 1 other" in told
    assert ddbench("leaderboard", "--html", "page").code == 0
    shown = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "page" / "index.html").read_text())[1])
    [[line]] = shown["groups"]
    assert [one["seed"] for one in line["seeds"]] == [0, 1]
    assert line["mean"] == pytest.approx(sum(one["mean"] for one in line["seeds"]) / 2)


def test_the_page_names_thresholds_that_are_missed_and_labels_of_companions(tmp_path: Path, catalog):
    record = make_record(metric="attack_success", metrics='{"accuracy_others": 0.2}', label_regime="stored soft")
    folder = write_site(tmp_path / "page", [record], [], tmp_path, catalog)
    [[row]] = json.loads(re.search(r'id="data">(.*?)</script>', folder.read_text())[1])["groups"]
    assert row["missed"] and row["companions"]["random"]["missed"]
    assert row["companions"]["random"]["remarks"] == ["hard labels", "accuracy_others was not recorded"]
    assert row["notes"] == [
        "Companions with hard labels: random.",
        "† x is ranked behind rows that reach it: accuracy_others 20.0 % misses 50.0 %.",
        "† random beside x: accuracy_others was not recorded.",
    ]


def test_commands_make_the_same_spec(ddbench, site):
    rows = {row.run_id: row for row in read(site.parents[1] / "boards")}
    shown = json.loads(re.search(r'id="data">(.*?)</script>', site.read_text())[1])
    entries = [entry for group in shown["groups"] for entry in group]
    assert len(entries) == len(rows) == 8
    for entry in [e for e in entries if e["method"] == "unrolled_gd" or e["objective"] == "poisoning"]:
        planned = ddbench(*shlex.split(entry["command"])[1:], "--dry-run", "--json").json()
        assert planned["fingerprint"] == rows[entry["run_id"]].fingerprint


@pytest.mark.parametrize(
    "fields",
    [
        {
            "network": {"name": "convnet", "options": {"width": 8}},
            "init": {"name": "mixture", "options": {"of": ["random", {"name": "fixed", "options": {"seed": 2}}]}},
            "eval_init": {"name": "random", "options": {"scheme": "kaiming"}},
            "sample_shape": [3, 16, 16],
            "validation": 0.2,
            "time_limit": "90s",
        },
        {"target": {"name": "usps_to_mnist", "options": {"count": 60}}, "eval_networks": 7, "seed": 3},
        {"target": {"name": "pretrained", "options": {"weights": "a b.pth", "size": 16}}, "dataset": "digits"},
    ],
)
def test_commands_spell_out_what_is_not_by_default(ddbench, catalog, fields):
    from ddbench.contract.spec import RunSpec
    from ddbench.pipeline.plan import plan_run
    from ddbench.render.site import _command

    spec = plan_run(RunSpec.parse({"method": "herding", **fields}), catalog).settings
    command = _command(spec, "ddbench 0.1.0", catalog)
    words = shlex.split(command)
    # A sweep's plan completes specs without needing data or weights to be there.
    assert _command(spec, "mine.py@1234abcd", catalog).startswith("ddbench run --plugin mine.py ")
    assert _command(spec, "pack.mine@1234abcd", catalog).startswith("ddbench run --plugin pack.mine ")
    planned = ddbench(*words[1:], "--sweep", f"seed={spec.seed}", "--dry-run", "--json").json()
    assert [run["fingerprint"] for run in planned["runs"]] == [spec.fingerprint]


def test_the_command_writes_it(ddbench, site):
    boards = site.parents[1] / "boards"
    done = ddbench("leaderboard", "--html", "page", "--leaderboards", boards)
    assert done.out.strip() == "Wrote page/index.html"


def test_the_page_names_no_method(catalog: Catalog):
    page = (Path(ddbench.__file__).parent / "render/site.html.jinja").read_text()
    for method in catalog.components("method"):
        assert not re.search(rf"\b{method.name}\b", page), method.name
