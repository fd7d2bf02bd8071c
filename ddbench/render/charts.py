"""Charts of the leaderboard's page: Vega-Lite specifications without data, and the JavaScript that draws them.

The page fills in the data of the ranking that it shows. Words in braces, such as `{metric}`, are replaced there; so is
the data named `rows`. Colours are not set here: marks name a style, whose colour depends on light and dark.
"""

from functools import cache
from typing import Any

PLACES: dict[str, dict[str, Any]] = {
    "right": {"align": "left", "dx": 9},
    "left": {"align": "right", "dx": -9},
    "top": {"align": "center", "dy": -12},
    "bottom": {"align": "center", "dy": 13},
}
"""Where the label of a point may stand; the page chooses the first place that is free."""


def charts() -> dict[str, dict[str, Any]]:
    """Return the specifications by name: `ranking`, `cost`, `curve` and `curve_log`."""
    return {
        "ranking": _ranking(),
        "cost": _cost(),
        "curve": _curve("linear"),
        "curve_log": _curve("log"),
    }


@cache
def javascript() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, which defines `window.vegaEmbed` and no other name."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    # The bundle declares its variables at the top, where they would clash with those of other scripts.
    return "(() => {\n" + bundle.replace("</script", "<\\/script") + "\n})();\n"


def _ranking() -> dict[str, Any]:
    """Return scores with their 95 % intervals, a row for each method, and the companions as vertical lines."""
    import altair as alt

    rows = alt.Chart(alt.NamedData("rows")).encode(
        y=alt.Y("label:N", sort=None, title=None, axis=alt.Axis(labelLimit=170, grid=True, ticks=False)),
        tooltip=_tooltip("label", "metric", "interval", "gain", "rank"),
    )
    scale = alt.Scale(zero=False, nice=True)
    score = alt.X("score:Q", title="{metric}", scale=scale)
    references = alt.Chart(alt.NamedData("references")).encode(
        x=alt.X("score:Q", title="{metric}", scale=scale), tooltip=_tooltip("label", "metric")
    )
    return _plain(
        alt.layer(
            references.transform_filter("datum.kind == 'baseline'").mark_rule(style="baseline", strokeDash=[4, 3]),
            references.transform_filter("datum.kind == 'bound'").mark_rule(style="bound"),
            rows.mark_rule(style="interval", strokeWidth=4).encode(
                x=alt.X("low:Q", title="{metric}", scale=scale), x2="high:Q"
            ),
            rows.mark_point(style="method", filled=True, size=60).encode(x=score),
        ),
        height={"step": 22},
    )


def _cost() -> dict[str, Any]:
    """Return scores over a cost, with names and the Pareto front: the best score for at most that cost."""
    import altair as alt

    rows = alt.Chart(alt.NamedData("rows"))
    place = {
        "x": alt.X(
            "cost:Q",
            title="{cost}",
            scale=alt.Scale(type="log", padding=20),
            axis=alt.Axis(format="{format}", grid=False, labelOverlap="greedy"),
        ),
        "y": alt.Y("score:Q", title="{metric}", scale=alt.Scale(zero=False, padding=16)),
    }
    front = rows.transform_filter("datum.front").mark_line(style="front", interpolate="step-after")
    points = rows.mark_point(style="method", filled=True, size=70, opacity=1).encode(
        **place,
        fillOpacity=alt.condition("datum.front", alt.value(1.0), alt.value(0.35)),
        tooltip=_tooltip("label", "images per class", "metric", "interval", "seconds", "bytes"),
    )
    labels = [
        rows.transform_filter(f"datum.place == '{name}'")
        .mark_text(style="label", baseline="middle", fontSize=11, **facts)
        .encode(**place, text="name:N")
        for name, facts in PLACES.items()
    ]
    return _plain(alt.layer(front.encode(**place, order="cost:Q"), points, *labels), height=300)


def _curve(scale: str) -> dict[str, Any]:
    """Return a logged figure over the seconds of the distillation."""
    import altair as alt

    # The first and the last second are exact; an axis that is rounded up leaves a gap.
    chart = alt.Chart(alt.NamedData("rows")).mark_line(style="curve", strokeWidth=1.5)
    encoded = chart.encode(
        x=alt.X("seconds:Q", title="seconds", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=5)),
        y=alt.Y("value:Q", title="{figure}", scale=alt.Scale(type=scale, zero=False), axis=alt.Axis(tickCount=5)),
        tooltip=[alt.Tooltip("step:Q"), alt.Tooltip("seconds:Q"), alt.Tooltip("value:Q", title="{figure}")],
    )
    return _plain(encoded, height=150)


def _tooltip(*names: str) -> list[Any]:
    """Return fields that hold text; the method's name is the first."""
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title="method" if name == "label" else "{metric}" if name == "metric" else name)
            for name in names]  # fmt: skip


def _plain(chart: Any, **properties: Any) -> dict[str, Any]:
    """Return the specification as JSON values; its width is that of the element that it is drawn in."""
    sized = chart.properties(width="container", autosize={"type": "fit-x", "contains": "padding"}, **properties)
    spec: dict[str, Any] = sized.to_dict()
    return {key: value for key, value in spec.items() if key != "config"}
