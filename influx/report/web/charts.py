"""Interactive charts as Vega-Lite specifications. Each takes a table and computes nothing.

Colours are words that begin with `$` (`$accent`, `$ceiling`, `$muted`, `$text`): the page's script puts those of the light or the dark
theme in their place. Widths are their container's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from influx.report.tables import significant

Spec = dict[str, Any]
ROW = 30  # pixels of a row
MOST_TICKS = 8  # swept numbers that all have a tick
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
CEILINGS = ["noise_ceiling", "ceiling_low", "ceiling_high"]


def agreement(table: pd.DataFrame, single: pd.DataFrame, *, statistic: str, limits: tuple[float, float], description: str) -> Spec:
    """Values with their intervals, a row a `label` in the table's order, beside the noise ceiling as a band.

    `table`: `label, value, ci_low, ci_high, noise_ceiling, ceiling_low, ceiling_high`; `single`: `label, value`, one mark a seed.
    """
    labels = list(dict.fromkeys(table["label"]))
    y = {"field": "label", "type": "nominal", "sort": labels, "title": None, "axis": {"ticks": False, "domain": False}}
    scale = {"domain": list(limits), "nice": False}
    x = {"field": "value", "type": "quantitative", "scale": scale, "title": statistic, "axis": {"tickCount": 6}}
    layers: list[Spec] = [
        {
            "transform": [_known("ceiling_low")],
            "mark": {"type": "bar", "color": "$ceiling", "opacity": 0.3, "height": {"band": 1}, "clip": True},
            "encoding": {"x": {**x, "field": "ceiling_low"}, "x2": {"field": "ceiling_high"}},
        },
        {
            "transform": [_known("noise_ceiling")],
            "mark": {"type": "tick", "color": "$ceiling", "thickness": 2, "height": {"band": 1}},
            "encoding": {"x": {**x, "field": "noise_ceiling"}},
        },
        {
            "data": {"values": records(single, ["label", "value"])},
            "mark": {"type": "tick", "color": "$accent", "opacity": 0.6, "thickness": 1, "height": {"band": 0.35}},
            "encoding": {"x": x},
        },
        {
            "transform": [_known("ci_low")],
            "mark": {"type": "rule", "color": "$accent", "strokeWidth": 2.5},
            "encoding": {"x": {**x, "field": "ci_low"}, "x2": {"field": "ci_high"}},
        },
        {"mark": {"type": "point", "filled": True, "color": "$accent", "size": 70, "opacity": 1}, "encoding": {"x": x}},
    ]
    height = {"step": ROW}
    return _spec(description, height=height, data={"values": _told(table, ["label"])}, encoding={"y": y, "tooltip": TOOLTIP}, layer=layers)


def along(table: pd.DataFrame, *, statistic: str, key: str, logarithmic: bool, limits: tuple[float, float], description: str) -> Spec:
    """Values against a swept number `at`, a line and its band for each `label`, with the noise ceilings dashed above."""
    kind: Spec = {"padding": 14, **({"type": "log"} if logarithmic else {"zero": False})}
    places = sorted(map(float, table["at"].unique()))
    axis: Spec = {"grid": False, "format": "~g", **({"values": places} if len(places) <= MOST_TICKS else {"tickCount": 6})}
    x = {"field": "at", "type": "quantitative", "scale": kind, "title": key, "axis": axis}
    y = {"field": "value", "type": "quantitative", "scale": {"domain": list(limits), "nice": False}, "title": statistic}
    several = table["label"].nunique() > 1
    colour: Spec = (
        {"color": {"field": "label", "type": "nominal", "legend": {"title": None, "orient": "top", "columns": 3}}} if several else {}
    )
    solid: Spec = {} if several else {"color": "$accent"}
    layers: list[Spec] = [
        {
            "transform": [_known("ceiling_low")],
            "mark": {"type": "area", "color": "$ceiling", "opacity": 0.25, "clip": True},
            "encoding": {"y": {**y, "field": "ceiling_low"}, "y2": {"field": "ceiling_high"}, "detail": {"field": "label"}},
        },
        {
            "transform": [_known("noise_ceiling")],
            "mark": {"type": "line", "color": "$ceiling", "strokeDash": [5, 4]},
            "encoding": {"y": {**y, "field": "noise_ceiling"}, "detail": {"field": "label"}},
        },
        {
            "transform": [_known("ci_low")],
            "mark": {"type": "rule", "strokeWidth": 2, **solid},
            "encoding": {"y": {**y, "field": "ci_low"}, "y2": {"field": "ci_high"}, **colour},
        },
        {"mark": {"type": "line", "point": {"size": 60}, **solid}, "encoding": {"y": y, **colour}},
    ]
    data = {"values": _told(table, ["label", "at"])}
    return _spec(description, height=300, data=data, encoding={"x": x, "tooltip": TOOLTIP}, layer=layers)


def cost(table: pd.DataFrame, *, statistic: str, limits: tuple[float, float], description: str) -> Spec:
    """Values against the seconds of their estimates, a colour and a shape for each `method`."""
    methods = list(dict.fromkeys(table["method"]))
    legend = {"title": None, "orient": "top", "columns": 4}
    spread = table["seconds"].max() > 20 * table["seconds"].min() > 0
    encoding = {
        "x": {
            "field": "seconds", "type": "quantitative", "title": "seconds of the estimate" + (" (logarithmic)" if spread else ""),
            "scale": {"type": "log"} if spread else {"zero": True}, "axis": {"format": "~g", "tickCount": 5, "grid": False},
        },
        "y": {"field": "value", "type": "quantitative", "title": statistic, "scale": {"domain": list(limits), "nice": False}},
        "color": {"field": "method", "type": "nominal", "scale": {"domain": methods}, "legend": legend},
        "shape": {"field": "method", "type": "nominal", "scale": {"domain": methods, "range": SHAPES}, "legend": legend},
        "tooltip": TOOLTIP,
    }  # fmt: skip
    data = {"values": _told(table, ["label", "seconds", "method"])}
    return _spec(description, height=280, data=data, mark={"type": "point", "filled": True, "size": 80, "opacity": 0.9}, encoding=encoding)


def scatter(*, unit: str) -> Spec:
    """Predicted against actual change. The page's script fills in the pairs of the run that is chosen: data `pairs` with `predicted`,
    `actual` and their `row`, and `identity` with the two ends of the line where both are equal (empty where the scale is not claimed)."""
    said = f" ({unit})" if unit else ""

    def axis(field: str) -> Spec:
        what = {"axis": {"format": "~g", "tickCount": 5}, "scale": {"nice": True, "zero": True}}
        return {"field": field, "type": "quantitative", "title": f"{field} change{said}", **what}

    zero = {"type": "rule", "color": "$muted", "opacity": 0.6}
    layers: list[Spec] = [
        {"data": {"values": [{}]}, "mark": zero, "encoding": {"x": {"datum": 0}}},
        {"data": {"values": [{}]}, "mark": zero, "encoding": {"y": {"datum": 0}}},
        {
            "data": {"name": "identity", "values": []},
            "mark": {"type": "line", "color": "$muted", "strokeDash": [5, 4], "clip": True},
            "encoding": {"x": axis("predicted"), "y": axis("actual")},
        },
        {
            "data": {"name": "pairs", "values": []},
            "mark": {"type": "point", "filled": True, "color": "$accent", "size": 34, "opacity": 0.55, "tooltip": {"content": "data"}},
            "encoding": {"x": axis("predicted"), "y": axis("actual")},
        },
    ]
    return _spec("", height=380, layer=layers)


# --------------------------------------------------------------------------------------------------------------- the pieces

TOOLTIP = [
    {"field": "label", "type": "nominal", "title": "setting"},
    {"field": "said", "type": "nominal", "title": "value"},
    {"field": "interval", "type": "nominal", "title": "95 % interval"},
    {"field": "ceiling", "type": "nominal", "title": "noise ceiling"},
]


def records(table: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows for JSON: numbers to six digits, null for what is missing."""
    return [{key: _plain(row[key]) for key in columns} for row in table.to_dict("records")]


def _told(table: pd.DataFrame, more: Sequence[str]) -> list[dict[str, Any]]:
    """Rows with what the tooltip says of them."""
    rows = records(table, [*more, "value", "ci_low", "ci_high", *CEILINGS])
    for row in rows:
        row["said"] = _number(row["value"])
        row["interval"] = f"{_number(row['ci_low'])} to {_number(row['ci_high'])}" if row["ci_low"] is not None else "unknown"
        row["ceiling"] = _number(row["noise_ceiling"]) or "unknown"
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value


def _number(value: float | None) -> str:
    return "" if value is None else significant(value)


def _known(field: str) -> Spec:
    return {"filter": f"isValid(datum.{field})"}


def _spec(description: str, **parts: Any) -> Spec:
    schema = "https://vega.github.io/schema/vega-lite/v6.json"
    return {
        "$schema": schema,
        "description": description,
        "width": "container",
        "autosize": {"type": "fit", "contains": "padding"},
        **parts,
    }
