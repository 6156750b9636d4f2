"""Write the tables of this folder in the formats that `calibrate` reads: run once, its output is committed.

    python reports/measured/tables/convert_all.py

`reports/measured/runs` has the runs that stacks are fitted to, `reports/measured/further` those that they are held
against, `reports/measured/timings` the microbenchmarks, and `skipped.csv` beside this file
what of each table is neither, with the reason. All that is special to a table its own script knows.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import convert_collective_microbench
import convert_measured_runs
import convert_measured_runs_2026_11
import convert_op_microbench
import convert_ultrascale_h100
import convert_vtrain

from estimator.runs.measured import Run, refuse_impossible
from estimator.runs.run_table import one_of, write_run_table
from estimator.runs.timings import Timed, write_timing_table
from estimator.work.plan import Plans
from estimator.work.rules import Trainer, reasons

TABLES = Path(__file__).parent

RUNS = {
    "ultrascale_h100": convert_ultrascale_h100.run_of,
    "vtrain_a100_single_node": convert_vtrain.run_of,
    "measured_runs": convert_measured_runs.run_of,
    "measured_runs_partial": convert_measured_runs.run_of,
}
FURTHER = {"measured_runs_2026_11": convert_measured_runs_2026_11.run_of}
"""Runs that no stack is fitted to."""

TIMINGS = {
    "op_microbench": convert_op_microbench.run_of,
    "collective_microbench": convert_collective_microbench.run_of,
}

Skips = list[tuple[str, str, str]]
"""Table, row, and why it is left out."""


def possible(run: Run) -> Run:
    """Return a run without what it cannot have been; a ValueError says why it can have been nothing.

    Raises:
        ValueError: its own software cannot have run it, or nothing can.
    """
    fine, first = [], ""
    for one in run.all_it_may_be:
        try:
            refuse(one)
            fine.append(one)
        except ValueError as error:
            first = first or str(error)
    if not fine:
        raise ValueError(first)
    return one_of(fine)


def refuse(run: Run) -> None:
    """Refuse a run that its own software cannot have run, or that nothing can.

    nanotron divides layers over stages itself; Megatron counts the embedding and the loss as a layer each.
    """
    software = Trainer(
        divides_layers=run.trainer.startswith("nanotron"),
        underfills=True,
        counts_ends=run.trainer.startswith(("megatron", "mlperf")),
    )
    (reason,) = reasons(Plans.of([run.plan]), run.workload, run.machine.num_devices, software)
    if why := f"plan: {reason}" if reason else refuse_impossible(run):
        raise ValueError(why)


def converted(name: str, skipped: Skips) -> Sequence[Run | Timed]:
    """Return what a table holds, and add what it does not to the skipped."""
    found: list[Run | Timed] = []
    with (TABLES / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=1):
            try:
                item = (RUNS | FURTHER | TIMINGS)[name](row, number)
                found.append(possible(item) if isinstance(item, Run) else item)
            except ValueError as error:
                skipped.append((name, row.get("id") or row.get("job_id") or f"row {number}", str(error)))
    return found


def write(folder: Path) -> None:
    """Write all tables into a folder that is as `reports/measured`."""
    skipped: Skips = []
    kinds = (
        ("runs", RUNS, write_run_table),
        ("further", FURTHER, write_run_table),
        ("timings", TIMINGS, write_timing_table),
    )
    for kind, tables, write_table in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name in tables:
            write_table(folder / kind / f"{name}.csv", converted(name, skipped))
    (folder / "tables").mkdir(exist_ok=True)
    with (folder / "tables" / "skipped.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("table", "row", "why"), *skipped])


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else TABLES.parent)
