"""Published tables of measured runs, read into cases; what of a table is no case is told with its reason."""

from dataclasses import dataclass
from pathlib import Path

from estimator.runs.measured import Case, refuse_impossible
from estimator.runs.tables import FORMS, Row
from estimator.runs.csv_rows import LONGEST_LINE, Left, read_table
from hardware.catalog import Catalog

__all__ = ["LONGEST_LINE", "Case", "Cases", "Left", "read_cases"]


@dataclass(frozen=True, slots=True)
class Cases:
    """What a table holds, in its order."""

    cases: tuple[Case, ...]
    left: tuple[Left, ...]


def read_cases(path: Path, catalog: Catalog) -> Cases:
    """Read a table in one of the three forms, which its columns tell apart; further columns are not read.

    Raises:
        ValueError: the table cannot be read, lacks a column, or has gone wrong: which file, row and column.
    """

    def case_of(row: Row, _: str, number: int) -> Case:
        case = row.case(number, catalog)
        if why := refuse_impossible(case):
            raise ValueError(why)
        return case

    table = read_table(path, "runs", FORMS, case_of)
    return Cases(table.items, table.left)
