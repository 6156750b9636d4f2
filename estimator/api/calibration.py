"""What a calibration gives: runs beside their predictions, and the stack that was fitted to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimator.api.runs import counted, run_row
from estimator.calibrate.assess import Assessed, assess
from estimator.calibrate.fit_stack import fit_stack_to_runs
from estimator.calibrate.hold_out import hold_outs
from estimator.runs.csv_rows import Skipped
from estimator.runs.inputs import read_inputs
from estimator.runs.logged import logged_startup
from estimator.stack.file import read_premises, stack_text, write_stack
from estimator.stack.stack import Stack, builtin_stacks, load_stack, read_stack_text, stack_path

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured runs beside their predictions."""

    rows: tuple[Assessed, ...]
    splits: tuple[str, ...]
    """Of each row, which part of the runs the fit did without; "" where it took them all, or there was none."""
    skipped: tuple[Skipped, ...]
    """What is no run, or has no stack: of each the name, and why."""
    stack: Stack | None = None
    """The stack that was fitted."""

    def __repr__(self) -> str:
        """Return how many runs are predicted, in and out of sample, and how far the seconds are off."""
        fitted = f"{self.stack.name} fitted to them; " if self.stack else ""
        lines = [f"{fitted}{counted(self.rows, 'prediction')} of runs, {len(self.skipped)} skipped"]
        for in_sample in (False, True):
            errors = sorted(
                abs(row.step_error)
                for row in self.rows
                if row.in_sample == in_sample and row.step_error is not None and not row.run.why_unhealthy
            )
            if errors:
                where = "in sample" if in_sample else "out of sample"
                lines.append(f"  {where}: seconds off by {errors[len(errors) // 2]:.1%} at the median of {len(errors)}")
        return "\n".join(lines)

    def to_frame(self) -> "pd.DataFrame":
        """Return a row a run: what ran, what was measured, what is predicted with its 90 % interval, and the error.

        Measured columns are `step_s` and `reserved_bytes`; `in_sample` tells the runs that the stack was fitted to,
        whose error says nothing of accuracy.
        """
        import pandas as pd  # noqa: PLC0415 - slow to import, and only a frame needs it

        return pd.DataFrame([_row(row, split) for row, split in zip(self.rows, self.splits, strict=True)])


def _row(row: Assessed, split: str) -> dict[str, Any]:
    ranges = {"predicted_step_s": row.step_s, "predicted_reserved_bytes": row.reserved_bytes}
    return {
        **run_row(row.run),
        "stack": row.stack,
        "split": split,
        "in_sample": row.in_sample,
        **{f"{name}{end}": x for name, of in ranges.items() for end, x in zip(("", "_low", "_high"), of, strict=True)},
        "step_error": row.step_error,
        "memory_error": row.memory_error,
        "fits_probability": row.fits_probability,
    }


def table_stacks() -> list[str]:
    """Return the built-in stacks that runs of a trainer can be fitted to."""
    return [name for name in builtin_stacks() if read_premises(read_stack_text(name), name).trainer]


def checked(files: Sequence[Path], stack: str | None, hardware: Sequence[Path]) -> Calibration:
    """Return runs beside the predictions of a stack, or of that of their trainer."""
    inputs = read_inputs(files, (), hardware)
    found = assess(inputs.runs, [load_stack(name) for name in ([stack] if stack else table_stacks())])
    return Calibration(found.rows, ("",) * len(found.rows), (*inputs.skipped, *found.skipped))


def held_out(files: Sequence[Path], stack: str | None, hardware: Sequence[Path]) -> Calibration:
    """Return runs beside predictions by fits that did not see the part that they are in, once for each way to part."""
    inputs = read_inputs(files, (), hardware)
    names = [stack] if stack else table_stacks()
    found = hold_outs({name: read_premises(read_stack_text(name), name) for name in names}, inputs.runs)
    rows = [(row, split) for splits in found.values() for split, of_split in splits.items() for row in of_split]
    return Calibration(tuple(row for row, _ in rows), tuple(split for _, split in rows), tuple(inputs.skipped))


def fitted(files: Sequence[Path], name: str, hardware: Sequence[Path], *, write: bool) -> Calibration:
    """Return a stack fitted to the runs of its trainer, and these beside its predictions."""
    text, inputs = read_stack_text(name), read_inputs(files, (), hardware)
    stack = fit_stack_to_runs(read_premises(text, name), inputs.runs, inputs.origin)
    stack = stack.model_copy(update={"startup": logged_startup(stack.startup, inputs.logged)})
    found = assess([run for run in inputs.runs if stack.is_of(run.trainer)], [stack])
    if write:
        write_stack(stack_path(name), stack_text(text, stack))
    return Calibration(found.rows, ("",) * len(found.rows), (*inputs.skipped, *found.skipped), stack)
