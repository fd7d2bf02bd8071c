"""Carry records of earlier versions over to the current one: one function for each form and step, applied in a chain.

Version 2 had two forms: a row of a leaderboard's CSV, and the `result.json` of a run folder. Version 3 is one nested
record, `RunResult`, for both.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

from ddbench.contract.spec import Settings

VERSION = 3
"""Version of the records that this ddbench writes."""
Fields = dict[str, Any]

PARTS_2 = ("method", "dataset", "network", "init", "eval_init", "objective", "target")
"""The components of a row of version 2."""
ABSENT_2 = {
    **{f"{part}_options": "{}" for part in PARTS_2},
    **dict.fromkeys(("pretrained", "metrics", "companions", "environment"), "{}"),
    **dict.fromkeys(("created", "experiment", "method_source", "target", "std", "low", "high", "stopped_by"), ""),
    **dict.fromkeys(("outer_steps", "rollbacks", "seconds_distill", "seconds_evaluate", "peak_memory_mb"), "0"),
    "selected_on": "nothing",
    "label_regime": "hard",
    "higher_is_better": "True",
}
"""Cells of a row of version 2 that may be absent, with the default of that version."""
THRESHOLDS = {"attack_success": {"accuracy_others": 0.5}}
"""Thresholds of the metrics beside one that ranks, for records written before metrics had thresholds."""


def migrate(fields: Fields) -> Fields:
    """Return the fields of a record of any version as those of the current version.

    A newer version is returned as it is. Raises `ValueError` or `KeyError` for what is not a record.
    """
    version = fields.get("version", 2)
    while version < VERSION:
        fields = STEPS[version](fields)
        version = fields["version"]
    return with_thresholds(fields)


def with_thresholds(fields: Fields) -> Fields:
    """Return the fields of a record whose metrics have the thresholds that its own version did not know."""
    metrics = fields.get("metrics") or []
    thresholds = THRESHOLDS.get(metrics[0]["name"], {}) if metrics else {}
    if not thresholds:
        return fields
    return {**fields, "metrics": [{"threshold": thresholds.get(metric["name"]), **metric} for metric in metrics]}


def result_2_to_3(fields: Fields) -> Fields:
    """Carry a `result.json` of version 2 over."""
    fields, settings = dict(fields), fields["spec"]
    primary, scores = fields.pop("primary", ""), fields.get("scores", {})
    metrics = _metrics_2(primary, fields.pop("higher_is_better", True), scores)
    protocol = {"name": settings["protocol"], "hash": fields.pop("protocol_hash", "")}
    loop = {"steps": fields.pop("steps_done", 0)}
    for name in ("stopped_by", "rollbacks"):
        if name in fields:
            loop[name] = fields.pop(name)
    row = fields.pop("row", None) or {}
    kept = {name: value for name, value in fields.items() if name not in ("spec", "score", "selected")}
    return {
        **kept,
        "version": 3,
        "created": row.get("created", ""),
        "settings": settings,
        "fingerprint": Settings.model_validate(settings).fingerprint,
        "protocol": {**protocol, "selected": fields.get("selected", "")},
        "metrics": metrics,
        "loop": loop,
    }


def row_2_to_3(cells: Mapping[str, str], spec: str | None) -> Fields:
    """Carry a row of version 2 over, given its cells by column name and the spec that its artefact holds, if any.

    The row holds less than the record: the settings are those of the artefact where it is there, else those that the
    row holds; of companions and of metrics that do not rank, the means remain.

    Raises `ValueError` or `KeyError` for cells that no row of version 2 can have.
    """
    row = {**ABSENT_2, **cells}
    values, n = json.loads(row["values"]), int(row["n"])
    score = {"mean": float(row["mean"]), "n": n, "values": values}
    score |= {name: float(row[name]) if row[name] else None for name in ("std", "low", "high")}
    others = {name: {"mean": mean, "n": n} for name, mean in json.loads(row["metrics"]).items()}
    primary = row["metric"]
    settings = json.loads(spec) if spec is not None else settings_of_row_2(row).model_dump(mode="json")
    return {
        "version": 3,
        "status": "ok",
        "run_id": row["run_id"],
        "created": row["created"],
        "settings": {**settings, "experiment": row["experiment"]},
        "fingerprint": row["fingerprint"],
        "method_source": row["method_source"],
        "dataset": {
            "name": row["dataset"],
            "content_hash": row["dataset_hash"],
            "partial": "@" in row["dataset"],
            "train": int(row["train_images"]),
            "validation": int(row["validation_images"]),
            "test": int(row["test_images"]),
            "sample_shape": [int(size) for size in row["sample_shape"].split("x")],
        },
        "protocol": {"name": row["protocol"], "hash": row["protocol_hash"], "selected": row["selected_on"]},
        "metrics": _metrics_2(primary, row["higher_is_better"] == "True", others),
        "scores": {primary: score, **others},
        "before": {primary: {"mean": float(row["before"]), "n": n}},
        "companions": json.loads(row["companions"]),
        "pretrained": json.loads(row["pretrained"]),
        "loop": {
            "steps": int(row["outer_steps"]),
            "stopped_by": row["stopped_by"],
            "rollbacks": int(row["rollbacks"]),
        },
        "artifact": {
            "sha256": row["artifact_sha256"],
            "bytes": int(row["bytes"]),
            "images": int(row["images"]),
            "label_regime": row["label_regime"],
        },
        "seconds": {"distill": float(row["seconds_distill"]), "evaluate": float(row["seconds_evaluate"])},
        "peak_memory_mb": float(row["peak_memory_mb"]),
        "environment": json.loads(row["environment"]),
    }


def settings_of_row_2(cells: Mapping[str, str]) -> Settings:
    """Return the settings of a row of version 2, as far as the row holds them.

    A row lacks the number of networks asked for, the shape that images were converted to, and the time limit. They
    are searched for, until the fingerprint is that of the row; where none gives it, they are as by default.
    """
    fields: Fields = {
        part: {"name": cells[part], "options": json.loads(cells[f"{part}_options"])} for part in PARTS_2 if cells[part]
    }
    fields["dataset"]["name"] = cells["dataset"].partition("@")[0]
    fields |= {name: int(cells[name]) for name in ("images_per_class", "steps", "epochs", "seed")}
    fields |= {"protocol": cells["protocol"]}
    shape = tuple(int(size) for size in cells["sample_shape"].split("x"))
    usual = Settings.model_fields["eval_networks"].default
    # Limits were whole minutes, and a run ends soon after its limit.
    limits = [None] + [float(cells["seconds_distill"]) // 60 * 60] * (cells["stopped_by"] == "time limit")
    guesses = [
        {**fields, "sample_shape": converted, "eval_networks": networks, "time_limit": limit}
        for limit, converted, networks in itertools.product(limits, (None, shape), (int(cells["n"]), usual))
    ]
    candidates = [Settings.model_validate(guess) for guess in guesses]
    return next((c for c in candidates if c.fingerprint == cells["fingerprint"]), candidates[0])


def _metrics_2(primary: str, higher_is_better: bool, names: Mapping[str, object]) -> list[Fields]:
    """Return the metrics of a record of version 2, whose units follow from their names alone."""
    return [
        {
            "name": name,
            "unit": "share" if "accuracy" in name or "success" in name else "",
            "higher_is_better": higher_is_better if name == primary else name != "loss",
            "beside": name != primary and name in ("accuracy", "accuracy_others"),
            "bounded_by_full_data": name == "accuracy",
        }
        for name in [primary, *(name for name in names if name != primary)]
        if name
    ]


STEPS: dict[int, Callable[[Fields], Fields]] = {2: result_2_to_3}
"""By version, the step to the next one."""
