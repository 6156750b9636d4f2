from collections import defaultdict
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from estimator.calibrate.assess import (
    COLUMNS,
    GROUPINGS,
    MEASURES,
    Assessed,
    Assessment,
    assess,
    fit_calls,
    plan_kind,
    summarize,
    to_frame,
)
from estimator.predict.interval import Range
from estimator.stack.stack import load_stack
from hardware.catalog import load_catalog
from tests.support.measured import table_runs

STACK = load_stack("nanotron")
ALL = table_runs("ultrascale_h100")
CASES = [run for run in ALL if run.trainer == "nanotron"][::20]


def test_each_run_is_predicted_or_left() -> None:
    """Every run is a row or is left; one of a trainer without a stack is left, unless one stack is named."""
    others = [replace(run, trainer="mine") for run in CASES[:2]]
    found = assess([*CASES, *others], [STACK, load_stack("nanotron-early")])
    assert [row.run for row in found.rows] == CASES
    assert {left.why for left in found.skipped} == {"trainer: no stack was fitted to 'mine'; name one with --stack"}
    assert len(assess(others, [STACK]).rows) == 2


def test_what_was_fitted_is_in_sample() -> None:
    """Runs that the stack was fitted to are told apart from those whose measurement differs."""
    changed = [replace(run, step_s=1.01 * run.step_s) if run.step_s else run for run in CASES]
    assert all(row.in_sample for row in assess(CASES, [STACK]).rows)
    fresh = [row for row in assess(changed, [STACK]).rows if row.run.step_s]
    assert fresh
    assert not any(row.in_sample for row in fresh)


def test_intervals_and_breakdowns_agree() -> None:
    """Values lie in their intervals, breakdowns sum to the seconds, tokens are tokens over seconds."""
    for row in assess(CASES, [STACK]).rows:
        assert row.step_s.low < row.step_s.value < row.step_s.high
        assert sum(row.step_breakdown.values()) == pytest.approx(row.step_s.value)
        assert row.tokens_per_s.value * row.step_s.value == pytest.approx(row.run.workload.tokens_per_step)


def test_less_memory_fits_less_often() -> None:
    """On a device with half the memory the probability to fit is no larger, and sums with its opposite to 1."""
    small = [
        replace(c, machine=c.machine._replace(accelerator=c.machine.accelerator.model_copy(update={"hbm_bytes": 4e10})))
        for c in CASES
    ]
    for large, little in zip(assess(CASES, [STACK]).rows, assess(small, [STACK]).rows, strict=True):
        assert 0 <= little.fits_probability <= large.fits_probability <= 1


def test_an_unseen_source_and_device_are_less_certain() -> None:
    """Where the stack has never been the interval is wider."""
    (known,) = assess(CASES[:1], [STACK]).rows
    (source,) = assess([replace(CASES[0], source="mine")], [STACK]).rows
    h200 = load_catalog().accelerator("h200-sxm-141gb")
    (device,) = assess([replace(CASES[0], machine=CASES[0].machine._replace(accelerator=h200))], [STACK]).rows
    assert known.step_s.high / known.step_s.low < source.step_s.high / source.step_s.low
    assert known.step_s.high / known.step_s.low < device.step_s.high / device.step_s.low


def row_of(measured: float, predicted: float, *, fits: bool | None = True, probability: float = 1.0) -> Assessed:
    """Return a row with some numbers."""
    run = replace(CASES[0], step_s=measured, fits=fits, why_unhealthy="", reserved_bytes=None)
    around = Range(predicted, 0.9 * predicted, 1.1 * predicted)
    return Assessed(run, "mine", False, around, around, probability, {})


def test_summaries_count_what_they_say() -> None:
    """Count, median, bias and coverage of known errors; unhealthy runs tell only of memory."""
    rows = [row_of(1.0, 1.0), row_of(1.0, 1.05), row_of(1.0, 0.8)]
    sick = replace(rows[0], run=replace(rows[0].run, why_unhealthy="hot", reserved_bytes=2.0))
    found = summarize(to_frame([*rows, sick]), "device")
    assert found.index.tolist() == [("h100-sxm-80gb", "step"), ("h100-sxm-80gb", "memory")]
    step, memory = found.to_dict("records")
    assert (step["num_runs"], step["median"], step["bias"]) == (3, pytest.approx(0.05), pytest.approx(0.0))
    assert step["coverage"] == pytest.approx(2 / 3)
    assert (memory["num_runs"], memory["bias"], memory["coverage"]) == (1, -0.5, 0)


@pytest.mark.parametrize("by", GROUPINGS)
def test_summaries_are_those_of_each_group_alone(by: str) -> None:
    """Of the runs of a table, each group has the quantiles that its errors, one by one, have."""
    rows = assess(ALL[::7], [STACK, load_stack("nanotron-early")]).rows
    labels = {
        "all": lambda _: "all", "source": lambda run: run.source, "device": lambda run: run.machine.accelerator.id,
        "model": lambda run: run.model, "plan": plan_kind,
    }  # fmt: skip
    errors, inside = defaultdict(list), defaultdict(list)
    for row in rows:
        for measure, name in MEASURES.items():
            measured, predicted = row.compared[name]
            if measured is not None and predicted is not None and (measure != "step" or not row.run.why_unhealthy):
                group = labels[by](row.run), measure
                errors[group].append(predicted.value / measured - 1)
                inside[group].append(predicted.low <= measured <= predicted.high)
    found = summarize(to_frame(rows), by)
    assert set(found.index) == set(errors)
    assert [group for group, _ in found.index] == sorted(group for group, _ in found.index)
    for group, one in zip(found.index, found.itertuples(index=False), strict=True):
        size = np.abs(errors[group])
        told = (len(size), np.median(size), np.quantile(size, 0.9), size.mean(), np.median(errors[group]))
        assert tuple(one) == pytest.approx((*told, np.mean(inside[group])), abs=1e-12)


def test_a_frame_has_a_row_a_run() -> None:
    """What was measured and predicted of each run stands in its row; what was not measured is nan, and no error."""
    rows = (*assess(CASES, [STACK]).rows, row_of(1.0, 1.1, fits=None))
    frame = Assessment(rows, ()).to_frame()
    assert tuple(frame.columns[: len(COLUMNS)]) == COLUMNS
    assert len(frame) == len(rows)
    for row, (_, told) in zip(rows, frame.iterrows(), strict=True):
        run = row.run
        assert (told["run"], told["in_sample"], told["tp"]) == (run.name, row.in_sample, run.plan.tp)
        assert (told["predicted_step_s_low"], told["predicted_step_s_high"]) == row.step_s[1:]
        assert told["step_error"] == pytest.approx(np.nan if run.step_s is None else row.error("step"), nan_ok=True)
        assert np.isnan(told["reserved_bytes"]) == (run.reserved_bytes is None) == (row.error("memory") is None)
        assert sum(told.filter(like="part_")) == pytest.approx(sum(row.step_breakdown.values()))
    assert frame["fits"].iloc[-1] is pd.NA
    assert (to_frame([]).columns == frame.columns[~frame.columns.str.startswith("part_")]).all()
    assert summarize(to_frame([])).empty


def test_fit_calls_against_probabilities() -> None:
    """Right where likelier than not and true; false fits are counted beside how many were to be expected."""
    rows = [row_of(1, 1, probability=0.9), row_of(1, 1, fits=False, probability=0.6), row_of(1, 1, fits=None)]
    found = fit_calls(to_frame(rows))
    assert (found.num_runs, found.right, found.false_fits) == (2, 0.5, 1)
    assert found.expected_false_fits == pytest.approx(0.5)
    assert fit_calls(to_frame([])).num_runs == 0


def test_plan_kinds() -> None:
    """A plan's kind names the degrees above 1."""
    kinds = {plan_kind(run) for run in CASES}
    assert all(word[2:].isdigit() or kind == "one device" for kind in kinds for word in kind.split())
    assert all(int(word[2:]) > 1 for kind in kinds for word in kind.split() if kind != "one device")
