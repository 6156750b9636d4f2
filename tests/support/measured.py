"""Measured runs that several tests begin with: each file is read once in a process."""

from functools import cache

from estimator.runs.measured import Run
from estimator.runs.read import RunsRead, read_runs
from hardware.catalog import load_catalog
from tests.support.paths import MEASURED, TABLES


@cache
def table_runs(name: str) -> tuple[Run, ...]:
    """Return the runs of a committed table."""
    return tuple(read_runs([TABLES / f"{name}.csv"], load_catalog()).runs)


@cache
def moai_logs() -> RunsRead:
    """Return what the platform's logs hold."""
    return read_runs(sorted((MEASURED / "moai").glob("*.log")), load_catalog())
