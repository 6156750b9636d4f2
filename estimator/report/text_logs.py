"""What a user reads of step logs: what each says of its run, what its times include, which lines are no evidence."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from estimator.report.text import number, plain_table
from estimator.runs.logged import UNKNOWN_LOG_SE
from estimator.runs.logs.read import Log
from estimator.runs.measured import Run
from estimator.runs.pace import Pace
from hardware.units import GIB


def print_logs(console: Console, runs: Sequence[Run]) -> None:
    """Print a line per log, what the times of each format include, and the refused lines with their reasons."""
    table = plain_table("log", "format", "s per step", "+-", "steps", "warm-up", "pauses", "slow steps", "GiB", "loss")
    for run in runs:
        table.add_row(*_cells(run))
    console.print(table)
    for form, coverage in {log.form: str(log.coverage) for log, _ in map(_told, runs)}.items():
        console.print(f"{form}: {coverage}", style="dim")
    for run in runs:
        log, _ = _told(run)
        for told in log.refused:
            console.print(f"refused: {run.name}: {told}", style="dim")
        if log.num_refused > len(log.refused):
            console.print(f"refused: {run.name}: {log.num_refused - len(log.refused)} lines more", style="dim")
        if log.is_sampled:
            console.print(f"{run.name}: of its many steps a sample is kept", style="dim")
    console.print()


def _told(run: Run) -> tuple[Log, Pace]:
    """Return what the log of a run says, which it has."""
    assert run.log
    assert run.pace
    return run.log, run.pace


def _cells(run: Run) -> list[str]:
    log, pace = _told(run)
    held, assumed = run.reserved_bytes, " (assumed)" if pace.log_se is None else ""
    return [
        run.name,
        log.form,
        number(pace.step_s),
        f"{UNKNOWN_LOG_SE if pace.log_se is None else pace.log_se:.1%}{assumed}",
        str(pace.num_steps),
        "in it" if log.whole else str(log.intervals().num_warm_up),
        f"{pace.num_outliers} ({number(pace.outlier_s)} s)" if pace.num_outliers else "-",
        f"{pace.modes.slow_fraction:.0%} by {pace.modes.slow_ratio - 1:.0%}" if pace.modes else "-",
        "-" if held is None else number(held / GIB),
        f"{log.losses[0]:.3g} to {log.losses[1]:.3g}" if log.losses else "-",
    ]


def log_document(run: Run) -> dict[str, Any]:
    """Return what a log says of its run, as `calibrate --json` prints it."""
    log, pace = _told(run)
    return {
        "log": run.name,
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
        "first_step_s": run.startup.first_step_s if run.startup else None,
        "launch_windows_s": list(run.launch_windows_s),
        "losses": list(log.losses) if log.losses else None,
        "reserved_bytes": run.reserved_bytes,
        "allocated_bytes": run.allocated_bytes,
        "total_bytes": run.total_bytes,
        "num_refused": log.num_refused,
        "refused": list(log.refused),
        "is_sampled": log.is_sampled,
    }
