"""What `calibrate` is given: tables of published runs and step logs, told apart by their content, as runs."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path

from estimator.runs.measured import Run
from estimator.runs.tables import FORMS
from estimator.runs.read import Skipped, read_run_table
from estimator.runs.logged import LoggedRun, logged_run_of, run_record_of
from estimator.runs.logs.text import LogText, split_lines
from estimator.runs.microbench_tables import FORMS as BENCHMARK_FORMS
from estimator.runs.record import RunRecord
from estimator.runs.logs.read import Log, read_log
from hardware.catalog import Catalog, load_catalog

RUN_TABLE_COLUMN = "log"
"""Of a table of runs whose logs lie beside it, as `moai_runs.read_runs` reads; that says what else is missing."""


@dataclass(slots=True)
class Inputs:
    """Runs of tables and of logs, and what they came from."""

    runs: list[Run] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    """Rows and logs that are no run."""
    logged: list[LoggedRun] = field(default_factory=list)
    """Of the runs, those of logs."""
    origin: dict[str, tuple[str, Sequence[str]]] = field(default_factory=dict)
    """Of each file its digest, and the digests of its runs."""


def _columns(path: Path) -> frozenset[str]:
    """Return the names of a table's columns, whatever the file is."""
    first = next(split_lines(LogText(path).texts()), "")
    try:
        return frozenset(next(csv.reader([first]), ()))
    except csv.Error:
        return frozenset()


def is_run_table(path: Path) -> bool:
    """Whether a file is a table of runs whose logs lie beside it.

    Raises:
        ValueError: it cannot be read.
    """
    return RUN_TABLE_COLUMN in _columns(path) and not is_table(path)


def is_table(path: Path) -> bool:
    """Whether a file is a table of published runs.

    Raises:
        ValueError: it cannot be read.
    """
    return any(form.mark in _columns(path) for form in FORMS)


def is_benchmark(path: Path) -> bool:
    """Whether a file is a table of microbenchmarks; one that cannot be read is none."""
    try:
        columns = _columns(path)
    except ValueError:
        return False
    return any(form.mark in columns for form in BENCHMARK_FORMS) and not is_table(path)


MACHINE = "machine.toml"
"""Catalog file beside a log, of hardware that was measured where the log was written."""


def _catalog_of(log: Path, hardware: Sequence[Path]) -> Catalog:
    beside = log.with_name(MACHINE)
    return load_catalog([*hardware, beside] if beside.is_file() else hardware)


def read_inputs(files: Sequence[Path], tables: Sequence[Path], hardware: Sequence[Path] = ()) -> Inputs:
    """Read files, each a table of published runs or a step log, and tables.

    The order of logs does not matter; one that was given before, whatever its name, does not count again; parts of one
    are joined.

    Args:
        files: each a table or a log, which its content tells.
        tables: further tables.
        hardware: catalog files beside the packaged ones.

    Raises:
        ValueError: one cannot be read, or is of no known form.
    """
    inputs, catalog = Inputs(), load_catalog(hardware)
    logs = [path for path in files if not is_table(path)]
    for path in (*tables, *(path for path in files if path not in logs)):
        read = read_run_table(path, catalog)
        inputs.runs += read.runs
        inputs.skipped += read.skipped
        digest = sha256(path.read_bytes()).hexdigest()
        inputs.origin[_label(path.name, inputs)] = (digest, [run.digest for run in read.runs])
    different: dict[str, Log] = {}
    for log in map(read_log, sorted(logs)):
        if log.sha256 in different:
            inputs.skipped.append(Skipped(str(log.path), "log: the same as one before"))
        different.setdefault(log.sha256, log)
    digests = set()
    for log in _joined(list(different.values())):
        logged, path = logged_run_of(log, _catalog_of(log.path, hardware)), log.path
        if logged.run.digest in digests:  # whole, and in parts
            inputs.skipped.append(Skipped(logged.run.name, "log: the same as one before"))
            continue
        digests.add(logged.run.digest)
        inputs.runs.append(logged.run)
        inputs.logged.append(logged)
        inputs.origin[_label(f"{path.resolve().parent.name}/{path.name}", inputs)] = (log.sha256, [logged.run.digest])
    return inputs


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


def _label(name: str, inputs: Inputs) -> str:
    """Return a name that no other file of the inputs has."""
    names = (name if i == 1 else f"{name} ({i})" for i in count(1))
    return next(name for name in names if name not in inputs.origin)
