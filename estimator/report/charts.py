"""Pictures of an estimate as Vega-Lite specifications: plain dicts, drawn by a page's script, or to SVG and PNG here.

Colours are names of the page's style sheet, `var(--name)`, so that a picture follows the reader's theme and the
printer; in a file of its own they are those of `LIGHT`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from estimator.predict.interval import Range
from hardware.units import MIB

Spec = dict[str, Any]
Row = dict[str, Any]

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1a2230",
    "soft": "#5a6472",
    "rule": "#dfe3e8",
    "accent": "#0b63c5",
    "warn": "#b3261e",
    "c1": "#0072b2",
    "c2": "#e69f00",
    "c3": "#009e73",
    "c4": "#cc79a7",
    "c5": "#56b4e9",
    "c6": "#d55e00",
    "c7": "#b8a800",
    "c8": "#8a93a0",
}
"""Colours of the light theme; c1 to c7 are told apart by the colour-blind (Okabe and Ito 2008), c8 is for the rest."""

SERIES = tuple(f"var(--c{i})" for i in range(1, 9))
OTHER = "all else"

MOST_PASSES = 3000
"""Passes of a schedule that are drawn; a browser moves as many without a pause."""

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
CONFIG: Spec = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "gridColor": "var(--rule)",
        "domain": False,
        "ticks": False,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelPadding": 8,
        "titlePadding": 10,
        "labelLimit": 165,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "titleColor": "var(--soft)",
        "symbolType": "square",
        "orient": "top",
        "direction": "horizontal",
        "title": None,
        "columns": 2,
        "labelLimit": 200,
    },
    "text": {"color": "var(--ink)", "fontSize": 12},
}
BY_NAME: Spec = {"axis": {"title": None, "grid": False, "labelColor": "var(--ink)"}}


def chart(description: str, body: Spec) -> Spec:
    """Return a whole specification of a chart that is as wide as its place."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": CONFIG,
        **body,
    }


def stacked(
    description: str, rows: Mapping[str, Mapping[str, float]], title: str, marks: Mapping[str, float] | None = None
) -> Spec:
    """Return a bar a row, divided by purpose; the smallest purposes are one.

    Args:
        description: what the chart says, for those who cannot see it.
        rows: by name, amounts by purpose.
        title: of the axis: what, and its unit.
        marks: amounts drawn as lines over all rows, by name.
    """
    merged = merge_small(rows)
    order = sorted({part: 0 for parts in merged.values() for part in parts}, key=lambda part: part == OTHER)
    data = [
        {"row": row, "part": part, "value": value, "order": order.index(part)}
        for row, parts in merged.items()
        for part, value in parts.items()
    ]
    bars: Spec = {
        "mark": {"type": "bar", "height": {"band": 0.72}, "stroke": "var(--paper)", "strokeWidth": 0.5},
        "encoding": {
            "y": {"field": "row", "type": "nominal", "sort": list(merged), **BY_NAME},
            "x": {"field": "value", "type": "quantitative", "axis": {"title": title, "tickCount": 5}},
            "color": {
                "field": "part",
                "type": "nominal",
                "sort": order,
                "scale": {"domain": order, "range": _colours(order)},
            },
            "order": {"field": "order"},
            "tooltip": [
                {"field": "row", "title": "of"},
                {"field": "part", "title": "purpose"},
                {"field": "value", "title": title, "format": ",.4~r"},
            ],
        },
        "data": {"values": data},
    }
    layers = [bars, *(_line(name, at, i) for i, (name, at) in enumerate((marks or {}).items()))]
    return chart(description, {"height": 30 * max(len(merged), 1), "layer": layers})


def _line(name: str, at: float, place: int) -> Spec:
    """Return a line over all rows, with its name above them."""
    values = {"values": [{"at": at, "name": name}]}
    x: Spec = {"field": "at", "type": "quantitative"}
    colour = ("var(--warn)", "var(--soft)")[min(place, 1)]
    rule = {"mark": {"type": "rule", "strokeWidth": 2, "strokeDash": [6, 3] if place else []}}
    return {
        "data": values,
        "encoding": {"x": x, "color": {"value": colour}},
        "layer": [
            {**rule, "encoding": {"tooltip": [{"field": "name"}, {"field": "at", "format": ",.0f"}]}},
            {
                "mark": {"type": "text", "align": "right", "dx": -5, "y": -6 - 13 * place, "fontSize": 11},
                "encoding": {"text": {"field": "name"}},
            },
        ],
    }


def merge_small(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the rows with the largest purposes by themselves, as many as there are colours, and the others as one.

    >>> merge_small({"stage 0": {"weights": 5.0, "none": 0.0}})
    {'stage 0': {'weights': 5.0}}
    """
    sizes: dict[str, float] = {}
    for parts in rows.values():
        for name, value in parts.items():
            sizes[name] = max(sizes.get(name, 0.0), abs(value))
    named = sorted((name for name, size in sizes.items() if size > 0), key=lambda name: -sizes[name])
    kept = named if len(named) < len(SERIES) else named[: len(SERIES) - 1]
    merged = {}
    for row, parts in rows.items():
        own = {name: parts[name] for name in kept if parts.get(name)}
        rest = sum(value for name, value in parts.items() if name not in kept)
        merged[row] = own | ({OTHER: rest} if len(kept) < len(named) and rest else {})
    return merged


def _colours(names: Sequence[str]) -> list[str]:
    return [SERIES[-1] if name == OTHER else SERIES[i % (len(SERIES) - 1)] for i, name in enumerate(names)]


def bars(description: str, parts: Mapping[str, float], title: str) -> Spec:
    """Return a bar a part, the largest first, each with its amount and its share."""
    whole = sum(parts.values())
    ordered = sorted(((k, v) for k, v in parts.items() if abs(v) > 0.0005 * whole), key=lambda item: -item[1])
    data = [{"name": k, "value": v, "told": f"{v:#.3g} s  {v / whole:.0%}"} for k, v in ordered]
    encoding: Spec = {
        "y": {"field": "name", "type": "nominal", "sort": None, **BY_NAME},
        "x": {
            "field": "value",
            "type": "quantitative",
            "axis": {"title": title, "tickCount": 5},
            "scale": {"domainMax": 1.6 * max((v for _, v in ordered), default=1.0)},
        },
    }
    bar = {"type": "bar", "color": "var(--accent)", "height": {"band": 0.66}, "cornerRadiusEnd": 2}
    text = {"type": "text", "align": "left", "dx": 6}
    return chart(
        description,
        {
            "height": 28 * max(len(data), 1),
            "data": {"values": data},
            "encoding": encoding,
            "layer": [{"mark": bar}, {"mark": text, "encoding": {"text": {"field": "told"}}}],
        },
    )


def intervals(description: str, values: Mapping[str, Range], title: str) -> Spec:
    """Return a point a row, with the interval of its value."""
    data = [{"name": name, **told._asdict()} for name, told in values.items()]
    x: Spec = {"field": "value", "type": "quantitative", "axis": {"title": title, "tickCount": 5}}
    tooltip = [{"field": name, **({} if name == "name" else {"format": ",.4~r"})} for name in ("name", *Range._fields)]
    return chart(
        description,
        {
            "height": 30 * max(len(data), 1),
            "data": {"values": data},
            "encoding": {"y": {"field": "name", "type": "nominal", "sort": None, **BY_NAME}, "tooltip": tooltip},
            "layer": [
                {
                    "mark": {"type": "rule", "color": "var(--c8)", "strokeWidth": 3},
                    "encoding": {"x": {**x, "field": "low", "scale": {"zero": True}}, "x2": {"field": "high"}},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, "color": "var(--accent)"},
                    "encoding": {"x": x},
                },
            ],
        },
    )


def schedule(description: str, passes: Sequence[Row], num_stages: int, until_s: float) -> Spec:
    """Return the passes of each stage in time; the page sets the parameters `from` and `to` to look closer.

    Args:
        description: what the chart says.
        passes: with stage, kind, micro_batch, start and end [s].
        num_stages: of the pipeline.
        until_s: the end of the axis.
    """
    bar = {"type": "bar", "clip": True, "stroke": "var(--paper)", "strokeWidth": 0.6, "height": {"band": 0.86}}
    return chart(
        description,
        {
            "height": num_stages * min(max(360 // num_stages, 12), 40),
            "params": [{"name": "from", "value": 0.0}, {"name": "to", "value": until_s}],
            "data": {"values": list(passes)},
            "mark": bar,
            "encoding": _of_passes(list(dict.fromkeys(row["kind"] for row in passes))),
        },
    )


def _of_passes(kinds: list[str]) -> Spec:
    """Return how passes are drawn: where, when, in which colour, and what is told of one."""
    scale = {"domainMin": {"expr": "from"}, "domainMax": {"expr": "to"}, "nice": False}
    colours = {"domain": kinds, "range": list(SERIES[: len(kinds)])}
    return {
        "y": {"field": "stage", "type": "ordinal", "axis": {**BY_NAME["axis"], "title": "stage"}},
        "x": {
            "field": "start",
            "type": "quantitative",
            "scale": scale,
            "axis": {"title": "seconds of the step", "tickCount": 6},
        },
        "x2": {"field": "end"},
        "color": {"field": "kind", "type": "nominal", "scale": colours},
        "tooltip": [
            {"field": "stage"},
            {"field": "kind"},
            {"field": "micro_batch", "title": "micro-batch"},
            {"field": "start", "title": "from s", "format": ".4f"},
            {"field": "end", "title": "to s", "format": ".4f"},
        ],
    }


def tornado(description: str, moves: Sequence[Row], middle: float, title: str) -> Spec:
    """Return how far a quantity goes as each assumption goes down and up, the farthest first.

    Args:
        description: what the chart says.
        moves: with name, less and more: the quantity with the assumption lower, and higher.
        middle: the quantity as predicted.
        title: of the axis.
    """
    names = {"less": "one standard error lower", "more": "one standard error higher"}
    data = [
        {"name": row["name"], "start": middle, "end": row[way], "way": told}
        for row in moves
        for way, told in names.items()
    ]
    x = {"field": "start", "type": "quantitative", "scale": {"zero": False}, "axis": {"title": title, "tickCount": 5}}
    colours = {"domain": list(names.values()), "range": ["var(--c5)", "var(--c1)"]}
    ways = {
        "y": {"field": "name", "type": "nominal", "sort": None, **BY_NAME},
        "x": x,
        "x2": {"field": "end"},
        "color": {"field": "way", "type": "nominal", "scale": colours, "legend": {"columns": 1}},
        "tooltip": [
            {"field": "name"},
            {"field": "way", "title": "with the"},
            {"field": "end", "title": title, "format": ",.2f"},
        ],
    }
    predicted = {
        "data": {"values": [{"at": middle}]},
        "mark": {"type": "rule", "color": "var(--ink)", "strokeWidth": 1.5},
        "encoding": {"x": {"field": "at", "type": "quantitative"}},
    }
    bars = {"mark": {"type": "bar", "height": {"band": 0.7}}, "encoding": ways}
    height = 26 * max(len(moves), 1)
    return chart(description, {"height": height, "data": {"values": data}, "layer": [bars, predicted]})


def in_mib(parts: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    """Return bytes by purpose as MiB by the purpose's words."""
    return {names[name]: value / MIB for name, value in parts.items()}
