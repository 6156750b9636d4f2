"""The trainer's runs on an H200, each predicted by a fit to the others and to the runs on processors."""

import numpy as np
import pytest

from estimator.calibrate.assess import assess
from estimator.calibrate.fit_stack import fit_stacks
from estimator.runs.measured import Run
from estimator.runs.read import read_runs
from estimator.stack.stack import load_premises, load_stack
from hardware.catalog import load_catalog
from tests.support.paths import MEASURED

LEFT_OUT = ("7b_s2048_m4_none_c_bf16", "7b_s2048_m4_full_c_bf16", "1b_s2048_m16_none_e")
"""A compiled run, one that repeats its layers, and the one most bound by its device."""


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """Return the runs on an H200, and those on processors."""
    folders = (MEASURED / "h200" / "logs", MEASURED / "cpu")
    paths = [path for folder in folders for path in sorted(folder.glob("*/steps.jsonl"))]
    return list(read_runs(paths, load_catalog()).runs)


def test_runs_left_out_are_predicted(runs: list[Run]) -> None:
    """Seconds per step of a run that the fit never saw are within 5 %, and inside an interval of at most 3 to 1."""
    places = [next(i for i, run in enumerate(runs) if f"/{name}/" in run.name) for name in LEFT_OUT]
    parts = [np.setdiff1d(np.arange(len(runs)), [i]) for i in places]
    for i, stack in zip(places, fit_stacks(load_premises("reference"), runs, parts, num_folds=2), strict=True):
        ((measured, predicted),) = [assess([runs[i]], [stack]).rows[0].compared["step_s"]]
        assert predicted is not None
        assert predicted.value == pytest.approx(measured, rel=0.05)
        assert predicted.low < measured < predicted.high < 3 * predicted.low


def test_the_stack_has_seen_both_kinds_of_device() -> None:
    """The packaged fit is to an H200 and to processors, each with a factor of its own."""
    fit = load_stack("reference").fit
    assert {"cpu-2-core-x1", "cpu-2-core-x2", "h200-sxm-141gb"} == set(fit.accelerators) == set(fit.factors)
