"""Tables in CSV, row by row through the model of their form; what of a table is no item is told with its reason."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TextIO, TypeVar

from pydantic import BaseModel, ValidationError

from hardware.errors import first_error, shown

LONGEST_LINE = 2**20
"""Characters; no row of a table has more, and so a file without lines is not read whole."""


class Form(BaseModel, frozen=True, extra="ignore"):
    """The form of a table's rows: a field per column that is used; columns that are not fields are not read."""

    mark: ClassVar[str]
    """Column by which the form is known."""


FormT = TypeVar("FormT", bound=Form)
ItemT = TypeVar("ItemT")


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


def read_table(
    path: Path, kind: str, forms: Sequence[type[FormT]], item_of: Callable[[FormT, str, int], ItemT]
) -> RowsRead[ItemT]:
    """Read a table in one of some forms, which its columns tell apart.

    A row with one cell that is not of its column is left with that reason, as any row that cannot be expressed. A row
    with several, or with too many or too few cells, is a table gone wrong, and so is a table with more malformed rows
    than well-formed ones.

    Args:
        path: a CSV file in UTF-8.
        kind: what it is a table of, for messages.
        forms: the first whose mark is a column is the table's.
        item_of: the item of a row, its name and its number; a ValueError says why it is none.

    Raises:
        ValueError: the table cannot be read, lacks a column, or has gone wrong: which file, row and column.
    """
    table = f"{kind} table {shown(str(path), 200)}"
    try:
        file = path.open(encoding="utf-8-sig", newline="")
    except (OSError, ValueError) as error:
        raise ValueError(f"{table}: cannot be read; check the path") from error
    with file:
        try:
            reader = csv.DictReader(_lines(file, table, kind))
            return _read(reader, _form_of(list(reader.fieldnames or ()), forms, table, kind), item_of, table)
        except (OSError, UnicodeError, csv.Error) as error:
            raise ValueError(f"{table}: cannot be read as CSV in UTF-8; check the file") from error


def _lines(file: TextIO, table: str, kind: str) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{table}: a line has over {LONGEST_LINE} characters; it is no table of {kind}")
        yield line


def _read(
    reader: "csv.DictReader[str]", form: type[FormT], item_of: Callable[[FormT, str, int], ItemT], table: str
) -> RowsRead[ItemT]:
    items: list[ItemT] = []
    skipped: list[Skipped] = []
    malformed: list[str] = []
    for number, cells in enumerate(reader, start=1):
        name = _name(cells, number)
        where = f"{table}: row {number} ({name})"
        if None in cells or None in cells.values():
            raise ValueError(f"{where}: has not one cell per column; quote a cell that holds a comma")
        try:
            items.append(item_of(form.model_validate(cells), name, number))
        except ValidationError as error:
            why = first_error(error)
            if error.error_count() > 1:
                raise ValueError(f"{where}: {why}; and {error.error_count() - 1} more of its cells") from error
            malformed.append(f"{where}: {why}")
            skipped.append(Skipped(name, why))
        except ValueError as error:
            skipped.append(Skipped(name, str(error)))
    total = len(items) + len(skipped)
    if not total:
        raise ValueError(f"{table}: has no rows; add at least one below the header")
    if 2 * len(malformed) > total:
        raise ValueError(f"{malformed[0]}; {len(malformed)} of {total} rows are malformed")
    return RowsRead(tuple(items), tuple(skipped))


def _form_of(columns: list[str], forms: Sequence[type[FormT]], table: str, kind: str) -> type[FormT]:
    """Return the form whose mark is among the columns, which are all there and once."""
    form = next((form for form in forms if form.mark in columns), None)
    if form is None:
        marks = ", ".join(form.mark for form in forms)
        raise ValueError(f"{table}: has no column of a known form, one of {marks}; give a table of {kind}")
    needed = [field.alias or name for name, field in form.model_fields.items()]
    if missing := [column for column in needed if column not in columns]:
        raise ValueError(f"{table}: column {shown(missing[0])} is missing; add it, blank where unknown")
    if twice := [column for column in needed if columns.count(column) > 1]:
        raise ValueError(f"{table}: column {shown(twice[0])} is given twice; remove one")
    return form


def _name(cells: dict[str, Any], number: int) -> str:
    """Return a row's id as it is where that is plain, else its number."""
    name = cells.get("id") or cells.get("job_id")
    plain = isinstance(name, str) and name.isascii() and name.isprintable() and len(name) <= 200
    return str(name) if plain else f"row {number}"
