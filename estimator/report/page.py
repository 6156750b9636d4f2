"""A report as a page: its parts, as one text in Markdown with pictures beside it and as one page that holds all."""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hardware.errors import shown


class PageTable(NamedTuple):
    """Rows of words under a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Figure(NamedTuple):
    """A picture and its file's name."""

    name: str
    svg: str
    caption: str


class Heading(NamedTuple):
    """A title of a section."""

    words: str


Piece = Heading | str | PageTable | Figure
"""A part of a report; a text is a paragraph."""


def write_page(stack: str, pieces: Sequence[Piece], folder: Path) -> tuple[Path, Path]:
    """Write the report of a stack, `<stack>.md` with its pictures and `<stack>.html`, into a folder; return the two.

    Raises:
        ValueError: the folder cannot be written.
    """
    name, title = re.sub(r"[^\w.-]", "-", stack, flags=re.ASCII), f"Calibration of {stack}"
    text, page = folder / f"{name}.md", folder / f"{name}.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for piece in pieces:
            if isinstance(piece, Figure):
                (folder / f"{name}-{piece.name}.svg").write_text(piece.svg + "\n", encoding="utf-8")
        text.write_text(markdown(title, pieces, name), encoding="utf-8")
        page.write_text(html_page(title, pieces), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"report {shown(str(folder), 200)}: cannot be written; check the folder") from error
    return text, page


def markdown(title: str, pieces: Sequence[Piece], name: str) -> str:
    """Return a report as Markdown."""
    parts = [f"# {title}"]
    for piece in pieces:
        match piece:
            case Heading(words):
                parts.append(f"## {words}")
            case PageTable(header, rows):
                lines = [header, tuple("---" for _ in header), *rows]
                parts.append("\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines))
            case Figure(figure, _, caption):
                parts.append(f"![{caption}]({name}-{figure}.svg)\n\n*{caption}*")
            case str():
                parts.append(piece)
    return "\n\n".join(parts) + "\n"


PAGE_STYLE = (
    ":root{color-scheme:light dark;--paper:#fff;--ink:#1f2328;--soft:#656d76;--rule:#d8dee4}"
    "@media(prefers-color-scheme:dark){:root{--paper:#0d1117;--ink:#e6edf3;--soft:#9198a1;--rule:#30363d}}"
    "body{background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;"
    "padding:1rem}h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid var(--rule)}"
    "figure{margin:1.5rem 0}figcaption{color:var(--soft);font-size:.9rem}svg{width:100%;height:auto;display:block}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}"
    "th,td{border-bottom:1px solid var(--rule);padding:.25rem .6rem;text-align:left;vertical-align:top}"
    "td+td{font-variant-numeric:tabular-nums}.scroll{overflow-x:auto}.scroll svg{min-width:36rem}"
)


def html_page(title: str, pieces: Sequence[Piece]) -> str:
    """Return a report as one page that needs no other file."""
    parts = []
    for piece in pieces:
        match piece:
            case Heading(words):
                parts.append(f"<h2>{html.escape(words)}</h2>")
            case PageTable(header, rows):
                head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
                body = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in rows)
                parts.append(f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>')
            case Figure(_, svg, caption):
                caption = f"<figcaption>{html.escape(caption)}</figcaption>"
                parts.append(f'<figure><div class="scroll">{svg}</div>{caption}</figure>')
            case str():
                parts.append(f"<p>{html.escape(piece)}</p>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{PAGE_STYLE}</style></head>'
        f"<body><h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
