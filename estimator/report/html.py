"""What a page is made of: sections, charts with their numbers, tables; one file of HTML that needs no other."""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from importlib import resources
from typing import NamedTuple

from estimator.report.drawing import page_script
from estimator.report.pictures import Cells, Picture
from estimator.report.text import number

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}' 'unsafe-eval'; img-src data:; "
    "form-action 'self'; base-uri 'none'"
)
"""No request leaves the page, whatever is in it, no script runs but its own; Vega makes functions of expressions."""


class Section(NamedTuple):
    """A part of a page."""

    key: str
    title: str
    body: str


def page(title: str, head: str, sections: Sequence[Section], command: str = "", form: str = "") -> str:
    """Return a whole page; the charts' library is in it.

    Args:
        title: of the page.
        head: the answer: HTML that stands first.
        sections: in their order.
        command: what makes the page again, which it shows; "" for none.
        form: HTML above the title: what a live page asks.

    Raises:
        ValueError: the library that draws is not installed.
    """
    again = [Section("again", "This page again", f"<pre><code>{escape(command)}</code></pre>")] if command else []
    whole = [*sections, *again]
    links = "".join(f'<a href="#{one.key}">{escape(one.title)}</a>' for one in whole)
    navigation = f'<nav aria-label="Sections">{links}</nav>\n' if whole else ""
    parts = "".join(
        f'<section aria-labelledby="{one.key}"><h2 id="{one.key}">{escape(one.title)}</h2>{one.body}</section>\n'
        for one in whole
    )
    script = f"{page_script()}\n{_data('page.js')}"
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(digest)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>\n<style>\n{_data("page.css")}</style></head>\n'
        f"<body><main>{form}<header><h1>{escape(title)}</h1>{head}</header>\n{navigation}{parts}</main>\n"
        f'<script type="module">{script}</script>\n</body></html>\n'
    )


def _data(name: str) -> str:
    return resources.files("estimator").joinpath(f"data/page/{name}").read_text(encoding="utf-8")


def figure(key: str, title: str, drawn: Picture) -> Section:
    """Return a section of a chart with its caption, its numbers in a table below, and what looks closer at a schedule.

    Args:
        key: of the section, and of the ids in it.
        title: of the section.
        drawn: the chart.
    """
    zoom = ""
    if key == "schedule":
        zoom = (
            '<div class="controls" data-zooms="chart-schedule"><label>closer <input type="range" min="0" max="8" '
            'step="0.25" value="0"></label><label>along <input type="range" min="0" max="1" step="0.005" value="0">'
            '</label><output aria-live="polite"></output></div>'
        )
    spec = json.dumps(drawn.spec).replace("<", "\\u003c")
    body = (
        f'<figure><figcaption>{escape(drawn.caption)}</figcaption>{zoom}<div class="chart" id="chart-{key}" '
        f'data-spec="spec-{key}"></div><script type="application/json" id="spec-{key}">{spec}</script></figure>'
        f"<details><summary>The numbers</summary>{table(key, f'{title}: the numbers', drawn.header, drawn.rows)}"
        "</details>"
    )
    return Section(key, title, body)


def filtered_table(
    key: str, name: str, header: Sequence[str], rows: Sequence[Cells], kinds: Sequence[str], *, such_as: str
) -> str:
    """Return a table that is sorted by a click on a column's word, and filtered by words and by what fits.

    Args:
        key: of the table's id.
        name: of the table, for those who cannot see it.
        header: a word a column.
        rows: cells; nan where nothing is known.
        kinds: "best" or "no", for one that cannot run, or "", for each row.
        such_as: words to filter by, as an example.
    """
    return (
        f'<div class="controls" data-filters="table-{key}"><label>filter <input type="search" '
        f'placeholder="{escape(such_as)}"></label><label><input type="checkbox"> only those that fit</label>'
        f'<output aria-live="polite"></output></div>{table(key, name, header, rows, kinds, sorts=True)}'
    )


def table(
    key: str, name: str, header: Sequence[str], rows: Sequence[Cells], kinds: Sequence[str] = (), *, sorts: bool = False
) -> str:
    """Return a table; numbers are right-aligned, and the first cell of a row is its header.

    Args:
        key: of the table's id.
        name: of the table, for those who cannot see it.
        header: a word a column.
        rows: cells; nan where nothing is known.
        kinds: a class of the style sheet for each row, "" for none.
        sorts: a click on a column's word sorts by it.
    """
    numeric = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    head = "".join(_header(word, is_number=n, sorts=sorts) for word, n in zip(header, numeric, strict=True))
    body = "".join(
        f"<tr{_class(kind)}>{''.join(_cell(value, i) for i, value in enumerate(row))}</tr>\n"
        for row, kind in zip(rows, kinds or [""] * len(rows), strict=True)
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}"><table id="table-{key}" '
        f'aria-label="{escape(name)}"><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
    )


def _header(word: str, *, is_number: bool, sorts: bool) -> str:
    start = f'<th scope="col"{_class("n" if is_number else "")}'
    if sorts:
        return f'{start} aria-sort="none"><button type="button">{escape(word)}</button></th>'
    return f"{start}>{escape(word)}</th>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _cell(value: str | float, column: int) -> str:
    tag = 'th scope="row"' if column == 0 else "td"
    end = tag[:2]
    if isinstance(value, str):
        return f"<{tag}>{_with_links(value)}</{end}>"
    if value != value:  # noqa: PLR0124 - nan: nothing is known
        return f'<{tag} class="n">-</{end}>'
    told = f"{value:,}" if isinstance(value, int) else number(value)
    return f'<{tag} class="n" data-value="{value!r}">{told}</{end}>'


def _with_links(text: str) -> str:
    """Return a text whose addresses can be followed.

    >>> _with_links("a < b (https://example.org/x)")
    'a &lt; b (<a href="https://example.org/x" rel="noreferrer">https://example.org/x</a>)'
    """
    parts = re.split(r"(https://[^\s()<>\"',;]+)", text)
    return "".join(
        f'<a href="{escape(part)}" rel="noreferrer">{escape(part)}</a>' if i % 2 else escape(part)
        for i, part in enumerate(parts)
    )


def listed(lines: Iterable[str]) -> str:
    """Return lines as a list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
