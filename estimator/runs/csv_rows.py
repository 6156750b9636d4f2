"""Tables in CSV, row by row, each cell as its column has it; what of a table is no item is told with its reason."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Generic, NamedTuple, TextIO, TypeVar

from hardware.errors import shown, unknown_name
from hardware.files import open_regular_file

LONGEST_LINE = 2**20
"""Characters; no row of a table has more, and so a file without lines is not read whole."""

LONGEST_LABEL = 200

ItemT = TypeVar("ItemT")

Column = Callable[[str], Any]
"""Returns what a cell holds; a ValueError says why it is none of its column."""

Cells = Mapping[str, Any]
"""What the cells of a row hold, by column; blank ones are not in it."""

_WHOLE = re.compile(r"(\d{1,20})(?:\.0{0,9})?", re.ASCII)
_NUMBER = re.compile(r"\d{1,20}(?:\.\d{0,20})?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_LABEL = re.compile(r"[\x20-\x7e]{1,200}", re.ASCII)
_FLAGS = {"true": True, "True": True, "false": False, "False": False}


class Skipped(NamedTuple):
    """A row that is no item."""

    name: str
    why: str
    """`column: reason`, on one line."""


@dataclass(frozen=True, slots=True)
class RowsRead(Generic[ItemT]):
    """What a table holds, in its order."""

    items: tuple[ItemT, ...]
    skipped: tuple[Skipped, ...]


def whole(least: int = 0, below: int = 2**31) -> Column:
    """Return a column of whole numbers; "8.0" is one.

    >>> whole()("8.0")
    8
    """

    def read(cell: str) -> int:
        found = _WHOLE.fullmatch(cell)
        if not found or not least <= int(found[1]) < below:
            raise ValueError(f"{shown(cell)} is not a whole number from {least} to {below - 1}")
        return int(found[1])

    return read


def number(least: float = 0.0, most: float = 1e15) -> Column:
    """Return a column of plain numbers that are not negative.

    >>> number()("1.5e-3")
    0.0015
    """

    def read(cell: str) -> float:
        value = float(cell) if _NUMBER.fullmatch(cell) else -1.0
        if not least <= value <= most:
            raise ValueError(f"{shown(cell)} is not a plain number from {least:g} to {most:g}")
        return value

    return read


def numbers(of: Column, most: int = 10_000) -> Column:
    """Return a column of several numbers, spaces between them.

    >>> numbers(number())("7.5 8")
    (7.5, 8.0)
    """

    def read(cell: str) -> tuple[float, ...]:
        words = cell.split(" ")
        if len(words) > most:
            raise ValueError(f"has {len(words)} numbers, which are more than {most}")
        return tuple(of(word) for word in words)

    return read


def words(cell: str) -> tuple[str, ...]:
    """Return a cell of words, spaces between them.

    >>> words("q v")
    ('q', 'v')
    """
    return tuple(label(cell).split())


class Several(NamedTuple):
    """Values of which one is right, and which is not known; the likeliest first."""

    values: tuple[Any, ...]


def or_several(of: Column) -> Column:
    """Return a column that may also hold several values with "/" between, which leave open which one is right.

    >>> or_several(whole())("8"), or_several(whole())("8/16")
    (8, Several(values=(8, 16)))
    """

    def read(cell: str) -> Any:
        values = tuple(of(word) for word in cell.split("/"))
        return values[0] if len(values) == 1 else Several(values)

    return read


def choice(*names: str) -> Column:
    """Return a column of one of some words."""

    def read(cell: str) -> str:
        if cell not in names:
            raise ValueError(f"{shown(cell)} is not one of {', '.join(names)}")
        return cell

    return read


def flag(cell: str) -> bool:
    """Return whether a cell says true."""
    if cell not in _FLAGS:
        raise ValueError(f"{shown(cell)} is not true or false")
    return _FLAGS[cell]


def label(cell: str) -> str:
    """Return a cell that can stand in a table as it is."""
    if not _LABEL.fullmatch(cell):
        raise ValueError(f"{shown(cell)} is not up to {LONGEST_LABEL} printable characters of ASCII")
    return cell


def note(cell: str) -> str:
    """Return a cell of free text."""
    return cell


def stated(cells: Cells, *columns: str) -> list[Any]:
    """Return what columns hold, none of which may be blank.

    Raises:
        ValueError: one is.
    """
    if missing := [column for column in columns if column not in cells]:
        raise ValueError(f"{missing[0]}: not stated")
    return [cells[column] for column in columns]


def read_rows(
    path: Path,
    kind: str,
    columns: Mapping[str, Column],
    item_of: Callable[[Cells, str], ItemT],
    other_names: Mapping[str, str] | None = None,
) -> RowsRead[ItemT]:
    """Read a table, of which a blank cell, and a column that is not there, are as if not stated.

    A row with one cell that is not of its column is skipped with that reason, as any row that is no item. A row with
    several, or with too many or too few cells, is a table gone wrong, and so is a table with more malformed rows than
    well-formed ones.

    Args:
        path: a CSV file in UTF-8 (RFC 4180) with a header.
        kind: what it is a table of, for messages.
        columns: by name.
        item_of: the item of a row's cells and its name; a ValueError says why it is none.
        other_names: of columns, and which they are.

    Raises:
        ValueError: the table cannot be read, has a column that is not known, or has gone wrong: which file, row and
            column.
    """
    table = f"{kind} table {shown(str(path), 200)}"
    try:
        opened = open_regular_file(path)
    except OSError as error:
        raise ValueError(f"{table}: cannot be read; check the path") from error
    except ValueError as error:
        raise ValueError(f"{kind} table {error}") from error
    with TextIOWrapper(opened, encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.reader(_lines(file, table, kind), strict=True)
            header = _header(next(reader, []), columns, other_names or {}, table)
            return _read(reader, header, columns, item_of, table)
        except (OSError, UnicodeError, csv.Error) as error:
            raise ValueError(f"{table}: cannot be read as CSV in UTF-8; check the file") from error


def _lines(file: TextIO, table: str, kind: str) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{table}: a line has over {LONGEST_LINE} characters; it is no table of {kind}")
        yield line


def _header(
    names: Sequence[str], columns: Mapping[str, Column], other_names: Mapping[str, str], table: str
) -> list[str]:
    """Return the columns, which are known and there once."""
    header = [other_names.get(name, name) for name in names]
    for name in header:
        if name not in columns:
            raise ValueError(f"{table}: {unknown_name('column', name, columns, other_names)}")
        if header.count(name) > 1:
            raise ValueError(f"{table}: column {shown(name)} is given twice; remove one")
    return header


def _read(
    rows: Iterator[list[str]],
    header: list[str],
    columns: Mapping[str, Column],
    item_of: Callable[[Cells, str], ItemT],
    table: str,
) -> RowsRead[ItemT]:
    parsers = [columns[name] for name in header]
    at = header.index("id") if "id" in header else None
    items: list[ItemT] = []
    skipped: list[Skipped] = []
    malformed: list[str] = []
    for count, row in enumerate((row for row in rows if row), start=1):
        name = _name(row, at, count)
        if len(row) != len(header):
            raise ValueError(
                f"{table}: row {count} ({name}): has not one cell per column; quote one that holds a comma"
            )
        cells, wrong = _cells(row, header, parsers)
        if len(wrong) > 1:
            raise ValueError(f"{table}: row {count} ({name}): {wrong[0]}; and {len(wrong) - 1} more of its cells")
        try:
            if wrong:
                malformed.append(f"{table}: row {count} ({name}): {wrong[0]}")
                raise ValueError(wrong[0])  # noqa: TRY301 - a row that is no item, as those that `item_of` refuses
            items.append(item_of(cells, name))
        except ValueError as error:
            skipped.append(Skipped(name, str(error)))
    total = len(items) + len(skipped)
    if not total:
        raise ValueError(f"{table}: has no rows; add at least one below the header")
    if 2 * len(malformed) > total:
        raise ValueError(f"{malformed[0]}; {len(malformed)} of {total} rows are malformed")
    return RowsRead(tuple(items), tuple(skipped))


def _cells(row: list[str], header: list[str], parsers: list[Column]) -> tuple[dict[str, Any], list[str]]:
    """Return what the cells of a row hold, and why those that hold nothing of their column do not."""
    cells: dict[str, Any] = {}
    wrong: list[str] = []
    for column, parse, cell in zip(header, parsers, row, strict=True):
        if text := cell.strip():
            try:
                cells[column] = parse(text)
            except ValueError as error:
                wrong.append(f"{column}: {error}")
    return cells, wrong


def _name(row: list[str], at: int | None, count: int) -> str:
    """Return a row's id as it is where that is plain, else its number."""
    name = row[at].strip() if at is not None and at < len(row) else ""
    return name if _LABEL.fullmatch(name) else f"row {count}"
