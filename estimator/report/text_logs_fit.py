"""What a user reads of a calibration on a terminal: what was fitted, and runs held against predictions."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from estimator.calibrate.fit_logs import Trial
from estimator.report.text import number, plain_table
from estimator.stack.stack import Stack


def print_stack(console: Console, stack: Stack) -> None:
    """Print what a fit found."""
    table = plain_table("parameter", "prior", "fitted", "unit")
    values = stack.efficiencies("")._asdict()
    for i, (name, prior) in enumerate(stack.priors.items()):
        sd = stack.fit.covariance[i][i] ** 0.5
        table.add_row(name, f"{prior.median:g} +- {prior.log_sd:.0%}", f"{values[name]:.4g} +- {sd:.1%}", prior.unit)
    for name, family in stack.fit.families.items():
        factor, spread = stack.efficiencies(name).family_factor, stack.fit.family_log_sd
        table.add_row(
            f"factor of {name}", f"1 +- {spread:.0%}", f"{factor:.3f} +- {family.log_sd:.1%}", "device seconds"
        )
    console.print(table)


def print_trials(console: Console, trials: Sequence[Trial]) -> None:
    """Print runs held against predictions, and the median error."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="cyan")
    table.add_column("run")
    for name in (
        "step s",
        "measured",
        "error",
        "minutes",
        "as logged",
        "error",
        "MiB",
        "error",
        "candidates",
        "possible",
    ):
        table.add_column(name, justify="right")
    for trial in trials:
        run, seconds = trial.run, trial.step_s
        logged_error, memory_error = trial.logged_error, trial.memory_error
        table.add_row(
            run.log_name.removesuffix(".log"),
            f"{number(seconds.value)} ({number(seconds.low)}-{number(seconds.high)})",
            number(trial.measured_step_s),
            f"{trial.step_error:+.1%}",
            number(trial.minutes.value),
            number(trial.logged_tokens_per_s),
            "-" if logged_error is None else f"{logged_error:+.1%}",
            number(trial.memory_mib.value),
            "-" if memory_error is None else f"{memory_error:+.1%}",
            f"{trial.num_candidates} ({run.record.num_candidates})",
            f"{trial.num_possible} ({run.record.num_possible or '-'})",
        )
    console.print(table)
    errors = sorted(abs(trial.step_error) for trial in trials)
    covered = sum(trial.step_s.low <= trial.measured_step_s <= trial.step_s.high for trial in trials)
    console.print(
        f"seconds per step: median absolute error {errors[len(errors) // 2]:.1%}, {covered} of {len(trials)} inside "
        "the 90 % interval; in parentheses what the log says"
    )
    for trial in trials:
        ran, chosen = str(trial.run.run.plan), trial.chosen
        console.print(
            f"{trial.run.log_name}: ran {ran}; chosen here: {'the same' if ran == chosen else chosen}", style="dim"
        )
