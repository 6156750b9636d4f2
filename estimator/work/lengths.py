"""How long the rows of a dataset really are: what padding wastes, and how few rows packing would need."""

import json
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from estimator.work.workload import MAX_COUNT
from hardware.errors import shown
from hardware.files import open_regular_file

MAX_LINE = 2**26
"""Characters of a line of a dataset file; no row of token numbers has more, and a longer one would fill the memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """A histogram of row lengths; `lengths_of` and `read_lengths` make it."""

    lengths: npt.NDArray[np.int64]
    """Tokens per row: ascending, each once, at least 1."""
    counts: npt.NDArray[np.int64]
    """Rows of each length, at least 1."""

    @property
    def num_rows(self) -> int:
        """Rows of all lengths."""
        return sum(self.counts.tolist())

    def num_tokens(self, seq_len: int | None = None) -> int:
        """Tokens of all rows, each cut at a sequence length; exact."""
        kept = self.lengths.tolist() if seq_len is None else np.minimum(self.lengths, seq_len).tolist()
        return sum(length * count for length, count in zip(kept, self.counts.tolist(), strict=True))


def lengths_of(histogram: Iterable[tuple[int, int]]) -> Lengths:
    """Return the histogram of (length, count) pairs in any order, equal lengths added up.

    Raises:
        ValueError: a length or count is out of range, or there is no row.

    >>> found = lengths_of([(512, 3), (2048, 1), (512, 1)])
    >>> found.lengths, found.counts
    (array([ 512, 2048]), array([4, 1]))
    """
    rows = Counter[int]()
    for length, count in histogram:
        _checked(length, count)
        rows[length] += count
    ordered = sorted((length, count) for length, count in rows.items() if count)
    if not 0 < rows.total() < MAX_COUNT:
        raise ValueError(f"holds {rows.total()} rows, not from 1 to 2**40 - 1; give at least one length")
    return Lengths(*(np.array(column, dtype=np.int64) for column in zip(*ordered, strict=True)))


def _checked(length: int, count: int) -> tuple[int, int]:
    if not 0 <= count < MAX_COUNT:
        raise ValueError(f"count {shown(count)} is not from 0 to 2**40 - 1; correct it")
    if count and not 0 < length < MAX_COUNT:
        raise ValueError(f"length {shown(length)} is not from 1 to 2**40 - 1; leave out empty rows")
    return length, count


# --- what the lengths mean --------------------------------------------------------------------------------------------


def useful_fraction(lengths: Lengths, seq_len: int) -> float:
    """Tokens of the rows over the tokens computed, where each row is cut at `seq_len` and padded to it.

    >>> useful_fraction(lengths_of([(512, 3), (4096, 1)]), seq_len=2048)
    0.4375
    """
    _refuse_no_length(seq_len)
    return lengths.num_tokens(seq_len) / (lengths.num_rows * seq_len)


def packed_rows(lengths: Lengths, seq_len: int) -> int:
    """Rows of `seq_len` tokens that hold all rows, each cut at `seq_len` and none split.

    Best fit decreasing (Ding et al. 2024, arXiv:2404.10830, section 2): the longest first, each into the fullest row
    that has room, a new one where none has. All rows of one length are placed at once: once a packed row is the best
    fit it stays so until the length no longer fits, so that it takes floor(room / length) of them. The result is that
    of placing one by one, in about D log2(seq_len) steps for D distinct lengths, however many rows.

    >>> packed_rows(lengths_of([(1500, 2), (500, 3), (4096, 1)]), seq_len=2048)
    4
    """
    _refuse_no_length(seq_len)
    num_rows, with_room = 0, Counter[int]()  # packed rows by their room
    rooms: list[int] = []  # its keys, ascending
    kept, counts = np.minimum(lengths.lengths, seq_len).tolist(), lengths.counts.tolist()
    for length, count in zip(reversed(kept), reversed(counts), strict=True):
        left = count
        while left:
            place = bisect_left(rooms, length)
            if place == len(rooms):
                added = -(-left // (seq_len // length))
                num_rows += added
                _add_rows(with_room, rooms, seq_len, added)
            left = _fill_rows(with_room, rooms, rooms[place], length, left)
    return num_rows


def _fill_rows(with_room: Counter[int], rooms: list[int], room: int, length: int, left: int) -> int:
    """Put as many as fit of `left` pieces into the rows of one room; return how many remain."""
    each = room // length
    filled = min(with_room[room], left // each)
    _take_rows(with_room, rooms, room, filled)
    _add_rows(with_room, rooms, room - each * length, filled)
    left -= filled * each
    if left and with_room[room]:  # fewer than fill one more row
        _take_rows(with_room, rooms, room, 1)
        _add_rows(with_room, rooms, room - left * length, 1)
        return 0
    return left


def _add_rows(with_room: Counter[int], rooms: list[int], room: int, count: int) -> None:
    if room and count:
        if not with_room[room]:
            insort(rooms, room)
        with_room[room] += count


def _take_rows(with_room: Counter[int], rooms: list[int], room: int, count: int) -> None:
    with_room[room] -= count
    if not with_room[room]:
        del rooms[bisect_left(rooms, room)]
        del with_room[room]


def _refuse_no_length(seq_len: int) -> None:
    if not 0 < seq_len < MAX_COUNT:
        raise ValueError(f"seq-len: {shown(seq_len)} is not from 1 to 2**40 - 1; give a positive count")


# --- files ------------------------------------------------------------------------------------------------------------


_COLUMNS = ("length", "count")
_FORMS = "a CSV with the columns length,count, one length per line, or JSON Lines"


def read_lengths(path: Path) -> Lengths:
    """Return the lengths that a file holds; its first line says in which of three forms.

    A CSV histogram with the columns length and count; plain text with one length per line; or JSON Lines whose rows
    have an integer `length`, or else a list `input_ids` (without what a list `attention_mask` hides). It is read line
    by line: memory grows with the distinct lengths, not with the rows.

    Raises:
        ValueError: the file cannot be read, or a line holds no length: which one, and why.
    """
    where = f"lengths {shown(str(path), 200)}"
    try:
        opened = open_regular_file(path)
    except OSError as error:
        raise ValueError(f"{where}: cannot be read; check the path") from error
    except ValueError as error:
        raise ValueError(f"lengths {error}") from error
    with TextIOWrapper(opened, encoding="utf-8-sig") as file:
        try:
            return lengths_of(_pairs(_lines(file)))
        except UnicodeError as error:
            raise ValueError(f"{where}: is not text in UTF-8; give {_FORMS}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _lines(file: IO[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise ValueError(f"line {number} has more than {MAX_LINE} characters; write one row per line")
        if text := line.strip():
            yield number, text


def _pairs(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """Yield a length and a count per line, in the form that the first line shows."""
    first = next(lines, None)
    if first is None:
        return
    header = _cells(first[1])
    if set(_COLUMNS) <= set(header):
        read = partial(_table_row, header)
    elif first[1].startswith("{"):
        lines, read = chain([first], lines), partial(_json_row)
    elif _is_count(first[1]):
        lines, read = chain([first], lines), partial(_plain_row)
    else:
        raise ValueError(f"its first line {shown(first[1])} is no length; give {_FORMS}")
    for number, line in lines:
        try:
            yield _checked(*read(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20


def _whole(text: str) -> int:
    if not _is_count(text):
        raise ValueError(f"{shown(text)} is not a whole number; write digits alone")
    return int(text)


def _cells(line: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(",")]


def _table_row(header: list[str], line: str) -> tuple[int, int]:
    cells = _cells(line)
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells in a table of {len(header)} columns; write one per column")
    length, count = (_whole(cells[header.index(name)]) for name in _COLUMNS)
    return length, count


def _plain_row(line: str) -> tuple[int, int]:
    return _whole(line), 1


def _json_row(line: str) -> tuple[int, int]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(line)} is not JSON; write one object per line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{shown(row)} is not an object; write one row per line")
    length, tokens, mask = (row.get(name) for name in ("length", "input_ids", "attention_mask"))
    if length is not None:
        if isinstance(length, bool) or not isinstance(length, int):
            raise ValueError(f"length = {shown(length)} is not an integer; write the tokens of the row")
        return length, 1
    if not isinstance(tokens, list):
        keys = shown(", ".join(row))
        raise ValueError(f"no 'length' and no list 'input_ids' among {keys}; count tokens first, and write 'length'")
    return (mask.count(1) if isinstance(mask, list) else len(tokens)), 1
