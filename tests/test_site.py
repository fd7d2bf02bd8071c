"""The leaderboard page in a real browser, and the data that it is drawn from."""

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
    """Return the runs of the ranking that is shown, in its order."""
    return [row.get_attribute("data-run") for row in page.locator("#ranking tr[data-run]").all()]


def content(path: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text())[1])


def cells(page) -> dict[str, list[str]]:
    """Return the texts of the matrix, by method."""
    rows = page.locator("#matrix tbody tr").all()
    return {row.get_attribute("data-method"): row.locator("td").all_text_contents()[1:] for row in rows}


def test_the_page_opens_with_the_matrix(page, site):
    rows = {row.run_id: row for row in read(site.parents[1] / "boards")}
    assert page.locator("main > section").first.get_attribute("id") == "matrix"
    texts = cells(page)
    assert texts.keys() == {"random_subset", "herding", "average_real", "unrolled_gd"}
    [one] = [r for r in rows.values() if r.settings.method.name == "herding" and "ipc4" in r.run_id]
    score, companion = one.scores[one.primary], one.companions["random_subset"]
    half = 50 * (min(score.high, 1.0) - max(score.low, 0.0))
    assert f"{100 * score.mean:.1f} ±{half:.1f}" in texts["herding"]
    # On hover and on focus the whole interval, the gain and the rank.
    link = page.locator("#matrix tr[data-method=herding] td a").last
    link.focus()
    tip = page.locator("#tip")
    assert tip.is_visible()
    gain = 100 * (score.mean - companion.mean)
    assert f"{'+' if gain >= 0 else '−'}{abs(gain):.1f} points over random real images" in tip.text_content()
    assert "95 % interval" in tip.text_content() and "rank" in tip.text_content()
    colours = page.locator("#matrix tr[data-method=herding] td[style]").evaluate_all(
        "cells => cells.map(cell => getComputedStyle(cell).backgroundColor)"
    )
    assert len(colours) == 3 and len(set(colours)) > 1
    page.select_option("select[name=show]", "gain")
    assert f"{'+' if gain >= 0 else '−'}{abs(gain):.1f}" in cells(page)["herding"]
    assert "show=gain" in page.url


def test_filters_and_the_ranking_stay_in_the_address(page, site):
    assert len(shown(page)) == 4 and "3 rankings, 8 lines" in page.text_content("#status")
    page.locator("#matrix tr[data-method=average_real] td a").last.click()
    four = shown(page)
    assert len(four) == 3 and all("ipc4" in run_id for run_id in four)
    assert page.locator("#ranking tr[aria-current]").get_attribute("data-run").startswith("average_real")
    page.select_option("select[name=objective]", "classification")
    page.locator("#ranking button[data-sort=seconds]").click()
    address = page.url
    assert {"objective=classification", "sort=seconds.-1"} <= set(address.split("#")[1].split("&"))
    ordered = shown(page)
    page.goto("about:blank")
    page.goto(address)
    assert page.input_value("select[name=objective]") == "classification" and shown(page) == ordered
    page.evaluate("location.hash = '#objective=poisoning&protocol=replay/v1'")
    page.wait_for_function("document.querySelectorAll('#ranking tr[data-run]').length === 1")
    # What no row has filters nothing.
    page.evaluate("location.hash = '#protocol=absent/v9&network=absent&ranking=0&method=absent&run=absent&class=99'")
    page.wait_for_function("document.querySelectorAll('#ranking tr[data-run]').length > 1")


def test_tables_sort(page):
    table = page.locator("#ranking table")
    by_rank = shown(page)
    table.get_by_role("button", name="Time").click()
    assert table.locator("th[aria-sort=descending]").get_attribute("data-key") == "seconds"
    assert shown(page)[0].startswith("unrolled_gd")
    table.get_by_role("button", name="Time").press("Enter")
    assert shown(page)[-1].startswith("unrolled_gd")
    table.get_by_role("button", name="#").click()
    assert sorted(shown(page)) == sorted(by_rank)
    page.locator("#matrix button[data-sort=method]").click()
    assert list(cells(page)) == sorted(cells(page))
    columns = page.locator("#matrix thead tr").nth(1).locator("button")
    columns.first.click()
    scores = [float(row[0].split(" ")[0]) for row in cells(page).values() if row[0]]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)


def test_the_same_class_by_every_method_is_seen_without_opening_anything(page):
    names = page.locator("#pictures .name a").all_text_contents()
    assert sorted(names) == ["average_real", "herding", "random_subset", "unrolled_gd"]
    assert page.locator("#pictures .tile").count() == 40
    first = page.locator("#pictures .tile").first
    assert "pictures/" in first.evaluate("tile => getComputedStyle(tile).backgroundImage")
    page.select_option("select[name=class]", "3")
    labels = page.locator("#pictures .tile").evaluate_all("tiles => tiles.map(tile => tile.ariaLabel)")
    assert sorted(labels) == [f"3 by {name}" for name in sorted(names)]


def test_charts_are_drawn_with_names_and_the_pareto_front(page, site):
    page.wait_for_function("document.querySelectorAll('#ranking .vega svg').length === 3")
    words = page.locator("#ranking .vega").nth(1).text_content()
    assert "seconds, logarithmic" in words
    page.wait_for_function("document.querySelectorAll('#ranking .vega')[1].textContent.includes('unrolled_gd')")
    [lines] = [r["lines"] for r in content(site)["rankings"] if r["budget"] == 1 and r["objective"] == "classification"]
    points = [(max(0.01, line["seconds_distill"] + line["seconds_saved"]), line["mean"]) for line in lines]
    front = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)]
    assert page.locator("#ranking .vega").nth(1).locator("svg .mark-line path").count() == 1
    symbols = page.locator("#ranking .vega").nth(1).locator("svg .mark-symbol path")
    filled = symbols.evaluate_all("paths => paths.map(path => path.getAttribute('fill-opacity') ?? '1')")
    assert len(filled) == len(points) and filled.count("1") == len(front)
    page.locator("#ranking .vega").nth(1).locator("svg .mark-symbol path").first.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "interval" in page.text_content("#vg-tooltip-element")


def test_a_method_has_card_scores_pictures_curves_and_cost(page):
    page.locator("#matrix th a", has_text="unrolled_gd").click()
    method = page.locator("#method")
    assert "Learn images" in method.locator(".card").text_content()
    assert "outer_steps = " in method.locator("dl").first.text_content()
    assert method.locator("tr[data-score]").count() == 1
    assert "MB" in method.locator("tr[data-score]").text_content()
    page.wait_for_function("document.querySelectorAll('#method .curves .vega svg').length >= 2")
    picture = method.locator("img")
    picture.scroll_into_view_if_needed()
    picture.evaluate("image => image.decode()")
    assert picture.evaluate("image => image.naturalWidth > 100")
    assert "distilled images" in picture.get_attribute("alt")


def test_a_run_opens_to_picture_curve_and_command(page):
    row = page.locator("#ranking tr[data-run^=unrolled_gd]")
    row.get_by_role("link", name="Details of").click()
    dialog = page.locator("dialog#run")
    assert dialog.is_visible() and "run=unrolled_gd" in page.url
    command = dialog.locator("pre.command").text_content()
    assert command.startswith("ddbench run --method unrolled_gd ")
    assert "--network linear --ipc 1 --steps 1" in command
    assert "--set outer_steps=40" in command
    page.wait_for_function("document.querySelectorAll('dialog .vega svg').length >= 2")
    dialog.get_by_role("button", name="Copy").click()
    dialog.get_by_role("button", name="Copied").wait_for(timeout=5000)
    page.keyboard.press("Escape")
    page.wait_for_function("!location.hash.includes('run=')")
    assert not dialog.is_visible()


def test_what_was_published_stands_apart(page, site):
    assert page.locator("#published table").count() == 0
    dataset = content(site)["published"][0]["dataset"]
    page.evaluate("location.hash = '#objective=classification'")
    assert dataset != "digits"
    assert page.locator("a[download]").first.get_attribute("href") == "classification.csv"


@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_fits_and_turns_dark(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What a ranking is about is seen without scrolling sideways.
    assert page.evaluate("(box => box.scrollWidth - box.clientWidth)(document.querySelector('#ranking .scroll'))") <= 8
    page.get_by_role("link", name="Details of").first.click()
    assert page.locator("dialog#run").bounding_box()["width"] <= width
    page.keyboard.press("Escape")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != before


def test_texts_have_contrast(page):
    """WCAG asks for 4.5 of text; every text of the matrix on its own ground, light and dark."""
    contrast = """() => {
        const parts = text => { const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
            canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
        const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
        const ground = node => { for (; node; node = node.parentElement) { const c = getComputedStyle(node).backgroundColor;
            if (c !== "rgba(0, 0, 0, 0)") return c; } return "white"; };
        return Math.min(...[...document.querySelectorAll("#matrix a, #matrix small, #matrix button, #matrix p, #ranking p, h2")].map(node => {
            const [a, b] = [getComputedStyle(node).color, ground(node)].map(c => light(parts(c)) + .05);
            return Math.max(a, b) / Math.min(a, b); }));
    }"""
    assert page.evaluate(contrast) >= 4.5
    page.click("#theme")
    assert page.evaluate(contrast) >= 4.5


def test_everything_has_a_name(page):
    nameless = page.evaluate(
        """[...document.querySelectorAll('select, button, img, a, [role=img], section')].filter(node =>
            !(node.labels?.length || node.textContent.trim() || node.alt || node.getAttribute('aria-label'))
            && node.childNodes.length).length"""
    )
    assert nameless == 0
    assert page.locator("table").count() == page.locator("table caption").count() == 3
    assert page.get_attribute("html", "lang") == "en"


def test_one_file_holds_everything(browser, site, tmp_path, catalog):
    boards = site.parents[1] / "boards"
    alone = write_site(tmp_path / "alone.html", read(boards), published(boards), boards, catalog)
    assert [path.name for path in tmp_path.iterdir()] == ["alone.html"]
    opened = browser.new_page()
    requests: list[str] = []
    opened.on("request", lambda request: requests.append(request.url.split(",")[0]))
    opened.goto(alone.as_uri() + "#method=unrolled_gd")
    opened.wait_for_function("document.querySelectorAll('#method .curves .vega svg').length >= 2")
    assert opened.locator("#pictures .tile").count() == 40
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in requests) == 1
    opened.close()


def test_a_page_without_records_says_so(browser, tmp_path, catalog):
    opened = browser.new_page()
    opened.goto(write_site(tmp_path / "page", [], [], tmp_path, catalog).as_uri())
    assert opened.text_content("h2") == "There are no records yet"
    assert not opened.locator("#filters").is_visible()
    opened.close()


def test_a_thousand_rows_fit_into_five_megabytes(tmp_path, catalog):
    rows = [
        make_record(method=f"method_{i % 40}", images_per_class=1 + i // 40, fingerprint=f"{i:064}", run_id=f"run-{i}")
        for i in range(1000)
    ]
    environment = {"ddbench": "0.1.0", "processor": "x" * 40, "system": "Linux", "commit": "0" * 40, "threads": "1"}
    rows = [row.model_copy(update={"environment": environment}) for row in rows]
    path = write_site(tmp_path / "page", rows, [], tmp_path, catalog)
    assert sum(len(ranking["lines"]) for ranking in content(path)["rankings"]) == 1000
    assert path.stat().st_size + (path.parent / "vega.js").stat().st_size < 5e6


def test_seeds_share_a_line(ddbench, tmp_path):
    for seed in (0, 1):
        ddbench("run", "-m", "herding", "--network", "linear", "--eval-networks", 3, "--seed", seed)
    told = ddbench("leaderboard").out
    assert "2 x 3" in told and "and 1 other" in told
    assert ddbench("leaderboard", "--html", "page").code == 0
    [ranking] = content(tmp_path / "page" / "index.html")["rankings"]
    [line] = ranking["lines"]
    assert [one["seed"] for one in line["seeds"]] == [0, 1]
    assert line["mean"] == pytest.approx(sum(one["mean"] for one in line["seeds"]) / 2)


def test_the_page_names_thresholds_that_are_missed_and_labels_of_companions(tmp_path: Path, catalog):
    record = make_record(metric="attack_success", metrics='{"accuracy_others": 0.2}', label_regime="stored soft")
    [ranking] = content(write_site(tmp_path / "page", [record], [], tmp_path, catalog))["rankings"]
    [row] = ranking["lines"]
    assert row["missed"] and row["companions"]["random"]["missed"]
    assert row["companions"]["random"]["remarks"] == ["hard labels", "accuracy_others was not recorded"]
    assert ranking["notes"] == [
        "Companions with hard labels: random.",
        "† x is ranked behind rows that reach it: accuracy_others 20.0 % misses 50.0 %.",
        "† random beside x: accuracy_others was not recorded.",
    ]


def test_commands_make_the_same_spec(ddbench, site):
    rows = {row.run_id: row for row in read(site.parents[1] / "boards")}
    rankings = content(site)["rankings"]
    assert sum(len(ranking["lines"]) for ranking in rankings) == len(rows) == 8
    few = [
        r for r in rankings if r["objective"] == "poisoning" or any(e["method"] == "unrolled_gd" for e in r["lines"])
    ]
    for entry in [e for r in few for e in r["lines"] if r["objective"] == "poisoning" or e["method"] == "unrolled_gd"]:
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
    alone = ddbench("leaderboard", "--html", "alone.html", "--dataset", "digits", "--leaderboards", boards)
    assert alone.out.strip() == "Wrote alone.html"


def test_the_page_names_no_method(catalog: Catalog):
    folder = Path(ddbench.__file__).parent / "render"
    page = "".join(path.read_text() for path in folder.glob("site.*") if path.suffix != ".py")
    for method in catalog.components("method"):
        assert not re.search(rf"\b{method.name}\b", page), method.name
