"""The calibration report of a stack that was fitted to runs of tables or to logs."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from estimator.calibrate.assess import Assessed, fit_calls, plan_kind, summarize
from estimator.calibrate.hold_out import ranking
from estimator.calibrate.residual_fit import LENGTH
from estimator.calibrate.residual_study import LEVELS, Study, coverages, timed, trends, worst
from estimator.predict.residual import FEATURES
from estimator.report import figures
from estimator.report.page import Figure, Heading, PageTable, Piece, write_page
from estimator.report.text import number
from estimator.report.text_runs import CONSTRAINED
from estimator.runs.measured import Run
from estimator.stack.stack import Stack
from hardware.units import GIB

MOST_GROUPS = 24
"""Rows of a picture of residuals; the groups with most runs are shown."""

GROUPS: dict[str, Callable[[Run], str]] = {
    "model": lambda run: run.model,
    "devices": lambda run: f"{run.machine.num_devices} {run.machine.accelerator.id}",
    "plan": plan_kind,
    "sequence": lambda run: f"{run.seq_len} tokens",
    "source": lambda run: run.source,
}


def write_report(study: Study, folder: Path) -> tuple[Path, Path]:
    """Write the report of a stack into a folder; return its text and its page.

    Raises:
        ValueError: the folder cannot be written.
    """
    return write_page(study.stack.name, list(report(study)), folder)


def report(study: Study) -> Iterator[Piece]:
    """Yield the parts of a report, in their order."""
    shown_rows, sample = _most_honest(study)
    yield study.stack.about
    yield (
        f"{len(study.after)} runs of {study.stack.trainer!r}, {len(timed(study.after))} of them healthy and timed. "
        f"Pictures show {sample}. Errors are predicted over measured, less 1."
    )
    yield from _accuracy(study)
    yield from _comparisons(shown_rows, sample)
    yield from _residuals(shown_rows)
    yield from _coverage(study)
    yield from parameters(study.stack)
    yield from _likeness(study.stack)
    yield from _shares(shown_rows)
    yield from _misses(shown_rows)
    yield from _next_measurements(study)


def _most_honest(study: Study) -> tuple[tuple[Assessed, ...], str]:
    """Return the rows to be drawn: those of a fit that never saw the run, where there are any."""
    for name, rows in study.held_out.items():
        return rows, f"each run as predicted by a fit that never saw it (held out: {name})"
    return study.after, "each run as predicted by the fit to all of them, which is no accuracy"


def _accuracy(study: Study) -> Iterator[Piece]:
    yield Heading("How wrong it is")
    sets: dict[str, Sequence[Assessed]] = {
        "before: the priors alone": study.before,
        **{f"out of sample, held out: {name}": rows for name, rows in study.held_out.items()},
        "in sample: fitted to all (no accuracy)": study.after,
    }
    rows = [
        (name, measure, str(s.num_runs), _p(s.median), _p(s.p90), _p(s.mean), f"{s.bias:+.1%}", f"{s.coverage:.0%}")
        for name, members in sets.items()
        for measure, s in summarize(members, "all").get("all", {}).items()
    ]
    header = ("fit", "of", "runs", "median", "90 % below", "mean", "bias", "inside their 90 %")
    yield PageTable(header, tuple(rows))
    for name, members in sets.items():
        calls = fit_calls(members)
        if any(row.run.fits is False for row in members):
            yield (
                f"Fits or runs out of memory, {name}: {calls.right:.1%} of {calls.num_runs} calls right; "
                f"{calls.false_fits} called to fit ran out of memory, {calls.expected_false_fits:.1f} expected by the "
                "stated probabilities."
            )
    for name, members in study.held_out.items():
        order = ranking(members)
        if order.num_pairs:
            yield (
                f"Of {order.num_pairs} pairs of runs that differ in plan alone and by over 5 % in time, the faster was "
                f"predicted faster in {order.right:.1%} (held out: {name})."
            )


def _p(value: float) -> str:
    return f"{value:.1%}"


def _kind(row: Assessed) -> str:
    return "not healthy" if row.run.why_unhealthy else row.run.machine.accelerator.id


def _comparisons(rows: Sequence[Assessed], sample: str) -> Iterator[Piece]:
    yield Heading("Predicted against measured")
    steps = [figures.Compared(r.run.step_s, r.step_s, _kind(r)) for r in rows if r.run.step_s]
    if steps:
        picture = figures.predicted_against_measured("Seconds per step", "s per step", steps)
        yield Figure("steps", picture, f"Seconds per step with 90 % intervals; bands of 5 and 10 %; {sample}")
    held = [
        figures.Compared(r.run.reserved_bytes / GIB, r.reserved_bytes.times(1 / GIB), _kind(r))
        for r in rows
        if r.run.reserved_bytes
    ]
    if held:
        picture = figures.predicted_against_measured("Reserved memory", "GiB per device", held)
        yield Figure("memory", picture, f"Peak reserved memory of a device; {sample}")


def _residuals(rows: Sequence[Assessed]) -> Iterator[Piece]:
    yield Heading("Residuals")
    own = timed(rows)
    for by, group_of in GROUPS.items():
        groups: defaultdict[str, list[float]] = defaultdict(list)
        for row in own:
            groups[group_of(row.run)].append(row.step_error or 0.0)
        if len(groups) < 2:
            continue
        most = sorted(groups, key=lambda group: (-len(groups[group]), group))[:MOST_GROUPS]
        picture = figures.residuals(f"Errors by {by}", {group: groups[group] for group in sorted(most, key=_natural)})
        left = f"; {len(groups) - len(most)} smaller groups are left out" if len(groups) > len(most) else ""
        yield Figure(
            f"by-{by}", picture, f"By {by}: dots are runs, bars the middle 80 %, at the right their number{left}"
        )
    found = trends(rows)
    yield Heading("What physics they point to")
    if found:
        header = ("errors trend with", "per doubling", "t", "which points to")
        yield PageTable(
            header, tuple((t.feature, f"{np.expm1(t.slope):+.1%}", f"{t.t:+.1f}", t.physics) for t in found)
        )
    else:
        yield "No feature of the runs explains the errors that are left: none has a slope of three standard errors."


def _natural(words: str) -> tuple[object, ...]:
    """Return a key that sorts numbers in words by their size."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", words))


def _coverage(study: Study) -> Iterator[Piece]:
    degrees = study.stack.fit.degrees_of_freedom
    lines: Mapping[str, list[float]] = {name: coverages(rows, degrees) for name, rows in study.held_out.items()}
    lines = {name: inside for name, inside in lines.items() if inside}
    if lines:
        yield Heading("What the intervals are worth")
        picture = figures.coverage("Coverage", LEVELS, lines)
        yield Figure(
            "coverage",
            picture,
            "Measurements inside intervals of each stated level, out of sample; on the line is right",
        )


def parameters(stack: Stack) -> Iterator[Piece]:
    """Yield what a fit found, beside what was believed before."""
    yield Heading("What was fitted")
    values = dict(zip(stack.fit.names, stack.fit.log_values, strict=True))
    sds = dict(zip(stack.fit.names, np.sqrt(np.diag(np.array(stack.fit.covariance))), strict=True))
    believed = [
        figures.Believed(name, prior.median, prior.log_sd, float(np.exp(values[name])), float(sds[name]))
        for name, prior in stack.priors.items()
    ]
    yield Figure(
        "parameters",
        figures.beliefs("Parameters", believed),
        "Parameters with 90 % intervals, over their priors' medians",
    )
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


def _shares(rows: Sequence[Assessed]) -> Iterator[Piece]:
    groups: defaultdict[str, list[Assessed]] = defaultdict(list)
    for row in timed(rows):
        groups[plan_kind(row.run)].append(row)
    most = sorted(groups, key=lambda group: (-len(groups[group]), group))[:MOST_GROUPS]
    bars = {group: mean_shares([row.step_breakdown for row in groups[group]]) for group in sorted(most, key=_natural)}
    if bars:
        yield Heading("Where the time goes")
        yield Figure("shares", figures.shares("Where the time goes", bars), "Mean parts of a predicted step, by plan")


def mean_shares(breakdowns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean parts of steps, by purpose, without the smallest."""
    total: defaultdict[str, float] = defaultdict(float)
    for breakdown in breakdowns:
        whole = sum(max(part, 0.0) for part in breakdown.values())
        for name, part in breakdown.items():
            total[name] += max(part, 0.0) / whole / len(breakdowns)
    return {name: share for name, share in total.items() if share >= 0.002}


def _misses(rows: Sequence[Assessed]) -> Iterator[Piece]:
    found = worst(rows)
    if found:
        yield Heading("The worst cases")
        yield PageTable(
            ("run", "what", "predicted s", "measured s", "error", "inside", "what would explain it"),
            tuple(
                (
                    m.row.run.name,
                    _what(m.row.run),
                    f"{number(m.row.step_s.value)} ({number(m.row.step_s.low)} to {number(m.row.step_s.high)})",
                    number(m.row.run.step_s or 0.0),
                    f"{m.error:+.1%}",
                    "yes" if m.inside else "no",
                    m.explained_by,
                )
                for m in found
            ),
        )


def _what(run: Run) -> str:
    return f"{run.model}, {run.machine.num_devices} {run.machine.accelerator.id}, {plan_kind(run)}"


def _next_measurements(study: Study) -> Iterator[Piece]:
    if study.gains:
        yield Heading("What to measure next")
        yield (
            "By how much a further measurement would narrow the part of the intervals that the parameters give, in the "
            f"mean over all runs; they are now {study.gains[0].before:.1%} either side. The rest of the intervals, "
            f"{study.stack.fit.step_log_sd:.1%} a standard deviation, is what the model leaves unexplained."
        )
        yield PageTable(("measurement", "then"), tuple((gain.what, f"{gain.after:.1%}") for gain in study.gains))
