"""The leaderboard as a static page that works from a file: the matrix, rankings, pictures, curves and methods."""

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.contract.metric import missed_thresholds
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import FLAGS, PARTS, Choice, RunSpec, Settings
from ddbench.discovery.decoders import decode
from ddbench.discovery.modalities import present
from ddbench.errors import MissingPrerequisite
from ddbench.machine.files import atomic_write
from ddbench.records.columns import COLUMNS
from ddbench.records.dd_ranking import fairness_of_line
from ddbench.records.leaderboard import PublishedRow
from ddbench.records.matrix import Matrix, baselines, cells, gain, network_of, usual
from ddbench.records.ranking import Line, compared, groups, ranks
from ddbench.records.result import FULL_DATA, NO_ADAPTATION, RunResult
from ddbench.records.store import artifact_path, curve_path
from ddbench.render.charts import charts, javascript
from ddbench.render.pictures import contact_sheet
from ddbench.render.rankings import beside_metrics, line_names, notes, title, title_parts
from ddbench.render.tables import bounds, companion_remarks

if TYPE_CHECKING:
    from ddbench.discovery.catalog import Catalog

PARTS_OF_ALL = 2
"""Leading parts of a ranking's title that the matrix shows in rows of their own: dataset and images per class."""


def write_site(
    place: Path,
    records: Sequence[RunResult],
    published: Sequence[PublishedRow],
    leaderboards: Path,
    catalog: "Catalog",
) -> Path:
    """Write the page and return its path. It needs no network.

    Into a folder: `index.html`, and beside it `vega.js`, `pictures/` and `curves/`, which the page loads as needed.
    Where `place` ends in `.html`, one file that holds everything.
    """
    import jinja2

    single = place.suffix == ".html"
    path = place if single else place / "index.html"
    beside = _Beside(None if single else place)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ddbench.render", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    rankings = Matrix.build(groups(records)).rankings
    by_protocol: dict[str, list[Sequence[Line]]] = {}
    for lines in rankings:
        by_protocol.setdefault(lines[0].first.settings.protocol, []).append(lines)
    methods = sorted({record.settings.method.name for record in records})
    content = {
        "usual": {
            "protocol": usual(rankings)[0],
            "networks": {protocol: usual(own)[1] for protocol, own in by_protocol.items()},
        },
        "rankings": [_ranking(lines, records, leaderboards, catalog, beside) for lines in rankings],
        "published": [figure.model_dump() for figure in published],
        "methods": {name: card for name in methods if (card := _card(name, catalog)) is not None},
        "charts": charts(),
        "curves": beside.curves,
    }
    script = javascript()
    if not single:
        atomic_write(place / "vega.js", script)
    csv = {path.name: path.read_text() for path in sorted(leaderboards.glob("*.csv"))}
    text = environment.get_template("site.html.jinja").render(
        # No "<" can open or end an element: within a script "<!--" and "</" have meanings of their own.
        data=json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        count=len(records),
        vega=script if single else "",
        downloads=beside.downloads(csv),
    )
    atomic_write(path, text)
    return path


class _Beside:
    """Files beside the page, or within it where it is a single file."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.curves: dict[str, Any] = {}
        """Curves within the page, by the hash of their set."""

    def _link(self, name: str, raw: bytes, kind: str) -> str:
        if self._folder is None:
            return f"data:{kind};base64,{base64.b64encode(raw).decode()}"
        atomic_write(self._folder / name, raw)
        return name

    def picture(self, key: str, png: bytes) -> str:
        """Keep a picture and return its address."""
        return self._link(f"pictures/{key}.png", png, "image/png")

    def curve(self, key: str, points: list[dict[str, Any]]) -> None:
        """Keep a curve. Beside the page it is a script: a page that was opened as a file may load no JSON."""
        if self._folder is None:
            self.curves[key] = points
            return
        text = f"curveLoaded({json.dumps(key)}, {json.dumps(points, allow_nan=False, separators=(',', ':'))});\n"
        self._link(f"curves/{key}.js", text.encode(), "text/javascript")

    def downloads(self, texts: dict[str, str]) -> dict[str, str]:
        """Keep text files and return their addresses by name."""
        return {name: self._link(name, text.encode(), "text/csv") for name, text in texts.items()}


def _ranking(
    lines: Sequence[Line], records: Sequence[RunResult], leaderboards: Path, catalog: "Catalog", beside: _Beside
) -> dict[str, Any]:
    """Return what the page says about a ranking, with its lines, best first."""
    record, metric = lines[0].first, lines[0].first.metric
    assert record.dataset is not None and record.artifact is not None
    same = json.dumps([(column.name, str(column.cell(record))) for column in compared(record)])
    chosen = cells(lines)
    entries = []
    for line, rank, name in zip(lines, ranks(lines), line_names(lines), strict=True):
        cell = chosen[line.first.settings.method.name]
        stands = line is cell.line
        entries.append(
            {
                **_entry(line, name, leaderboards, catalog, beside),
                "rank": rank,
                "gain": cell.gain if stands else gain(line),
                "fairness": fairness_of_line(line.records, records),
                # The line that stands for its method in the matrix, and of how many.
                "stands": stands,
                "lines": cell.lines,
            }
        )
    return {
        "key": hashlib.sha256(same.encode()).hexdigest()[:10],
        "heading": title(record),
        "parts": title_parts(record)[PARTS_OF_ALL:],
        "dataset": record.dataset.name,
        "data": "part" if record.dataset.partial else "full",
        "budget": record.settings.images_per_class,
        "protocol": record.settings.protocol,
        "network": network_of(record),
        "objective": record.settings.objective.name,
        "labels": record.artifact.label_regime,
        "metric": metric.name,
        "percent": metric.unit == "share",
        "higher": metric.higher_is_better,
        "beside": [other.name for other in beside_metrics(lines)],
        "notes": list(notes(lines)),
        "lines": entries,
    }


def _entry(line: Line, name: str, leaderboards: Path, catalog: "Catalog", beside: _Beside) -> dict[str, Any]:
    record, metric = line.first, line.first.metric
    assert record.artifact is not None
    key = record.artifact.sha256
    artifact, curve = artifact_path(leaderboards, key), curve_path(leaderboards, key)
    distilled = _pictured(artifact, catalog) if artifact.exists() else None
    if curve.exists():
        beside.curve(key, json.loads(curve.read_text()))
    whole = record.settings.fingerprint == record.fingerprint
    own = baselines(record.companions)
    return {
        **{column.name: column.get(record) for column in COLUMNS if column.shown and column.compares != "ranking"},
        "name": name,
        "mean": line.score.mean,
        "std": line.score.std,
        **dict(zip(("low", "high"), bounds(metric, line.score) or (None, None), strict=True)),
        "missed": bool(line.missed),
        "seeds": [{"seed": each.settings.seed, "mean": each.scores[each.primary].mean} for each in line.records],
        "metrics": [
            {"name": other.name, "percent": other.unit == "share", "mean": record.scores[other.name].mean}
            for other in record.metrics[1:]
            if other.name in record.scores
        ],
        "companions": {
            name: {
                "kind": "baseline" if name in own else "bound" if name == FULL_DATA else "other",
                "mean": companion.mean,
                "missed": name != NO_ADAPTATION and bool(missed_thresholds(record.metrics, companion.metrics)),
                "remarks": companion_remarks(record.metrics, name, companion, record.artifact.label_regime),
            }
            for name, companion in record.companions.items()
        },
        "options": record.settings.method.options,
        "environment": record.environment,
        "pretrained": record.pretrained,
        "command": _command(record.settings, record.method_source, catalog) if whole else "",
        "picture": _picture(key, distilled, beside, catalog) if distilled else None,
        "curve": key if curve.exists() else "",
    }


def _pictured(artifact: Path, catalog: "Catalog") -> DistilledSet | None:
    """Load a set with its images; None where its decoder is not installed."""
    try:
        return decode(DistilledSet.load(artifact), catalog)
    except MissingPrerequisite:
        return None


def _picture(key: str, distilled: DistilledSet, beside: _Beside, catalog: "Catalog") -> dict[str, Any] | None:
    """Return the pictures of a set, kept beside the page; None where there are none, or its modality is missing."""
    try:
        pixels = present(distilled, catalog).pixels
    except MissingPrerequisite:
        return None
    if pixels is None:
        return None
    sheet = contact_sheet(distilled, pixels)
    return {
        "address": beside.picture(key, sheet.png),
        "labels": sheet.labels,
        "size": sheet.size,
        "classes": json.loads(distilled.metadata.get("classes", "[]")),
    }


def _card(method: str, catalog: "Catalog") -> dict[str, Any] | None:
    component = next((c for c in catalog.components("method") if c.name == method), None)
    if component is None:
        return None
    fields = component.options.model_json_schema().get("properties", {})
    options = [
        {"name": name, "default": json.dumps(field.get("default")), "meaning": field.get("description", "")}
        for name, field in fields.items()
    ]
    return {"help": component.help, "source": component.distribution, "options": options}


def _command(settings: Settings, source: str, catalog: "Catalog") -> str:
    """Return the command that runs settings again, without what is as by default."""
    path, at, _ = source.rpartition("@")
    words = ["ddbench run", *([f"--plugin {shlex.quote(path)}"] if at else [])]
    for name, flag in FLAGS.items():
        value, usual = (
            v.name if isinstance(v, Choice) else v
            for v in (getattr(settings, name), RunSpec.model_fields[name].default)
        )
        if value not in (None, usual) and not _implied(name, settings):
            words.append(f"--{flag} {_quoted(value)}")
    for part in PARTS:
        choice = getattr(settings, part)
        if choice is None or (_implied(part, settings) and part != "network"):
            continue
        known = next((c for c in catalog.components(part.removeprefix("eval_")) if c.name == choice.name), None)
        defaults = known.validated({}) if known is not None else {}
        options = known.recorded(choice.options) if known is not None else choice.options
        changed = {k: v for k, v in options.items() if k not in defaults or defaults[k] != v}
        prefix = "" if part == "method" else f"{part}."
        words += [f"--set {prefix}{key}={_quoted(value)}" for key, value in changed.items()]
    for name in ("validation", "sample_shape", "protocol_content"):
        value, usual = getattr(settings, name), RunSpec.model_fields[name].default
        if value != usual and not (name == "sample_shape" and settings.target is not None):
            words.append(f"--set {name}={_quoted(value)}")
    return " ".join(words)


def _implied(name: str, settings: Settings) -> bool:
    """Return whether other settings imply this one: a target sets network and init, scoring uses them too."""
    if name.startswith("eval_") and (part := name.removeprefix("eval_")) in PARTS:
        return bool(getattr(settings, name) == getattr(settings, part))
    return settings.target is not None and name in ("network", "init")


def _quoted(value: Any) -> str:
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))
