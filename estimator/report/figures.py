"""The pictures of a calibration report, each from plain numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from estimator.predict.interval import Range
from estimator.report import svg
from estimator.report.svg import Axis, n

BANDS = (0.10, 0.05)
"""Relative errors that the bands about the diagonal show."""

LEFT, RIGHT, TOP, BOTTOM = 56.0, svg.WIDTH - 12.0, 44.0, 44.0
ROW_PX = 22.0
LABEL_PX = 236.0
SHOWN_ERROR = 0.6
"""Larger residuals are drawn at the edge."""

CUT = 34
"""Characters of a label."""


class Compared(NamedTuple):
    """A run beside its prediction, as a picture shows it."""

    measured: float
    predicted: Range
    kind: str
    """Whose colour it has."""


def predicted_against_measured(title: str, unit: str, runs: Sequence[Compared]) -> str:
    """Return predictions with their 90 % intervals over measurements, on logarithmic axes; bands of 5 and 10 %."""
    low, high = svg.around([v for run in runs for v in (run.measured, run.predicted.value)])
    height = 460.0
    x = Axis(low, high, LEFT, RIGHT, is_log=True)
    y = Axis(low, high, height - BOTTOM, TOP, is_log=True)
    colours = _colours([run.kind for run in runs])
    parts = [_band(x, y, share) for share in BANDS]
    parts += [svg.x_rules(x, y, f"measured, {unit}"), svg.y_rules(x, y, f"predicted, {unit}")]
    parts.append(svg.path("line", f"M{n(x.at(low))} {n(y.at(low))}L{n(x.at(high))} {n(y.at(high))}"))
    for kind, colour in colours.items():
        own = [run for run in runs if run.kind == kind]
        spans = ((x.at(r.measured), y.at(r.predicted.low), y.at(r.predicted.high)) for r in own)
        parts.append(svg.uprights(spans, colour))
        parts.append(svg.dots(((x.at(r.measured), y.at(r.predicted.value)) for r in own), colour))
    parts.append(svg.legend(LEFT + 8, 14, [(colour, kind) for kind, colour in colours.items()]))
    return svg.picture(height, title, *parts)


def _band(x: Axis, y: Axis, share: float) -> str:
    corners = [
        (x.low, x.low * (1 + share)),
        (x.high, x.high * (1 + share)),
        (x.high, x.high * (1 - share)),
        (x.low, x.low * (1 - share)),
    ]
    return svg.path("band", "M" + "L".join(f"{n(x.at(a))} {n(y.at(b))}" for a, b in corners) + "Z")


def _colours(kinds: Sequence[str]) -> dict[str, str]:
    return {kind: svg.COLOURS[i % len(svg.COLOURS)] for i, kind in enumerate(sorted(set(kinds)))}


def residuals(title: str, groups: Mapping[str, Sequence[float]]) -> str:
    """Return the relative errors of each group as a row of dots, with a bar from the 10 % to the 90 % quantile."""
    height = TOP + ROW_PX * len(groups) + BOTTOM
    most = max((min(abs(e), SHOWN_ERROR) for errors in groups.values() for e in errors), default=0.1)
    most = max(most, 0.1) * 1.05
    x = Axis(-most, most, LABEL_PX, RIGHT - 40)
    y = Axis(0, 1, height - BOTTOM, TOP)
    parts = [
        svg.rectangle(x.at(-share), TOP, x.at(share) - x.at(-share), ROW_PX * len(groups), "band") for share in BANDS
    ]
    parts.append(svg.x_rules(x, y, "predicted over measured, less 1", svg.percent))
    for i, (group, errors) in enumerate(groups.items()):
        middle = TOP + ROW_PX * (i + 0.5)
        parts.append(svg.text(LABEL_PX - 10, middle + 4, _cut(group), "end"))
        parts.append(svg.dots(((x.at(e), middle + _jitter(k)) for k, e in enumerate(errors)), "a", 3))
        low, center, high = (float(v) for v in np.quantile(errors, (0.1, 0.5, 0.9)))
        parts.append(svg.path("line", f"M{n(x.at(low))} {n(middle)}H{n(x.at(high))}", 2))
        parts.append(svg.path("line", f"M{n(x.at(center))} {n(middle - 8)}v16", 3))
        parts.append(svg.text(RIGHT, middle + 4, str(len(errors)), "end", soft=True))
    return svg.picture(height, title, *parts)


def _jitter(place: int) -> float:
    """Return a few pixels up or down, always the same for a place."""
    return (place * 7 % 11 - 5) * 1.2


def _cut(words: str) -> str:
    return words if len(words) <= CUT else f"{words[: CUT - 3]}..."


def coverage(title: str, levels: Sequence[float], covered: Mapping[str, Sequence[float]]) -> str:
    """Return how many measurements lie inside intervals of each level, beside how many should."""
    height = 340.0
    x, y = Axis(0, 1, LEFT, LEFT + 420), Axis(0, 1, height - BOTTOM, TOP)
    parts = [svg.x_rules(x, y, "stated", _share), svg.y_rules(x, y, "measurements inside", _share)]
    parts.append(svg.path("line", f"M{n(x.at(0))} {n(y.at(0))}L{n(x.at(1))} {n(y.at(1))}"))
    colours = dict(zip(covered, svg.COLOURS, strict=False))
    for name, inside in covered.items():
        points = [f"{n(x.at(level))} {n(y.at(share))}" for level, share in zip(levels, inside, strict=True)]
        parts.append(svg.path(f"s-{colours[name]} dots", "M" + "L".join(points), 2))
    parts.append(svg.legend(LEFT + 8, 14, [(colour, name) for name, colour in colours.items()]))
    return svg.picture(height, title, *parts)


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def shares(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return for each row a bar that is divided as its parts divide the whole."""
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    colours = _colours(names)
    legends = [names[i : i + 4] for i in range(0, len(names), 4)]
    top = 12 + 20.0 * len(legends)
    height = top + ROW_PX * len(rows) + 10
    x = Axis(0, 1, LABEL_PX, RIGHT)
    parts = [
        svg.legend(12, 16 + 20 * i, [(colours[name], name.replace("_", " ")) for name in line])
        for i, line in enumerate(legends)
    ]
    for i, (row, of) in enumerate(rows.items()):
        total, at, y = sum(of.values()), 0.0, top + ROW_PX * i + 4
        parts.append(svg.text(LABEL_PX - 10, y + 12, _cut(row), "end"))
        for name, value in of.items():
            left, right = x.at(at / total), x.at((at + value) / total)
            parts.append(svg.rectangle(left, y, right - left, ROW_PX - 6, f"f-{colours[name]}"))
            at += value
    return svg.picture(height, title, *parts)


class Believed(NamedTuple):
    """A parameter before and after a fit: medians, and standard deviations of their logarithms."""

    name: str
    prior: float
    prior_log_sd: float
    fitted: float
    fitted_log_sd: float


def beliefs(title: str, parameters: Sequence[Believed]) -> str:
    """Return each parameter's 90 % interval before the fit (above) and after (below), over its prior median."""
    height = TOP + 2 * ROW_PX * len(parameters) + BOTTOM
    spans = [
        span for p in parameters for span in (_span(1.0, p.prior_log_sd), _span(p.fitted / p.prior, p.fitted_log_sd))
    ]
    low, high = min(s[0] for s in spans), max(s[1] for s in spans)
    x = Axis(max(low, 1e-3) / 1.1, min(high, 1e3) * 1.1, LABEL_PX, RIGHT, is_log=True)
    y = Axis(0, 1, height - BOTTOM, TOP)
    parts = [svg.x_rules(x, y, "over the prior's median")]
    for i, p in enumerate(parameters):
        middle = TOP + 2 * ROW_PX * (i + 0.5)
        parts.append(svg.text(LABEL_PX - 10, middle + 4, _cut(p.name.replace("_", " ")), "end"))
        for offset, colour, (start, end), at in (
            (-6, "h", spans[2 * i], 1.0),
            (6, "a", spans[2 * i + 1], p.fitted / p.prior),
        ):
            parts.append(svg.path(f"dots s-{colour}", f"M{n(x.at(start))} {n(middle + offset)}H{n(x.at(end))}", 3))
            parts.append(svg.dots([(x.at(at), middle + offset)], colour, 9))
    parts.append(svg.legend(LABEL_PX, 14, [("h", "before"), ("a", "after")]))
    return svg.picture(height, title, *parts)


def _span(value: float, log_sd: float) -> tuple[float, float]:
    ratio = math.exp(min(1.645 * log_sd, 20))
    return value / ratio, value * ratio
