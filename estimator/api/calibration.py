"""What a calibration gives: runs beside their predictions, and the stack that was fitted to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from estimator.api.runs import counted
from estimator.calibrate.assess import Assessed, assess, to_frame
from estimator.calibrate.fit_stack import fit_stack_to_runs
from estimator.calibrate.hold_out import hold_outs
from estimator.runs.csv_rows import Skipped
from estimator.runs.logged import logged_startup
from estimator.runs.read import read_runs
from estimator.stack.file import refuse_unwritable, write_fit
from estimator.stack.stack import Stack, builtin_stacks, fit_path, load_premises, load_stack
from hardware.catalog import load_catalog

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
                abs(error)
                for row in self.rows
                if row.in_sample == in_sample and (error := row.error("step")) is not None and not row.run.why_unhealthy
            )
            if errors:
                where = "in sample" if in_sample else "out of sample"
                lines.append(f"  {where}: seconds off by {errors[len(errors) // 2]:.1%} at the median of {len(errors)}")
        return "\n".join(lines)

    def to_frame(self) -> "pd.DataFrame":
        """Return a row a run, as `assess.to_frame`, and the split that it was held out in.

        `in_sample` tells the runs that the stack was fitted to, whose error says nothing of accuracy.
        """
        return to_frame(self.rows).assign(split=self.splits)


def table_stacks() -> list[str]:
    """Return the built-in stacks that runs of a trainer can be fitted to."""
    return [name for name in builtin_stacks() if load_premises(name).trainer]


def checked(files: Sequence[Path], stack: str | None, hardware: Sequence[Path]) -> Calibration:
    """Return runs beside the predictions of a stack, or of that of their trainer."""
    read = read_runs(files, load_catalog(hardware))
    found = assess(read.runs, [load_stack(name) for name in ([stack] if stack else table_stacks())])
    return Calibration(found.rows, ("",) * len(found.rows), (*read.skipped, *found.skipped))


def held_out(files: Sequence[Path], stack: str | None, hardware: Sequence[Path]) -> Calibration:
    """Return runs beside predictions by fits that did not see the part that they are in, once for each way to part."""
    read = read_runs(files, load_catalog(hardware))
    names = [stack] if stack else table_stacks()
    found = hold_outs({name: load_premises(name) for name in names}, read.runs)
    rows = [(row, split) for splits in found.values() for split, of_split in splits.items() for row in of_split]
    return Calibration(tuple(row for row, _ in rows), tuple(split for _, split in rows), read.skipped)


def fitted(files: Sequence[Path], name: str, hardware: Sequence[Path], *, write: bool) -> Calibration:
    """Return a stack fitted to the runs of its trainer, and these beside its predictions."""
    if write:
        refuse_unwritable(name)
    read = read_runs(files, load_catalog(hardware))
    stack = fit_stack_to_runs(load_premises(name), read.runs, read.origin)
    stack = stack.model_copy(update={"startup": logged_startup(stack.startup, read.logged)})
    found = assess([run for run in read.runs if stack.is_of(run.trainer)], [stack])
    if write:
        write_fit(stack, fit_path(name))
    return Calibration(found.rows, ("",) * len(found.rows), (*read.skipped, *found.skipped), stack)
