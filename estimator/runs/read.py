"""Published tables of measured runs, as runs; what of a table is no run is told with its reason."""

from dataclasses import dataclass
from pathlib import Path

from estimator.runs.measured import Run, refuse_impossible
from estimator.runs.tables import FORMS, Row
from estimator.runs.csv_rows import LONGEST_LINE, Skipped, read_table
from hardware.catalog import Catalog

__all__ = ["LONGEST_LINE", "Case", "RunTable", "Skipped", "read_run_table"]


@dataclass(frozen=True, slots=True)
class RunTable:
    """What a table holds, in its order."""

    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...]


def read_run_table(path: Path, catalog: Catalog) -> RunTable:
    """Read a table in one of the three forms, which its columns tell apart; further columns are not read.

    Raises:
        ValueError: the table cannot be read, lacks a column, or has gone wrong: which file, row and column.
    """

    def case_of(row: Row, _: str, number: int) -> Run:
        run = row.run(number, catalog)
        if why := refuse_impossible(run):
            raise ValueError(why)
        return run

    table = read_table(path, "runs", FORMS, case_of)
    return RunTable(table.items, table.skipped)
