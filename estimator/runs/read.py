"""Measured runs of any mix of files: tables in `runs/1` and step logs, told apart by their content."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path

from estimator.runs import run_table, timings
from estimator.runs.csv_rows import Skipped
from estimator.runs.logged import logged_run_of, run_record_of
from estimator.runs.logs.read import Log, read_log
from estimator.runs.logs.text import LogText, split_lines
from estimator.runs.measured import Run
from estimator.runs.record import RunRecord
from hardware.catalog import Catalog
from hardware.errors import shown

__all__ = ["RunsRead", "Skipped", "is_timings", "read_runs"]

MACHINE = "machine.toml"
"""Catalog file beside a log, of hardware that was measured where the log was written."""

FEWEST_COLUMNS = 2
"""Known columns by which a table is told from a log: no log begins with two of their names between commas."""


@dataclass(frozen=True, slots=True)
class RunsRead:
    """Measured runs, and what they came from."""

    runs: tuple[Run, ...]
    """Those of tables, in the order given, then those of logs, in the order of their paths."""
    skipped: tuple[Skipped, ...]
    """Rows and logs that are no run, each with the reason."""
    origin: dict[str, tuple[str, Sequence[str]]]
    """Of each file its digest, and the digests of its runs."""

    @property
    def logged(self) -> tuple[Run, ...]:
        """The runs of logs."""
        return tuple(run for run in self.runs if run.log)


def is_timings(path: Path) -> bool:
    """Whether a file is a table of microbenchmarks; one that cannot be read is none."""
    try:
        columns = _columns(path)
    except ValueError:
        return False
    known = len(columns & timings.COLUMNS.keys())
    return known >= FEWEST_COLUMNS and known > len(columns & run_table.COLUMNS.keys())


def _is_run_table(path: Path) -> bool:
    known = {*run_table.COLUMNS, *run_table.OTHER_NAMES}
    return len(_columns(path) & known) >= FEWEST_COLUMNS


def _columns(path: Path) -> frozenset[str]:
    """Return the names of a table's columns, whatever the file is."""
    first = next(split_lines(LogText(path).texts()), "")
    try:
        return frozenset(next(csv.reader([first]), ()))
    except csv.Error:
        return frozenset()


def read_runs(paths: Sequence[Path], catalog: Catalog) -> RunsRead:
    """Read measured runs from tables and step logs.

    The order of logs does not matter; one that was given before, whatever its name, does not count again; parts of one
    are joined. A log may lie beside a `machine.toml` of the hardware that wrote it.

    Args:
        paths: of each file its content tells what it is.
        catalog: of hardware.

    Raises:
        ValueError: a file cannot be read, or is of no known form.
    """
    runs: list[Run] = []
    skipped: list[Skipped] = []
    origin: dict[str, tuple[str, Sequence[str]]] = {}
    tables = [path for path in paths if _is_run_table(path)]
    for path in tables:
        if is_timings(path):
            raise ValueError(f"files: {shown(str(path), 200)} is a table of microbenchmarks; it holds no runs")
        read, digest = run_table.read_run_table(path, catalog), sha256(path.read_bytes()).hexdigest()
        if digest in (one for one, _ in origin.values()):
            skipped.append(Skipped(str(path), "table: the same as one before"))
            continue
        runs += read.items
        skipped += read.skipped
        origin[_label(path.name, origin)] = (digest, tuple(run.digest for run in read.items))
    different: dict[str, Log] = {}
    for log in map(read_log, sorted(path for path in paths if path not in tables)):
        if log.sha256 in different:
            skipped.append(Skipped(str(log.path), "log: the same as one before"))
        different.setdefault(log.sha256, log)
    known = set()
    for log in _joined(list(different.values())):
        run, path = logged_run_of(log, _catalog_beside(log.path, catalog)), log.path
        if run.digest in known:  # whole, and in parts
            skipped.append(Skipped(run.name, "log: the same as one before"))
            continue
        known.add(run.digest)
        runs.append(run)
        origin[_label(f"{path.resolve().parent.name}/{path.name}", origin)] = (log.sha256, (run.digest,))
    return RunsRead(tuple(runs), tuple(skipped), origin)


def _catalog_beside(log: Path, catalog: Catalog) -> Catalog:
    beside = log.with_name(MACHINE)
    return catalog.with_file(beside) if beside.is_file() else catalog


def _joined(logs: Sequence[Log]) -> list[Log]:
    """Return logs, parts of one as one: those that state one run, begun at one time, and follow each other."""
    runs: list[tuple[RunRecord, list[Log]]] = []
    for log in logs:
        record = run_record_of(log)
        parts = next((p for other, p in runs if other == record and all(_follow(log, part) for part in p)), None)
        if parts is None or not record.started:
            runs.append((record, [log]))
        else:
            parts.append(log)
    return [parts[0] if len(parts) == 1 else read_log(*(part.path for part in parts)) for _, parts in runs]


def _follow(log: Log, other: Log) -> bool:
    """Whether the steps of one of two logs all come after those of the other."""
    if not log.records or not other.records:
        return False
    return log.records[-1].step < other.records[0].step or other.records[-1].step < log.records[0].step


def _label(name: str, others: dict[str, tuple[str, Sequence[str]]]) -> str:
    """Return a name that no other file has."""
    names = (name if i == 1 else f"{name} ({i})" for i in count(1))
    return next(name for name in names if name not in others)
