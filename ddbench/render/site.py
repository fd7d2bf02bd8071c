"""The leaderboard as one static page that works from a file: rows, pictures, curves, methods, all inside it."""

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.data import DistilledSet
from ddbench.files import atomic_write
from ddbench.leaderboard import PublishedRow, Row, groups, ranks
from ddbench.render.pictures import draw_images
from ddbench.render.tables import in_percent
from ddbench.results import curve_path

if TYPE_CHECKING:
    from ddbench.catalog import Catalog
    from ddbench.options import Component

SHOWN = (
    "run_id", "experiment", "created", "method", "method_source", "dataset", "network", "sample_shape", "init",
    "eval_init", "objective", "target", "images_per_class", "steps", "epochs", "label_regime", "protocol",
    "selected_on", "metric", "higher_is_better", "n", "mean", "std", "low", "high", "before", "images", "bytes",
    "outer_steps", "stopped_by", "rollbacks", "seconds_distill", "seconds_evaluate", "peak_memory_mb", "seed",
    "fingerprint",
)  # fmt: skip
"""Columns of a row that the page carries as they are."""


def write_site(
    folder: Path, rows: Sequence[Row], published: Sequence[PublishedRow], leaderboards: Path, catalog: "Catalog"
) -> Path:
    """Write `index.html` into `folder` and return its path. Nothing is fetched when it is looked at."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ddbench.render", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    grouped = [
        [_entry(row, rank, leaderboards, catalog) for row, rank in zip(group, ranks(group), strict=True)]
        for group in groups(rows).values()
    ]
    methods = sorted({row.method for row in rows})
    content = {
        "groups": grouped,
        "published": [figure.model_dump() for figure in published],
        "methods": {name: card for name in methods if (card := _card(name, catalog)) is not None},
    }
    # A script element ends at the first "</", whatever stands around it.
    data = json.dumps(content, allow_nan=False).replace("</", "<\\/")
    csv = {path.name: path.read_text() for path in sorted(leaderboards.glob("*.csv"))}
    text = environment.get_template("site.html.jinja").render(
        data=data, count=len(rows), downloads={name: _data_url(raw.encode(), "text/csv") for name, raw in csv.items()}
    )
    path = folder / "index.html"
    atomic_write(path, text)
    return path


def _entry(row: Row, rank: int, leaderboards: Path, catalog: "Catalog") -> dict[str, Any]:
    artifact = leaderboards / "artifacts" / f"{row.artifact_sha256}.safetensors"
    curve = curve_path(leaderboards, row.artifact_sha256)
    return {
        **{name: getattr(row, name) for name in SHOWN},
        "rank": rank,
        "percent": in_percent(row.metric),
        "options": json.loads(row.method_options),
        "metrics": json.loads(row.metrics),
        "companions": row.companion_scores(),
        "environment": json.loads(row.environment),
        "pretrained": json.loads(row.pretrained),
        "command": _command(row, catalog),
        "picture": _picture(artifact) if artifact.exists() else "",
        "curve": json.loads(curve.read_text()) if curve.exists() else None,
    }


def _picture(artifact: Path) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "images.png"
        draw_images(DistilledSet.load(artifact), path, dpi=60)
        return _data_url(path.read_bytes(), "image/png")


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


def _command(row: Row, catalog: "Catalog") -> str:
    """The command that runs the row's spec again; options that are as by default are left out."""
    path, at, _ = row.method_source.rpartition("@")
    parts = ["ddbench run", *([f"--plugin {path}"] if at else []), f"--method {row.method}"]
    if row.target:
        parts += [f"--target {row.target}"]
    else:
        parts += [f"--network {row.network}", f"--init {row.init}"]
    parts += [f"--dataset {row.dataset.split('@')[0]}"] if row.target in ("", "pretrained") else []
    if row.eval_init not in (row.init, row.target):
        parts.append(f"--eval-init {row.eval_init}")
    if row.objective != "classification":
        parts.append(f"--objective {row.objective}")
    parts.append(f"--ipc {row.images_per_class} --steps {row.steps} --epochs {row.epochs}")
    parts.append(f"--protocol {row.protocol} --eval-networks {row.n} --seed {row.seed}")
    sets = [_sets("", catalog, "method", row.method, row.method_options)]
    if row.target:
        sets.append(_sets("target.", catalog, "target", row.target, row.target_options))
    else:
        sets.append(_sets("init.", catalog, "init", row.init, row.init_options))
        sets.append(_sets("network.", catalog, "network", row.network, row.network_options))
    sets.append(_sets("objective.", catalog, "objective", row.objective, row.objective_options))
    return " ".join([*parts, *(text for group in sets for text in group)])


def _sets(prefix: str, catalog: "Catalog", kind: str, name: str, options: str) -> list[str]:
    component = next((c for c in catalog.components(kind) if c.name == name), None)
    defaults = _defaults(component) if component is not None else {}
    return [
        f"--set {prefix}{key}={_quoted(value)}"
        for key, value in json.loads(options).items()
        if key not in defaults or defaults[key] != value
    ]


def _defaults(component: "Component") -> Mapping[str, Any]:
    return component.validated({})


def _quoted(value: Any) -> str:
    import shlex

    return shlex.quote(value if isinstance(value, str) else json.dumps(value))
