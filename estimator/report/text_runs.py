"""What a user reads of measured runs beside predictions, on a terminal; and the JSON document of them."""

from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from estimator.calibrate.assess import (
    GROUPINGS,
    MEASURES,
    Assessed,
    Assessment,
    fit_calls,
    plan_kind,
    summarize,
)
from estimator.predict.interval import Range
from estimator.report.text import number, plain_table
from estimator.runs.measured import Run
from estimator.stack.stack import Stack
from hardware.command import open_console
from hardware.units import MIB

if TYPE_CHECKING:
    import pandas as pd

SAMPLES = {False: "out of sample", True: "in sample: these runs were fitted, their error is no accuracy"}

WIDEST = 400
"""Characters of a line of the table of runs."""

CONSTRAINED = 0.8
"""Standard deviation after the fit, over that of the prior, from which on the data said nothing of a parameter."""

TOLD_APART = 0.9
"""Correlation of two parameters from which on the data did not tell them apart."""


def print_assessment(console: Console, assessment: Assessment) -> None:
    """Print a line for each run, a line for each that is none, then the summaries."""
    rows = assessment.rows
    further = [what for what, name in _FURTHER.items() if any(row.compared[name][0] is not None for row in rows)]
    table = plain_table(
        "run", "model", "device", "plan", "step s (90 %)", "measured", "error", "tokens/s (90 %)", "measured",
        "MiB reserved (90 %)", "measured", *chain.from_iterable((f"{what} (90 %)", "measured") for what in further),
        "fits", "did", "sample",
    )  # fmt: skip
    for row in rows:
        table.add_row(*_cells(row, further))
    console.print(table)
    for name, why in assessment.skipped:
        console.print(f"skipped: {name}: {why}", style="dim", highlight=False)
    frame = assessment.to_frame()
    for in_sample, title in SAMPLES.items():
        own = frame[frame["in_sample"] == in_sample]
        if len(own):
            console.print(f"\n{title}")
            print_summaries(console, own)
    console.print(
        f"\n{len(rows)} runs predicted, {len(assessment.skipped)} skipped, {(frame['unhealthy'] != '').sum()} of the "
        "predicted not healthy: their seconds are in no summary"
    )


def wide_console() -> Console:
    """Return where the table of runs goes, its lines unbroken where there is no terminal."""
    console = open_console()
    if not console.is_terminal:
        console.width = WIDEST
    return console


_FURTHER = {"launch s": "launch_s", "MiB in all": "total_bytes", "MiB read otherwise": "other_bytes"}
"""Columns of what only some logs tell."""


def _cells(row: Assessed, further: list[str]) -> list[str]:
    run = row.run
    did = {True: "yes", False: "no", None: "-"}[run.fits]
    unhealthy = " unhealthy" if run.why_unhealthy else ""
    error = row.error("step")
    return [
        run.name, run.model, f"{run.machine.num_devices} {run.machine.accelerator.id}", plan_kind(run),
        *_beside(run.step_s, row.step_s), "-" if error is None else f"{error:+.1%}",
        *_beside(run.tokens_per_s, row.tokens_per_s), *_beside(run.reserved_bytes, row.reserved_bytes, MIB),
        *chain.from_iterable(
            _beside(*row.compared[_FURTHER[what]], MIB if what.startswith("MiB") else 1) for what in further
        ),
        f"{row.fits_probability:.0%}", did, ("in" if row.in_sample else "out") + unhealthy,
    ]  # fmt: skip


def _beside(measured: float | None, predicted: Range | None, unit: float = 1.0) -> tuple[str, str]:
    """Return a prediction with its interval, and what was measured."""
    value, low, high = (number(end / unit) for end in predicted or (0.0,) * 3)
    return f"{value} ({low}-{high})" if predicted else "-", "-" if measured is None else number(measured / unit)


def print_summaries(console: Console, rows: "pd.DataFrame") -> None:
    """Print how far predictions are off, by each grouping."""
    table = plain_table("by", "group", "measure", "runs", "median", "90 % below", "mean", "bias", "inside 90 %")
    for by in GROUPINGS:
        for s in summarize(rows, by).reset_index().to_dict("records"):
            errors = (f"{s[size]:.1%}" for size in ("median", "p90", "mean"))
            told = (str(s["num_runs"]), *errors, f"{s['bias']:+.1%}", f"{s['coverage']:.0%}")
            table.add_row(by, s["group"], s["measure"].replace("_", " "), *told)
    console.print(table)
    calls = fit_calls(rows)
    if calls.num_runs:
        console.print(
            f"fits or not: {calls.right:.1%} of {calls.num_runs} calls right; {calls.false_fits} called to fit ran out "
            f"of memory, {calls.expected_false_fits:.1f} expected by the probabilities"
        )


def print_holdout(console: Console, document: dict[str, Any]) -> None:
    """Print how wrong stacks are on runs that they never saw."""
    table = plain_table(
        "stack", "held out", "measure", "runs", "median", "90 % below", "bias", "inside 90 %", "ranked right"
    )
    for stack, splits in document["stacks"].items():
        for split, found in splits.items():
            order = found["ranking"]
            for measure in MEASURES:
                if one := found.get(measure):
                    errors = (f"{one['median']:.1%}", f"{one['p90']:.1%}", f"{one['bias']:+.1%}")
                    ranked = (
                        f"{order['right']:.1%} of {order['num_pairs']}"
                        if measure == "step" and order["num_pairs"]
                        else ""
                    )
                    table.add_row(
                        stack, split, measure, str(one["num_runs"]), *errors, f"{one['coverage']:.0%}", ranked
                    )
            if (calls := found["fit_calls"])["num_runs"]:
                false = f"{calls['false_fits']} false fits, {calls['expected_false_fits']:.1f} expected"
                table.add_row(stack, split, "fits or not", str(calls["num_runs"]), f"{calls['right']:.1%} right", false)
    console.print(table)


def print_fit(console: Console, stack: Stack) -> None:
    """Print what a fit found, and what the data could not tell."""
    fit = stack.fit
    covariance = np.array(fit.covariance)
    sd = covariance.diagonal() ** 0.5
    table = plain_table("parameter", "prior", "fitted", "unit", "from data")
    values = dict(zip(fit.names, fit.log_values, strict=True))
    for i, (name, prior) in enumerate(stack.priors.items()):
        told = "no: the prior stands" if sd[i] > CONSTRAINED * prior.log_sd else "yes"
        fitted = f"{np.exp(values[name]):.4g} +- {sd[i]:.1%}"
        table.add_row(name, f"{prior.median:g} +- {prior.log_sd:.0%}", fitted, prior.unit, told)
    for name, factor in (*fit.families.items(), *fit.factors.items()):
        before = f"1 +- {fit.family_log_sd:.0%}" if name in fit.families else "1"
        fitted = f"{np.exp(factor.log_factor):.3f} +- {factor.log_sd:.1%}"
        table.add_row(f"factor of {name}", before, fitted, "device seconds", f"{factor.runs} runs")
    console.print(table)
    correlation = covariance / sd[:, None] / sd
    for i, first in enumerate(fit.names):
        for j in range(i):
            if abs(correlation[i, j]) > TOLD_APART:
                console.print(f"not told apart: {fit.names[j]} and {first}, correlation {correlation[i, j]:+.2f}")


def assessment_document(assessment: Assessment) -> dict[str, Any]:
    """Return the object that `calibrate --runs --json` prints, schema `calibration/1`."""
    frame = assessment.to_frame()
    samples = {"in" if in_sample else "out": frame[frame["in_sample"] == in_sample] for in_sample in SAMPLES}
    return {
        "schema": "calibration/1",
        "rows": [_row_document(row) for row in assessment.rows],
        "skipped": [skipped._asdict() for skipped in assessment.skipped],
        "summary": [
            {"sample": sample, "by": by, **one}
            for sample, own in samples.items()
            for by in GROUPINGS
            for one in summarize(own, by).reset_index().to_dict("records")
        ],
        "fit_calls": {sample: fit_calls(own)._asdict() for sample, own in samples.items()},
    }


def _row_document(row: Assessed) -> dict[str, Any]:
    run = row.run
    launch_s, total = row.launch_s, row.total_bytes
    measured: dict[str, Any] = {
        "step_s": run.step_s,
        "tokens_per_s": run.tokens_per_s,
        "reserved_mib": run.reserved_bytes and run.reserved_bytes / MIB,
        "fits": run.fits,
    }
    predicted: dict[str, Any] = {
        "step_s": row.step_s._asdict(),
        "tokens_per_s": row.tokens_per_s._asdict(),
        "reserved_mib": row.reserved_bytes.times(1 / MIB)._asdict(),
        "fits_probability": row.fits_probability,
        "breakdown_s": row.step_breakdown,
    }
    if launch_s:
        measured["launch_s"], predicted["launch_s"] = row.compared["launch_s"][0], launch_s._asdict()
    if row.other_bytes and run.other_bytes and run.reserved_bytes is None:
        measured["other_mib"], predicted["other_mib"] = run.other_bytes / MIB, row.other_bytes.times(1 / MIB)._asdict()
    if total:
        measured["total_mib"] = run.total_bytes and run.total_bytes / MIB
        predicted["total_mib"] = total.times(1 / MIB)._asdict()
    errors = {measure: row.error(measure) for measure in MEASURES}
    return {
        **_run_document(run),
        "stack": row.stack,
        "in_sample": row.in_sample,
        "measured": measured,
        "predicted": predicted,
        "error": {name: e for name, e in errors.items() if e is not None or name in ("step", "memory")},
    }


def _run_document(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "source": run.source,
        "trainer": run.trainer,
        "model": run.model,
        "accelerator": run.machine.accelerator.id,
        "num_devices": run.machine.num_devices,
        "num_nodes": run.machine.num_nodes,
        "seq_len": run.seq_len,
        "plan": {"data_parallel": run.dp, **asdict(run.plan)},
        "recipe": str(run.recipe),
        "unhealthy": run.why_unhealthy,
        "assumes": run.assumes,
    }
