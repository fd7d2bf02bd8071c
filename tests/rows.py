"""Rows made up for tests."""

from ddbench.records.leaderboard import JSON_COLUMNS, Row


def make_row(**changes: object) -> Row:
    fields: dict[str, object] = {}
    for name, field in Row.model_fields.items():
        fields[name] = {int: 1, float: 0.5, bool: True}.get(field.annotation, "x")  # type: ignore[arg-type]
    fields |= {**dict.fromkeys(JSON_COLUMNS, "{}"), "sample_shape": "1x8x8"}
    fields |= dict(
        std=0.1, low=0.4, high=0.6, n=2, values="[0.4, 0.6]", companions='{"random": {"mean": 0.2, "std": 0.1, "n": 2}}'
    )
    return Row.model_validate({**fields, **changes})
