import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.calibrate.fit_stack import (
    ASSUMED_SPREADS,
    Errors,
    conformal_log_sd,
    fit_stack_to_runs,
    folds,
    held_out_log_sd,
    widening,
)
from estimator.runs.read import read_runs
from estimator.stack.file import fit_text
from estimator.stack.fit import interval_ratio
from estimator.stack.stack import load_premises, parse_fit
from hardware.catalog import load_catalog
from tests.support.paths import TABLES

PREMISES = load_premises("megatron-deepspeed")
CASES = read_runs([TABLES / "vtrain_a100_single_node.csv"], load_catalog()).runs[::28]


@given(count=st.integers(1, 200), parts=st.integers(1, 7))
def test_folds_are_even(count: int, parts: int) -> None:
    """Parts differ in size by one at most, and are the same each time."""
    sizes = np.bincount(folds(count, parts), minlength=parts)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    assert (folds(count, parts) == folds(count, parts)).all()


@given(seed=st.integers(0, 10**6), heavy=st.booleans())
def test_conformal_intervals_hold_nine_in_ten(seed: int, *, heavy: bool) -> None:
    """Whatever the errors' distribution, the interval that 2,000 of them give holds 90 % of 2,000 others."""
    random = np.random.default_rng(seed)
    errors = random.standard_t(2, size=4000) if heavy else random.normal(size=4000)
    half_width = np.log(interval_ratio(conformal_log_sd(errors[:2000], 4), 4))
    assert 0.85 < (np.abs(errors[2000:]) < half_width).mean() < 0.95


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ratio", [0.8, 1.0, 3.0])
@pytest.mark.parametrize("unsure", [0.0, 0.05])
def test_widened_intervals_hold_nine_in_ten(seed: int, ratio: float, unsure: float) -> None:
    """Spreads stated too narrow by some ratio, each run's its own, are widened by it; the intervals then hold 90 %."""
    random = np.random.default_rng(seed)
    left = np.exp(random.uniform(-4, -1, size=4000))
    values = np.hypot(ratio * left, unsure) * random.normal(size=4000)
    errors = Errors(values, left, np.full(4000, unsure))
    half = Errors(*(part[:2000] for part in errors))
    found = widening(half, 10**6)
    assert found == pytest.approx(ratio, rel=0.15)
    log_sd = np.hypot(found * left, unsure)[2000:]
    assert 0.86 < (np.abs(values[2000:]) < np.log(interval_ratio(log_sd, 10**6))).mean() < 0.94


def test_few_errors_are_pooled_with_what_is_assumed() -> None:
    """Without errors the assumed spread stands; four errors count as much as it."""
    assert held_out_log_sd(np.zeros(0), 0.1, 4) == pytest.approx(0.1)
    assert held_out_log_sd(np.full(4, 0.3), 0.1, 4) == pytest.approx(np.sqrt((0.09 + 0.01) / 2))


def test_a_stack_knows_its_runs() -> None:
    """It lists the table with its digest, the runs fitted, and the versions; its file reads back as it was written."""
    origin = {"a.csv": ("0" * 64, [run.digest for run in CASES]), "b.csv": ("1" * 64, [])}
    found = fit_stack_to_runs(PREMISES, CASES, origin)
    (table,) = found.tables
    assert (table.name, table.rows, table.sha256) == ("a.csv", len(CASES), "0" * 64)
    assert set(table.digests.split()) == {run.digest for run in CASES}
    assert set(found.versions) == {"foretrain", "numpy", "scipy"}
    text = fit_text(found)
    assert fit_text(parse_fit(text.encode(), PREMISES, "mine")) == text


def test_one_run_has_the_spreads_assumed() -> None:
    """Of a run alone nothing can be held out: the spreads are those assumed, and nothing is learned."""
    fit = fit_stack_to_runs(PREMISES, CASES[:1], {}).fit
    assert (fit.step_log_sd, fit.memory_log_sd) == (ASSUMED_SPREADS["step_log_sd"], ASSUMED_SPREADS["memory_log_sd"])
    assert fit.step_residual is None
    assert fit.usable_memory_fraction is None


def test_a_fit_needs_a_timed_run() -> None:
    """Without a healthy timed run of its trainer a stack is refused."""
    with pytest.raises(ValueError, match="fit: no healthy timed run of trainer 'megatron-deepspeed'; give a table"):
        fit_stack_to_runs(PREMISES, [], {})
