"""Pictures as SVG text, the same bytes for the same numbers: axes, dots, bars and bands, in light and in dark.

Dots of one kind are one path (round caps of strokes of no length), so that a picture of a thousand runs stays small.
Colours are classes that the style of the picture gives, so that a picture looks right alone and within a page.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 720
CHARACTER_PX = 6.6
"""Mean width of a character of the font.  # measured: DejaVu Sans of 12 px; a picture only leaves room by it"""

STYLE = (
    "svg{--ink:#1f2328;--soft:#656d76;--rule:#d8dee4;--a:#0b66c3;--b:#c2410c;--c:#15803d;--d:#7e22ce;--e:#a16207;"
    "--f:#be185d;--g:#0f766e;--h:#57606a;font:12px system-ui,'DejaVu Sans',sans-serif}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e6edf3;--soft:#9198a1;--rule:#30363d;--a:#58a6ff;--b:#f78166;"
    "--c:#56d364;--d:#bc8cff;--e:#e3b341;--f:#ff7bac;--g:#39c5bb;--h:#8b949e}}"
    "text{fill:var(--ink)}.soft{fill:var(--soft)}.rule{stroke:var(--rule);fill:none}.line{stroke:var(--ink);fill:none}"
    ".band{fill:var(--c);opacity:.12}.dots{fill:none;stroke-linecap:round}.thin{fill:none;opacity:.35}"
    + "".join(f".s-{c}{{stroke:var(--{c})}}.f-{c}{{fill:var(--{c})}}" for c in "abcdefgh")
)
COLOURS = "abcdefgh"


def n(value: float) -> str:
    """Return a coordinate, to a tenth of a pixel.

    >>> n(3.0), n(2.25), n(-0.01)
    ('3', '2.2', '0')
    """
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


@dataclass(frozen=True, slots=True)
class Axis:
    """Where values lie along one side of a picture."""

    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a value, held within the axis."""
        value = min(max(value, self.low), self.high)
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return values to be marked: of a logarithmic axis 1, 2, 5 in each decade, or 1 alone where they are many.

        >>> Axis(0.3, 30, 0, 100, is_log=True).ticks()
        [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
        >>> Axis(-0.4, 0.4, 0, 100).ticks()
        [-0.4, -0.2, 0.0, 0.2, 0.4]
        """
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) <= 4 else (1,)
            marks = [step * 10.0**decade for decade in decades for step in steps]
        else:
            rough = (self.high - self.low) / 4
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
            first = math.ceil(self.low / step - 1e-9)
            marks = [round(step * i, 12) for i in range(first, first + 10)]
        slack = 1e-9 * (self.low if self.is_log else self.high - self.low)
        return [mark for mark in marks if self.low - slack <= mark <= self.high + slack]


def around(values: Iterable[float], room: float = 1.15) -> tuple[float, float]:
    """Return the least and the greatest of positive values, with room on a logarithmic axis."""
    found = list(values)
    return min(found) / room, max(found) * room


def picture(height: float, title: str, *parts: str, width: float = WIDTH) -> str:
    """Return an SVG document; the title is read aloud, and shown on hovering."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {n(width)} {n(height)}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>{''.join(parts)}</svg>"
    )


def text(x: float, y: float, words: str, anchor: str = "start", *, soft: bool = False) -> str:
    """Return words whose baseline starts, ends or has its middle at a place."""
    kind = ' class="soft"' if soft else ""
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{n(x)}" y="{n(y)}"{where}{kind}>{escape(words)}</text>'


def path(kind: str, commands: str, width: float = 1) -> str:
    """Return a path of some classes; nothing where there are no commands."""
    return f'<path class="{kind}" d="{commands}" stroke-width="{n(width)}"/>' if commands else ""


def dots(points: Iterable[tuple[float, float]], colour: str, size: float = 4) -> str:
    """Return dots of a colour."""
    return path(f"dots s-{colour}", "".join(f"M{n(x)} {n(y)}h0" for x, y in points), size)


def uprights(spans: Iterable[tuple[float, float, float]], colour: str) -> str:
    """Return thin upright lines, each at x from y to another y."""
    return path(f"thin s-{colour}", "".join(f"M{n(x)} {n(y)}V{n(to)}" for x, y, to in spans))


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return a filled rectangle."""
    return f'<rect x="{n(x)}" y="{n(y)}" width="{n(max(width, 0))}" height="{n(height)}" class="{kind}"/>'


def x_rules(x: Axis, y: Axis, name: str, write: Callable[[float], str] = "{:g}".format) -> str:
    """Return upright rules at the marks of an axis along the bottom, with their values and its name."""
    parts = []
    for mark in x.ticks():
        at = x.at(mark)
        parts.append(path("rule", f"M{n(at)} {n(y.start)}V{n(y.end)}"))
        parts.append(text(at, y.start + 16, write(mark), "middle", soft=True))
    parts.append(text((x.start + x.end) / 2, y.start + 34, name, "middle"))
    return "".join(parts)


def y_rules(x: Axis, y: Axis, name: str, write: Callable[[float], str] = "{:g}".format) -> str:
    """Return level rules at the marks of an axis along the left, with their values and its name."""
    parts = []
    for mark in y.ticks():
        at = y.at(mark)
        parts.append(path("rule", f"M{n(x.start)} {n(at)}H{n(x.end)}"))
        parts.append(text(x.start - 6, at + 4, write(mark), "end", soft=True))
    parts.append(text(x.start - 40, y.end - 8, name))
    return "".join(parts)


def percent(value: float) -> str:
    """Return a fraction as a signed percentage.

    >>> percent(0.05), percent(0)
    ('+5 %', '0 %')
    """
    return f"{100 * value:+.0f} %" if value else "0 %"


def legend(x: float, y: float, entries: Sequence[tuple[str, str]]) -> str:
    """Return names beside dots of their colours, in one line."""
    parts = []
    for colour, words in entries:
        parts += [dots([(x + 4, y - 4)], colour, 8), text(x + 12, y, words)]
        x += 24 + CHARACTER_PX * len(words)
    return "".join(parts)
