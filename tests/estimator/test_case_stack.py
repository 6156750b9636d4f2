from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.case_stack import conformal_log_sd, fit_stack_to_cases, folds, held_out_log_sd
from estimator.cases import read_cases
from estimator.stack import interval_ratio, read_stack_text
from estimator.stack_file import read_premises, stack_text
from hardware.catalog import load_catalog

TABLES = Path(__file__).parents[2] / "reports" / "measured" / "tables"
TEXT = read_stack_text("megatron-deepspeed")
PREMISES = read_premises(TEXT, "megatron-deepspeed")
CASES = read_cases(TABLES / "vtrain_a100_single_node.csv", load_catalog()).cases[::28]


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
    assert 0.86 < (np.abs(errors[2000:]) < half_width).mean() < 0.94


def test_few_errors_are_pooled_with_what_is_assumed() -> None:
    """Without errors the assumed spread stands; four errors count as much as it."""
    assert held_out_log_sd(np.zeros(0), 0.1, 4) == pytest.approx(0.1)
    assert held_out_log_sd(np.full(4, 0.3), 0.1, 4) == pytest.approx(np.sqrt((0.09 + 0.01) / 2))


def test_a_stack_knows_its_runs() -> None:
    """It lists the table with its digest, the runs fitted, and the versions; its text reads back as the same stack."""
    origin = {"a.csv": ("0" * 64, [case.digest for case in CASES]), "b.csv": ("1" * 64, [])}
    found = fit_stack_to_cases(PREMISES, CASES, origin)
    (table,) = found.tables
    assert (table.name, table.rows, table.sha256) == ("a.csv", len(CASES), "0" * 64)
    assert set(table.digests.split()) == {case.digest for case in CASES}
    assert set(found.versions) == {"foretrain", "numpy", "scipy"}
    text = stack_text(TEXT, found)
    assert stack_text(text, found) == text


def test_a_fit_needs_a_timed_run() -> None:
    """Without a healthy timed run of its trainer a stack is refused."""
    with pytest.raises(ValueError, match="fit: no healthy timed run of trainer 'megatron-deepspeed'; give a table"):
        fit_stack_to_cases(PREMISES, [], {})
