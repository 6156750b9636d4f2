"""The calibration report of a stack that was fitted to a few runs with their logs, each left out in turn."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from estimator.calibrate.fit_logs import Trial
from estimator.report import figures
from estimator.report.page import Figure, Heading, PageTable, Piece, write_page
from estimator.report.page_runs_fit import mean_shares, parameters
from estimator.report.text import number
from estimator.stack.stack import Stack

OUT_OF_SAMPLE = "out of sample: each by a fit to the others"


def write_runs_report(
    stack: Stack, before: Sequence[Trial], left_out: Sequence[Trial], folder: Path
) -> tuple[Path, Path]:
    """Write the report of a stack into a folder; return its text and its page.

    Args:
        stack: fitted to all the runs.
        before: the runs as the priors alone predict them.
        left_out: the runs, each as a fit to the others predicts it.
        folder: made where it is not.

    Raises:
        ValueError: the folder cannot be written.
    """
    return write_page(stack.name, list(_report(stack, before, left_out)), folder)


def _report(stack: Stack, before: Sequence[Trial], left_out: Sequence[Trial]) -> Iterator[Piece]:
    yield stack.about
    yield f"{len(left_out)} runs with their logs. Errors are predicted over measured, less 1."
    yield Heading("How wrong it is")
    header = ("fit", "of", "runs", "median", "largest", "bias", "inside their 90 %")
    yield PageTable(header, (*_errors("before: the priors alone", before), *_errors(OUT_OF_SAMPLE, left_out)))
    yield Heading("Each run, left out")
    yield _each(left_out)
    yield Heading("Predicted against measured")
    steps = [figures.Compared(t.measured_step_s, t.step_s, t.run.workload.shape.family) for t in left_out]
    picture = figures.predicted_against_measured("Seconds per step", "s per step", steps)
    yield Figure("steps", picture, f"Seconds per step with 90 % intervals; bands of 5 and 10 %; {OUT_OF_SAMPLE}")
    yield from parameters(stack)
    yield Heading("Where the time goes")
    bars = {_name(t): mean_shares([t.step_breakdown]) for t in left_out}
    yield Figure("shares", figures.shares("Where the time goes", bars), "Parts of a predicted step")
    yield Heading("What the platform chose, and what is chosen here")
    yield PageTable(
        ("run", "ran", "chosen here", "candidates", "possible, as logged"),
        tuple(
            (
                _name(t),
                str(t.run.run.plan),
                "the same" if str(t.run.run.plan) == t.chosen else t.chosen,
                f"{t.num_candidates}",
                f"{t.num_possible}, {t.run.record.num_possible or '-'}",
            )
            for t in left_out
        ),
    )


def _errors(name: str, trials: Sequence[Trial]) -> Iterator[tuple[str, ...]]:
    inside = np.mean([t.step_s.low <= t.measured_step_s <= t.step_s.high for t in trials])
    measures: dict[str, list[float | None]] = {
        "seconds per step": [t.step_error for t in trials],
        "logged tokens/s": [t.logged_error for t in trials],
        "memory": [t.memory_error for t in trials],
    }
    for measure, told in measures.items():
        errors = np.array([error for error in told if error is not None])
        if len(errors):
            size = np.abs(errors)
            covered = f"{inside:.0%}" if measure == "seconds per step" else "-"
            numbers = (f"{np.median(size):.1%}", f"{size.max():.1%}", f"{np.median(errors):+.1%}")
            yield (name, measure, str(len(errors)), *numbers, covered)


def _each(trials: Sequence[Trial]) -> PageTable:
    def percent(error: float | None) -> str:
        return "-" if error is None else f"{error:+.1%}"

    return PageTable(
        ("run", "model", "seconds per step", "measured", "error", "of logged tokens/s", "of memory"),
        tuple(
            (
                _name(t),
                t.run.workload.shape.name,
                f"{number(t.step_s.value)} ({number(t.step_s.low)} to {number(t.step_s.high)})",
                number(t.measured_step_s),
                percent(t.step_error),
                percent(t.logged_error),
                percent(t.memory_error),
            )
            for t in trials
        ),
    )


def _name(trial: Trial) -> str:
    return trial.run.log_name.removesuffix(".log")
