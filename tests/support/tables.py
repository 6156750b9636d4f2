"""A few rows of each format of tables, and rows as text."""

import csv
import io
from collections.abc import Mapping, Sequence

from tests.support.paths import GOLDEN

RUNS = (GOLDEN / "tables" / "runs.csv").read_text(encoding="utf-8")
"""Runs of every kind in `runs/1`: of all trainers, out of memory, doubted, of a machine that was measured, of logs."""

TIMINGS = (GOLDEN / "tables" / "timings.csv").read_text(encoding="utf-8")
"""Kernels and collectives of every kind and setting in `timings/1`."""

SAMPLES = {"runs": RUNS, "timings": TIMINGS}


def rows_of(text: str) -> list[dict[str, str]]:
    """Return the rows of a table."""
    return list(csv.DictReader(io.StringIO(text)))


def written(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows as a table."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def with_cells(text: str, name: str, **cells: str) -> str:
    """Return the row of an id with other cells, as a table of itself."""
    return written([next(row for row in rows_of(text) if row["id"] == name) | cells])
