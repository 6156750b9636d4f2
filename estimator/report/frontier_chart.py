"""Minutes against USD as a Vega-Lite specification."""

from collections.abc import Sequence

from estimator.report.charts import Row, Spec, chart

NEAR_EDGE = "scale('x', datum.minutes) < 125"
"""A point has no room for its name to the left."""

LINE: Spec = {
    "transform": [{"filter": "datum.frontier"}],
    "mark": {"type": "line", "color": "var(--accent)", "strokeWidth": 2},
}
POINTS: Spec = {
    "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
    "encoding": {
        "color": {"condition": [{"test": "datum.frontier", "value": "var(--accent)"}], "value": "var(--c8)"},
        "shape": {"condition": {"test": "datum.own", "value": "diamond"}, "value": "circle"},
        "size": {"condition": {"test": "datum.own", "value": 200}, "value": 70},
        "tooltip": [{"field": "name", "title": "flavor"}, {"field": "told", "title": "best plan"}],
    },
}
NAMES: Spec = {
    "transform": [{"filter": "datum.frontier || datum.own"}],
    "mark": {
        "type": "text",
        "align": {"expr": f"{NEAR_EDGE} ? 'left' : 'right'"},
        "dx": {"expr": f"{NEAR_EDGE} ? 8 : -8"},
        "dy": {"expr": f"{NEAR_EDGE} ? -9 : 13"},
        "fontSize": 11,
    },
    "encoding": {"text": {"field": "name"}},
}


def frontier(description: str, offers: Sequence[Row]) -> Spec:
    """Return minutes against USD, each with its interval, on logarithmic axes; the frontier is a line with names.

    Args:
        description: what the chart says.
        offers: with name, told, minutes, usd, their ends _low and _high, and whether `frontier` and `own`.
    """
    x = _axis(offers, "minutes", "minutes from start to end")
    y = _axis(offers, "usd", "USD")
    layers = [*_whiskers(x, y), LINE, POINTS, NAMES]
    data = {"values": list(offers)}
    return chart(description, {"height": 380, "data": data, "encoding": {"x": x, "y": y}, "layer": layers})


def _axis(offers: Sequence[Row], field: str, title: str) -> Spec:
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"type": "log", "domain": _decades(offers, field), "nice": False},
        "axis": {"title": title, "values": _ticks(offers, field), "format": "~s"},
    }


def _whiskers(x: Spec, y: Spec) -> tuple[Spec, Spec]:
    """Return the intervals of the minutes, and of the USD."""
    rule: Spec = {"type": "rule", "color": "var(--c8)", "opacity": 0.35}
    return (
        {"mark": rule, "encoding": {"x": {**x, "field": "minutes_low"}, "x2": {"field": "minutes_high"}, "y": y}},
        {"mark": rule, "encoding": {"y": {**y, "field": "usd_low"}, "y2": {"field": "usd_high"}, "x": x}},
    )


def _decades(offers: Sequence[Row], field: str) -> list[float]:
    """Return the ends of a logarithmic axis that shows all intervals, with room for names."""
    low = min((row[f"{field}_low"] for row in offers), default=1.0)
    high = max((row[f"{field}_high"] for row in offers), default=10.0)
    room = (high / low) ** 0.06
    return [low / room, high * room]


def _ticks(offers: Sequence[Row], field: str) -> list[float]:
    """Return 1, 2 and 5 of each power of ten on a logarithmic axis.

    >>> _ticks([{"usd_low": 3.0, "usd_high": 30.0}], "usd")
    [5.0, 10.0, 20.0]
    """
    low, high = _decades(offers, field)
    return [value for power in range(-3, 10) for value in (m * 10.0**power for m in (1, 2, 5)) if low <= value <= high]
