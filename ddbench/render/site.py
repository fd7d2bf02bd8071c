"""The leaderboard as one static page that works from a file: records, pictures, curves and methods inside it."""

import base64
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
from ddbench.records.ranking import Line, groups, ranks
from ddbench.records.result import NO_ADAPTATION, RunResult
from ddbench.records.store import artifact_path, curve_path
from ddbench.render.pictures import contact_sheet
from ddbench.render.rankings import notes, title
from ddbench.render.tables import bounds, companion_remarks

if TYPE_CHECKING:
    from ddbench.discovery.catalog import Catalog


def write_site(
    folder: Path,
    records: Sequence[RunResult],
    published: Sequence[PublishedRow],
    leaderboards: Path,
    catalog: "Catalog",
) -> Path:
    """Write `index.html` into `folder` and return its path. The page fetches nothing when it is looked at."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ddbench.render", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    grouped = [
        [
            {
                **_entry(line, rank, leaderboards, catalog),
                "fairness": fairness_of_line(line.records, records),
            }
            for line, rank in zip(group, ranks(group), strict=True)
        ]
        for group in groups(records)
    ]
    methods = sorted({record.settings.method.name for record in records})
    content = {
        "groups": grouped,
        "published": [figure.model_dump() for figure in published],
        "methods": {name: card for name in methods if (card := _card(name, catalog)) is not None},
    }
    # No "<" can open or end an element: within a script "<!--" and "</" have meanings of their own.
    data = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    csv = {path.name: path.read_text() for path in sorted(leaderboards.glob("*.csv"))}
    text = environment.get_template("site.html.jinja").render(
        data=data,
        count=len(records),
        downloads={name: _data_url(raw.encode(), "text/csv") for name, raw in csv.items()},
    )
    path = folder / "index.html"
    atomic_write(path, text)
    return path


def _entry(line: Line, rank: int, leaderboards: Path, catalog: "Catalog") -> dict[str, Any]:
    record, metric = line.first, line.first.metric
    assert record.artifact is not None
    artifact = artifact_path(leaderboards, record.artifact.sha256)
    distilled = _pictured(artifact, catalog) if artifact.exists() else None
    curve = curve_path(leaderboards, record.artifact.sha256)
    whole = record.settings.fingerprint == record.fingerprint
    return {
        **{column.name: column.get(record) for column in COLUMNS if column.shown},
        "mean": line.score.mean,
        "std": line.score.std,
        **dict(zip(("low", "high"), bounds(metric, line.score) or (None, None), strict=True)),
        "rank": rank,
        "missed": bool(line.missed),
        "heading": title(record),
        "seeds": [{"seed": each.settings.seed, "mean": each.scores[each.primary].mean} for each in line.records],
        "percent": metric.unit == "share",
        "metrics": [
            {
                "name": other.name,
                "percent": other.unit == "share",
                "beside": other.beside,
                "mean": record.scores[other.name].mean,
            }
            for other in record.metrics[1:]
            if other.name in record.scores
        ],
        "companions": {
            name: {
                "mean": companion.mean,
                "missed": name != NO_ADAPTATION and bool(missed_thresholds(record.metrics, companion.metrics)),
                "remarks": companion_remarks(record.metrics, name, companion, record.artifact.label_regime),
            }
            for name, companion in record.companions.items()
        },
        "notes": list(notes([line])),
        "environment": record.environment,
        "pretrained": record.pretrained,
        "command": _command(record.settings, record.method_source, catalog) if whole else "",
        "picture": _picture(distilled, catalog),
        "curve": json.loads(curve.read_text()) if curve.exists() else None,
    }


def _pictured(artifact: Path, catalog: "Catalog") -> DistilledSet | None:
    """Load a set with its images; None where its decoder is not installed."""
    try:
        return decode(DistilledSet.load(artifact), catalog)
    except MissingPrerequisite:
        return None


def _picture(distilled: DistilledSet | None, catalog: "Catalog") -> str:
    """Return the pictures of a set as a data URL; empty where there are none, or its modality is not installed."""
    if distilled is None:
        return ""
    try:
        pixels = present(distilled, catalog).pixels
    except MissingPrerequisite:
        return ""
    return "" if pixels is None else _data_url(contact_sheet(distilled, pixels), "image/png")


def _data_url(raw: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


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
