"""What a user reads of step logs: what each says of its run, what its times include, which lines are no evidence."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from estimator.report.text import number, plain_table
from estimator.runs.logged import LoggedRun
from hardware.units import GIB


def print_logs(console: Console, runs: Sequence[LoggedRun]) -> None:
    """Print a line per log, what the times of each format include, and the refused lines with their reasons."""
    table = plain_table("log", "format", "s per step", "+-", "steps", "warm-up", "pauses", "slow steps", "GiB", "loss")
    for run in runs:
        table.add_row(*_cells(run))
    console.print(table)
    for form, coverage in {run.log.form: str(run.log.coverage) for run in runs}.items():
        console.print(f"{form}: {coverage}", style="dim")
    for run in runs:
        for told in run.log.refused:
            console.print(f"refused: {run.run.name}: {told}", style="dim")
        if run.log.num_refused > len(run.log.refused):
            more = run.log.num_refused - len(run.log.refused)
            console.print(f"refused: {run.run.name}: {more} lines more", style="dim")
        if run.log.is_sampled:
            console.print(f"{run.run.name}: of its many steps a sample is kept", style="dim")
    console.print()


def _cells(run: LoggedRun) -> list[str]:
    pace, losses, held = run.pace, run.log.losses, run.run.reserved_bytes
    return [
        run.run.name,
        run.log.form,
        number(pace.step_s),
        f"{run.log_se:.1%}" if pace.log_se is not None else f"{run.log_se:.1%} (assumed)",
        str(pace.num_steps),
        "in it" if run.log.whole else str(run.log.intervals().num_warm_up),
        f"{pace.num_outliers} ({number(pace.outlier_s)} s)" if pace.num_outliers else "-",
        f"{pace.modes.slow_fraction:.0%} by {pace.modes.slow_ratio - 1:.0%}" if pace.modes else "-",
        "-" if held is None else number(held / GIB),
        f"{losses[0]:.3g} to {losses[1]:.3g}" if losses else "-",
    ]


def log_document(run: LoggedRun) -> dict[str, Any]:
    """Return what a log says of its run, as `calibrate --json` prints it."""
    pace, log = run.pace, run.log
    return {
        "log": run.run.name,
        "format": log.form,
        "sha256": log.sha256,
        "times_include": log.coverage._asdict(),
        "step_s": pace.step_s,
        "step_s_log_se": pace.log_se,
        "num_steps": pace.num_steps,
        "num_warm_up": None if log.whole else log.intervals().num_warm_up,
        "modes": pace.modes._asdict() if pace.modes else None,
        "num_outliers": pace.num_outliers,
        "outlier_s": pace.outlier_s,
        "first_step_s": run.first_step_s,
        "losses": list(log.losses) if log.losses else None,
        "reserved_bytes": run.run.reserved_bytes,
        "allocated_bytes": run.run.allocated_bytes,
        "num_refused": log.num_refused,
        "refused": list(log.refused),
        "is_sampled": log.is_sampled,
    }
