from dataclasses import replace

import numpy as np
import pytest

from estimator.calibrate.assess import assess
from estimator.formulas.inputs import StepInputs, step_inputs
from estimator.formulas.machine import Machine
from estimator.predict.evaluate import evaluate
from estimator.predict.prediction import Prediction, predict
from estimator.stack.stack import load_stack
from estimator.work.plan import Plans
from hardware.catalog import load_catalog
from tests.support.measured import table_runs

STACK = load_stack("nanotron")
RUNS = [run for run in table_runs("ultrascale_h100") if run.trainer == "nanotron"]
RUN = next(run for run in RUNS if run.step_s)


def inputs_of(machine: Machine = RUN.machine) -> StepInputs:
    """Return what every plan of that table is predicted from, as if it had run as one of the runs did."""
    return step_inputs(Plans.of(run.plan for run in RUNS[::40]), RUN.workload, machine, STACK.habits)


def test_planner_and_calibration_predict_alike() -> None:
    """A run of an unknown source is predicted, values and intervals, as the planner predicts its plan."""
    for run in (replace(run, source="mine", reads_first_stage=False) for run in RUNS[::60]):
        (row,) = assess([run], [STACK]).rows
        found = evaluate(Plans.of([run.plan]), run.workload, run.machine, STACK).row(0, None)
        assert row.step_s == found.step_s
        assert row.step_breakdown == found.step_breakdown
        assert row.reserved_bytes == found.memory.per_device_bytes


def test_numbers_are_one_for_each_plan() -> None:
    """Medians and spreads have the shape of the plans; a plan alone has the numbers that it has among others."""
    many = predict(inputs_of(), STACK)
    for i, run in enumerate(RUNS[::40]):
        one = predict(step_inputs(run.plan, RUN.workload, RUN.machine, STACK.habits), STACK)
        for of in (medians, spreads):
            assert [column[i] for column in of(many)] == pytest.approx([column.item() for column in of(one)], rel=1e-12)


def medians(found: Prediction) -> list[np.ndarray]:
    """Return seconds, launch seconds and bytes."""
    return [found.step.seconds, found.step.launch_s, found.memory.peak_bytes, found.total_bytes]


def spreads(found: Prediction) -> list[np.ndarray]:
    """Return the log standard deviations, and how likely it fits."""
    return [found.step_log_sd, found.launch_log_sd, found.memory_log_sd, found.fits_probability]


def test_a_plan_is_as_likely_to_fit_as_not_where_its_median_is_usable() -> None:
    """The probability to fit is one half where a plan needs just what is usable, and grows with the memory."""
    found = predict(inputs_of(), STACK)
    for part, sign in ((1.0, 0), (0.9, -1), (1.1, 1)):
        usable = [found._replace(usable_bytes=part * held).fits_probability[i] for i, held in enumerate(needed(found))]
        assert np.array_equal(np.sign(np.round(np.array(usable) - 0.5, 12)), np.full(len(usable), sign))


def needed(found: Prediction) -> list[float]:
    """Return the bytes per device of each plan."""
    return [float(held) for held in found.memory.peak_bytes]


def test_what_was_measured_is_more_certain() -> None:
    """A known source on a known device is no less certain than an unknown one, and that no less than on another."""
    h200 = RUN.machine._replace(accelerator=load_catalog().accelerator("h200-sxm-141gb"))
    known, source = predict(inputs_of(), STACK, RUN.source), predict(inputs_of(), STACK)
    device = predict(inputs_of(h200), STACK)
    assert (known.step_log_sd < source.step_log_sd).all()
    assert (source.step_log_sd < device.step_log_sd).all()
