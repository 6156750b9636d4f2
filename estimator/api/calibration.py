"""What a calibration gives: runs beside their predictions, and the stack that was fitted to them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimator.api.runs import counted
from estimator.calibrate.assess import Assessed, assess, to_frame
from estimator.calibrate.fit_stack import fit_stack_to_runs
from estimator.calibrate.hold_out import SCHEMA, hold_out_document, hold_outs
from estimator.calibrate.microbench import Timing, joined, microbench_document, read_timings
from estimator.calibrate.residual_study import study
from estimator.report.page_runs import write_report
from estimator.runs.csv_rows import Skipped
from estimator.runs.measured import Run
from estimator.runs.read import read_runs
from estimator.stack.file import place_of, refuse_replacing, write_stack
from estimator.stack.stack import Prior, Stack, builtin_stacks, load_premises, load_stack
from hardware.catalog import Catalog
from hardware.errors import shown
from hardware.files import read_regular_file

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS_BYTES = 2**28
"""Of a file of runs as held out; those of all published tables take 4 MiB."""


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
    logged: tuple[Run, ...] = ()
    """Those of the runs that logs hold."""
    document: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What was held out, schema `hold-out/1`: by stack and split, how wrong predictions are; {} where nothing was."""
    pages: tuple[Path, ...] = ()
    """The reports that were written."""
    written: tuple[Path, ...] = ()
    """The files of the stack that were written."""

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
        return "\n".join([*lines, *(f"  {page}" for page in self.pages)])

    def to_frame(self) -> "pd.DataFrame":
        """Return a row a run, as `assess.to_frame`, and the split that it was held out in.

        `in_sample` tells the runs that the stack was fitted to, whose error says nothing of accuracy.
        """
        return to_frame(self.rows).assign(split=self.splits)


@dataclass(frozen=True, slots=True)
class Microbench:
    """Timed operations beside their predictions, and the priors of efficiencies that they imply."""

    timings: tuple[Timing, ...]
    document: Mapping[str, Any] = field(repr=False)
    """Schema `microbench/1`: errors by device and kind, and the priors beside those of the stacks."""

    def __repr__(self) -> str:
        """Return how many rows are predicted, and the median of each prior that they imply."""
        implied = ", ".join(f"{prior['parameter']} {prior['median']:.3g}" for prior in self.document["priors"])
        skipped = len(self.document["skipped"])
        return f"{counted(self.timings, 'timing')} predicted, {skipped} skipped; they imply {implied or 'no prior'}"

    def to_frame(self) -> "pd.DataFrame":
        """Return a row a timing."""
        import pandas as pd  # noqa: PLC0415 - slow to import, and only a frame needs it

        return pd.DataFrame([timing._asdict() for timing in self.timings])


def table_stacks() -> list[str]:
    """Return the built-in stacks that runs of a trainer can be fitted to."""
    return [name for name in builtin_stacks() if load_premises(name).trainer]


def checked(files: Sequence[Path], stack: str | None, hardware: Catalog) -> Calibration:
    """Return runs beside the predictions of a stack, or of that of their trainer."""
    read = read_runs(files, hardware)
    found = assess(read.runs, [load_stack(name) for name in ([stack] if stack else table_stacks())])
    skipped = (*read.skipped, *found.skipped)
    return Calibration(found.rows, ("",) * len(found.rows), skipped, logged=read.logged)


def held_out(files: Sequence[Path], stack: str | None, hardware: Catalog, kept: Path | None = None) -> Calibration:
    """Return runs beside predictions by fits that did not see the part that they are in, once for each way to part.

    Args:
        files: of the runs.
        stack: the one to hold out runs of; None for all.
        hardware: the catalog.
        kept: where the runs as predicted are written, if anywhere.
    """
    read = read_runs(files, hardware)
    names = [stack] if stack else table_stacks()
    found = hold_outs({name: load_premises(name) for name in names}, read.runs)
    rows = [(row, split) for splits in found.values() for split, of_split in splits.items() for row in of_split]
    document = hold_out_document(found)
    if kept:
        _write_rows(document, kept)
    return Calibration(
        tuple(row for row, _ in rows), tuple(split for _, split in rows), read.skipped, document=document
    )


def reported(
    files: Sequence[Path], stack: str | None, hardware: Catalog, folder: Path, kept: Path | None = None
) -> Calibration:
    """Write the report of each stack that has runs here, and return where.

    Args:
        files: of the runs.
        stack: the one to report; None for all.
        hardware: the catalog.
        folder: of the reports.
        kept: the runs as held out before; None to hold them out now.
    """
    read = read_runs(files, hardware)
    names = [stack] if stack else table_stacks()
    trainers = {run.trainer for run in read.runs}
    own = [name for name in names if any(map(load_premises(name).is_of, trainers))]
    if not own:
        raise ValueError(f"report: no run of a trainer of {', '.join(names)}; give the runs that a stack was fitted to")
    known = _held_out_before(kept) if kept else {}
    studies = [study(one, read.runs, known.get(one.name)) for one in map(load_stack, own)]
    pages = tuple(page for of_stack in studies for page in write_report(of_stack, folder))
    return Calibration((), (), read.skipped, pages=pages)


def fitted(
    files: Sequence[Path],
    name: str,
    hardware: Catalog,
    *,
    write: bool,
    in_place: bool = False,
    replace: bool = False,
) -> Calibration:
    """Return a stack fitted to the runs of its trainer, and these beside its predictions."""
    premises = load_premises(name)
    place = place_of(name, in_place=in_place) if write else None
    if place and not in_place and not replace:
        refuse_replacing(place)
    if place and place.premises:
        premises = premises.model_copy(update={"name": place.name})
    read = read_runs(files, hardware)
    stack = fit_stack_to_runs(premises, read.runs, read.origin)
    found = assess([run for run in read.runs if stack.is_of(run.trainer)], [stack])
    if place:
        write_stack(stack, name, place)
    written = tuple(path for path in (place.premises, place.fit) if path) if place else ()
    skipped = (*read.skipped, *found.skipped)
    return Calibration(found.rows, ("",) * len(found.rows), skipped, stack, read.logged, written=written)


def benchmarked(tables: Sequence[Path], hardware: Catalog) -> Microbench:
    """Return tables of microbenchmarks beside their predictions, and the priors that they imply."""
    read = joined([read_timings(path, hardware) for path in tables])
    priors: dict[str, Mapping[str, Prior]] = {name: load_premises(name).priors for name in builtin_stacks()}
    return Microbench(read.items, microbench_document(read, priors))


def _write_rows(document: Mapping[str, Any], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"rows: {shown(str(path), 200)} cannot be written; check its folder") from error


def _held_out_before(path: Path) -> dict[str, Any]:
    """Return the hold-outs of stacks that a file has."""
    where, mend = f"rows: {shown(str(path), 200)}", "make it anew, or leave it out"
    try:
        content = read_regular_file(path, MOST_ROWS_BYTES)
    except OSError as error:
        raise ValueError(f"{where}: is not what --hold-out --rows writes; {mend}") from error
    except ValueError as error:
        raise ValueError(f"rows: {error}") from error
    try:
        document = json.loads(content)
        schema = document["schema"]
        stacks = document["stacks"] if schema == SCHEMA else {}
        has_rows = all("rows" in split for splits in stacks.values() for split in splits.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where}: is not what --hold-out --rows writes; {mend}") from error
    if schema != SCHEMA:
        raise ValueError(f"{where}: its schema is {shown(schema)}, not {SCHEMA!r}; make it anew")
    if not has_rows:
        raise ValueError(f"{where}: has no rows; make it anew with --hold-out --rows")
    return dict(stacks)
