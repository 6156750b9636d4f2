"""The calibration report of a stack: what was fitted, and how wrong it is."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from estimator.calibrate.assess import MEASURES, PART, fit_calls, summarize, timed
from estimator.calibrate.hold_out import ranking
from estimator.calibrate.residual_fit import LENGTH
from estimator.calibrate.residual_study import FEWEST, LEVELS, Study, coverages, trends, worst
from estimator.predict.interval import Range
from estimator.predict.residual import FEATURES
from estimator.report import figures
from estimator.report.page import Figure, Heading, PageTable, Piece, write_page
from estimator.report.text import number
from estimator.report.text_runs import CONSTRAINED
from estimator.stack.stack import Stack
from hardware.units import GIB

if TYPE_CHECKING:
    import pandas as pd

MOST_GROUPS = 24
"""Rows of a picture of groups; those with most runs are shown."""

GROUPS = ("model", "devices", "plan", "sequence", "source")
"""By what residuals are shown."""

LEAST_SHARE = 0.002
"""Of a step, below which a part of it is not shown."""


def write_report(study: Study, folder: Path) -> tuple[Path, Path]:
    """Write the report of a stack into a folder; return its text and its page.

    Raises:
        ValueError: the folder cannot be written.
    """
    return write_page(study.stack.name, list(report(study)), folder)


def report(study: Study) -> Iterator[Piece]:
    """Yield the parts of a report, in their order; of few runs each is shown, of many how they fare in groups."""
    rows, sample = _most_honest(study)
    few = len(timed(rows)) < FEWEST
    of = f" of {study.stack.trainer!r}" if study.stack.trainer else ""
    yield study.stack.about
    yield (
        f"{len(study.after)} runs{of}, {len(timed(study.after))} of them healthy and timed. "
        f"Pictures show {sample}. Errors are predicted over measured, less 1."
    )
    yield from _accuracy(study)
    if few:
        yield from _each(rows, sample)
    yield from _comparisons(rows, sample)
    if not few:
        yield from _residuals(rows)
    yield from _coverage(study)
    yield from _parameters(study.stack)
    yield from _likeness(study.stack)
    yield from _shares(rows, "run" if few else "plan")
    yield from _misses(rows)
    yield from _next_measurements(study)


def _most_honest(study: Study) -> "tuple[pd.DataFrame, str]":
    """Return the runs to be shown: as predicted by fits that never saw them, where there are any."""
    for name, rows in study.held_out.items():
        return rows, f"each run as predicted by a fit that never saw it (held out: {name})"
    return study.after, "each run as predicted by the fit to all of them, which is no accuracy"


def _accuracy(study: Study) -> Iterator[Piece]:
    yield Heading("How wrong it is")
    sets = {
        "before: the priors alone": study.before,
        **{f"out of sample, held out: {name}": rows for name, rows in study.held_out.items()},
        "in sample: fitted to all (no accuracy)": study.after,
    }
    yield PageTable(
        ("fit", "of", "runs", "median", "90 % below", "mean", "bias", "inside their 90 %"),
        tuple(
            (
                *(name, _words(s["measure"]), str(s["num_runs"])),
                *(f"{s[size]:.1%}" for size in ("median", "p90", "mean")),
                *(f"{s['bias']:+.1%}", f"{s['coverage']:.0%}"),
            )
            for name, rows in sets.items()
            for s in summarize(rows).reset_index().to_dict("records")
        ),
    )
    for name, rows in sets.items():
        calls = fit_calls(rows)
        if not rows["fits"].fillna(value=True).all():
            yield (
                f"Fits or runs out of memory, {name}: {calls.right:.1%} of {calls.num_runs} calls right; "
                f"{calls.false_fits} called to fit ran out of memory, {calls.expected_false_fits:.1f} expected by the "
                "stated probabilities."
            )
    for name, rows in study.held_out.items():
        order = ranking(rows)
        if order.num_pairs:
            yield (
                f"Of {order.num_pairs} pairs of runs that differ in plan alone and by over 5 % in time, the faster was "
                f"predicted faster in {order.right:.1%} (held out: {name})."
            )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _each(rows: "pd.DataFrame", sample: str) -> Iterator[Piece]:
    further = [name for name in MEASURES if name != "step" and rows[f"{name}_error"].notna().any()]
    yield Heading("Each run")
    yield f"Here is {sample}."
    yield PageTable(
        ("run", "model", "seconds per step", "measured", "error", *(f"of {_words(name)}" for name in further)),
        tuple(
            (
                *(f"{row['run']}{', not healthy' * bool(row['unhealthy'])}", row["model"]),
                *(_seconds(row), _or_dash(row["step_s"], number)),
                *(_or_dash(row[f"{name}_error"], "{:+.1%}".format) for name in ("step", *further)),
            )
            for row in rows.to_dict("records")
        ),
    )


def _seconds(row: Mapping[Any, Any]) -> str:
    value, low, high = (number(row[f"predicted_step_s{end}"]) for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


def _or_dash(value: float, write: Callable[[float], str]) -> str:
    return "-" if np.isnan(value) else write(value)


def _comparisons(rows: "pd.DataFrame", sample: str) -> Iterator[Piece]:
    yield Heading("Predicted against measured")
    if steps := _compared(rows, "step_s"):
        picture = figures.predicted_against_measured("Seconds per step", "s per step", steps)
        yield Figure("steps", picture, f"Seconds per step with 90 % intervals; bands of 5 and 10 %; {sample}")
    if held := _compared(rows, "reserved_bytes", GIB):
        picture = figures.predicted_against_measured("Reserved memory", "GiB per device", held)
        yield Figure("memory", picture, f"Peak reserved memory of a device; {sample}")


def _compared(rows: "pd.DataFrame", name: str, unit: float = 1.0) -> list[figures.Compared]:
    own = rows[rows[name].notna()]
    kinds = own["accelerator"].where(own["unhealthy"] == "", "not healthy")
    numbers = own[[name, *(f"predicted_{name}{end}" for end in ("", "_low", "_high"))]].to_numpy() / unit
    return [
        figures.Compared(measured, Range(*predicted), kind)
        for (measured, *predicted), kind in zip(numbers.tolist(), kinds, strict=True)
    ]


def _residuals(rows: "pd.DataFrame") -> Iterator[Piece]:
    yield Heading("Residuals")
    own = timed(rows)
    own = own.assign(
        devices=own["num_devices"].astype(str) + " " + own["accelerator"],
        sequence=own["seq_len"].astype(str) + " tokens",
    )
    for by in GROUPS:
        most, count = _largest_groups(own, by), own[by].nunique()
        if count < 2:
            continue
        errors = {group: own["step_error"][own[by] == group].tolist() for group in most}
        left = f"; {count - len(most)} smaller groups are left out" if count > len(most) else ""
        caption = f"By {by}: dots are runs, bars the middle 80 %, at the right their number{left}"
        yield Figure(f"by-{by}", figures.residuals(f"Errors by {by}", errors), caption)
    yield Heading("What physics they point to")
    if found := trends(rows):
        header = ("errors trend with", "per doubling", "t", "which points to")
        yield PageTable(
            header, tuple((t.feature, f"{np.expm1(t.slope):+.1%}", f"{t.t:+.1f}", t.physics) for t in found)
        )
    else:
        yield "No feature of the runs explains the errors that are left: none has a slope of three standard errors."


def _largest_groups(rows: "pd.DataFrame", by: str) -> list[str]:
    """Return the groups with most runs, in the order of their names, numbers in them by their size."""
    sizes = {str(group): count for group, count in rows[by].value_counts().items()}
    return sorted(sorted(sizes, key=lambda group: (-sizes[group], group))[:MOST_GROUPS], key=_natural)


def _natural(words: str) -> tuple[object, ...]:
    """Return a key that sorts numbers in words by their size."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", words))


def _coverage(study: Study) -> Iterator[Piece]:
    degrees = study.stack.fit.degrees_of_freedom
    lines = {name: coverages(rows, degrees) for name, rows in study.held_out.items()}
    lines = {name: inside for name, inside in lines.items() if inside}
    if lines:
        yield Heading("What the intervals are worth")
        caption = "Measurements inside intervals of each stated level, out of sample; on the line is right"
        yield Figure("coverage", figures.coverage("Coverage", LEVELS, lines), caption)


def _parameters(stack: Stack) -> Iterator[Piece]:
    yield Heading("What was fitted")
    values = dict(zip(stack.fit.names, stack.fit.log_values, strict=True))
    sds = dict(zip(stack.fit.names, np.sqrt(np.diag(np.array(stack.fit.covariance))), strict=True))
    believed = [
        figures.Believed(name, prior.median, prior.log_sd, float(np.exp(values[name])), float(sds[name]))
        for name, prior in stack.priors.items()
    ]
    caption = "Parameters with 90 % intervals, over their priors' medians"
    yield Figure("parameters", figures.beliefs("Parameters", believed), caption)
    rows = [
        (
            b.name,
            f"{b.prior:.3g} +- {b.prior_log_sd:.0%}",
            f"{b.fitted:.4g} +- {b.fitted_log_sd:.1%}",
            "no: the prior stands" if b.fitted_log_sd > CONSTRAINED * b.prior_log_sd else "yes",
            stack.priors[b.name].unit,
        )
        for b in believed
    ]
    others = [name for name in stack.fit.names if name not in stack.priors]
    rows += [
        (f"factor of {n}", "1", f"{np.exp(values[n]):.3f} +- {sds[n]:.1%}", "yes", "of device seconds") for n in others
    ]
    yield PageTable(("parameter", "before", "after", "told by the data", "unit"), tuple(rows))


def _likeness(stack: Stack) -> Iterator[Piece]:
    found = {
        what: residual
        for what, residual in (
            ("seconds", stack.fit.step_residual),
            ("memory", stack.fit.memory_residual),
        )
        if residual
    }
    if not found:
        return
    yield Heading("What the errors follow")
    for what, one in found.items():
        yield (
            f"Of {what}, the model's own errors come to {one.scale:.1%}; runs inherit those of runs like them. What "
            f"nothing explains is {one.noise_of_one:.1%} on one device, {np.expm1(one.growth):.0%} more for each "
            f"doubling of devices. Intervals are {one.widened_by:.2f} times what follows, as runs held out ask."
        )
    yield (
        "Errors stay alike over these distances, in doublings, or of kinds in steps from one to the other; the "
        f"shortest tell what the model misses. Before, {LENGTH:g} over what a doubling counts for was assumed of each."
    )
    table = [
        (min(lengths), name, tuple(f"{length:.1f}" for length in lengths))
        for i, (name, unit) in enumerate(FEATURES)
        if any(np.ptp([place[i] for place in one.places]) > 0 for one in found.values())
        for lengths in [[one.lengths[i] / unit for one in found.values()]]
    ]
    yield PageTable(("feature", *found), tuple((name, *lengths) for _, name, lengths in sorted(table)))


def _shares(rows: "pd.DataFrame", by: str) -> Iterator[Piece]:
    own = timed(rows)
    parts = own[own.columns[own.columns.str.startswith(PART)]].clip(lower=0.0)
    parts.columns = parts.columns.str.removeprefix(PART).str.removesuffix("_s")
    means = parts.div(parts.sum(axis=1), axis=0).groupby(own[by]).mean().to_dict("index")
    bars = {
        group: {str(name): share for name, share in means[group].items() if share >= LEAST_SHARE}
        for group in _largest_groups(own, by)
    }
    if bars:
        yield Heading("Where the time goes")
        picture = figures.shares("Where the time goes", bars)
        yield Figure("shares", picture, f"Mean parts of a predicted step, by {by}")


def _misses(rows: "pd.DataFrame") -> Iterator[Piece]:
    found = worst(rows).to_dict("records")
    if found:
        yield Heading("The worst cases")
        yield PageTable(
            ("run", "what", "predicted s", "measured s", "error", "inside", "what would explain it"),
            tuple(
                (
                    row["run"],
                    f"{row['model']}, {row['num_devices']} {row['accelerator']}, {row['plan']}",
                    _seconds(row),
                    number(row["step_s"]),
                    f"{row['step_error']:+.1%}",
                    "yes" if row["predicted_step_s_low"] <= row["step_s"] <= row["predicted_step_s_high"] else "no",
                    row["explained_by"],
                )
                for row in found
            ),
        )


def _next_measurements(study: Study) -> Iterator[Piece]:
    if study.gains:
        yield Heading("What to measure next")
        yield (
            "By how much a further measurement would narrow the part of the intervals that the parameters give, in the "
            f"mean over all runs; they are now {study.gains[0].before:.1%} either side. The rest of the intervals, "
            f"{study.stack.fit.step_log_sd:.1%} a standard deviation, is what the model leaves unexplained."
        )
        yield PageTable(("measurement", "then"), tuple((gain.what, f"{gain.after:.1%}") for gain in study.gains))
