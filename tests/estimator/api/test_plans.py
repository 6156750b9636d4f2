from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator import Plan, estimate, evaluate_plans
from estimator.api import plans as module
from estimator.predict.table import COLUMNS, INTERVAL_COLUMNS
from estimator.work.plan import PLAN_NAMES

FLAVOR = "4xLarge.2048GB"
GRID = pd.MultiIndex.from_product(
    [(1, 2, 3, 4), (1, 2, 4), (4, 16, 64), ("none", "full"), (0, 3)],
    names=["num_stages", "tp", "num_micro_batches", "recomputation", "zero_stage"],
).to_frame(index=False)
plans = st.builds(
    Plan,
    num_stages=st.sampled_from([1, 2, 4]),
    num_micro_batches=st.sampled_from([8, 16, 32]),
    batch_per_device=st.sampled_from([1, 2, 4]),
    tp=st.sampled_from([1, 2]),
    recomputation=st.sampled_from(["none", "selective", "full"]),
    zero_stage=st.integers(0, 3),
    schedule=st.sampled_from(["gpipe", "1f1b", "zero_bubble"]),
    shard_within_node=st.booleans(),
    sequence_parallel=st.booleans(),
)


@pytest.mark.slow
@given(
    st.lists(plans, min_size=1, max_size=6),
    st.sampled_from(["moai-24.2", "nanotron", "reference"]),
    st.sampled_from([None, "500h"]),
)
@settings(max_examples=20)
def test_a_row_is_its_plan_alone(several: list[Plan], stack: str, device_mtbf: str | None) -> None:
    """Row i of many plans is what `estimate` says of plan i alone, in every column."""
    options: dict[str, Any] = {"stack": stack, "failures": device_mtbf is not None, "device_mtbf": device_mtbf}
    found = evaluate_plans(several, flavor=FLAVOR, **options)
    assert tuple(found.columns) == (*PLAN_NAMES, *COLUMNS)
    for i, plan in enumerate(several):
        if found.step_s.isna()[i]:
            with pytest.raises(ValueError, match="plan: ") as told:
                estimate(flavor=FLAVOR, plan=plan, **options)
            assert str(told.value) == f"plan: {found.reason[i]}"
        else:
            alone = estimate(flavor=FLAVOR, plan=plan, **options).to_frame()
            pd.testing.assert_frame_equal(found.iloc[[i]].reset_index(drop=True), alone, rtol=1e-12, check_dtype=False)


def test_fields_left_out_are_as_usual() -> None:
    """A frame of a few fields is as one of all of them; what is added comes after, and the index stays."""
    labelled = GRID.set_index(pd.Index([f"plan {i}" for i in range(len(GRID))], name="label"))
    found = evaluate_plans(labelled, flavor=FLAVOR)
    assert tuple(found.columns) == (*GRID.columns, *COLUMNS)
    assert found.index.equals(labelled.index)
    whole = pd.DataFrame([{**asdict(Plan()), **dict(row)} for _, row in GRID.iterrows()])
    both = (found.reset_index(drop=True), evaluate_plans(whole, flavor=FLAVOR))
    pd.testing.assert_frame_equal(*(frame[list(COLUMNS)] for frame in both))


def test_a_plan_that_breaks_a_rule_has_a_reason_and_no_numbers() -> None:
    """Of each row: possible, or a reason; numbers in every column, or in none."""
    found = evaluate_plans(GRID, flavor=FLAVOR)
    assert {"possible", "illegal", "too large"} == {
        "possible" if row.possible else "too large" if row.excess_bytes > 0 else "illegal" for row in found.itertuples()
    }
    assert (found.reason == "").equals(found.possible)
    numbers = found[[name for name in COLUMNS if found[name].dtype == np.float64]].notna()
    assert numbers.all(axis=1).equals(numbers.any(axis=1))
    assert (found.num_stages[found.step_s.isna() & (found.reason.str.contains("does not divide 32"))] == 3).any()


def test_a_frame_goes_round() -> None:
    """What an answer's frame holds goes in again, on another flavor too; what was predicted is replaced."""
    frame = estimate(flavor=FLAVOR).to_frame()
    again = evaluate_plans(frame, flavor=FLAVOR)
    of_the_search = [name for name in COLUMNS if name.startswith(("wall_s", "usd", "kwh"))]
    pd.testing.assert_frame_equal(again.drop(columns=of_the_search), frame.drop(columns=of_the_search), rtol=1e-12)
    elsewhere = evaluate_plans(frame, flavor="mi300x8")
    assert tuple(elsewhere.columns) == tuple(frame.columns)
    assert not elsewhere.reason.equals(frame.reason)


def test_many_plans_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are evaluated at once, the rows are the same."""
    found = evaluate_plans(GRID, flavor=FLAVOR, stack="nanotron")
    monkeypatch.setattr(module, "CHUNK", 7)
    pd.testing.assert_frame_equal(evaluate_plans(GRID, flavor=FLAVOR, stack="nanotron"), found, rtol=1e-12)


def test_without_intervals() -> None:
    """The values are the same, their intervals left out."""
    found = evaluate_plans(GRID, flavor=FLAVOR)
    pd.testing.assert_frame_equal(
        evaluate_plans(GRID, flavor=FLAVOR, intervals=False), found.drop(columns=list(INTERVAL_COLUMNS)), rtol=1e-12
    )


def test_texts_and_no_plan_at_all() -> None:
    """Plans may be texts; of none comes an empty frame."""
    found = evaluate_plans(["num_stages=2,num_micro_batches=16", "num_stages=3"], flavor=FLAVOR)
    assert found.possible.tolist() == [True, False]
    assert len(evaluate_plans(GRID.iloc[:0], flavor=FLAVOR)) == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"num_stage": [1]}, "plans: unknown column 'num_stage': did you mean num_stages.*own belong into the index"),
        ({"pp": [2]}, "plans: unknown column 'pp': "),
        ({"tp": [1, 0]}, r"plans: tp = 0 in row 1 is not a whole number from 1 to 2147483647; correct it"),
        ({"tp": [1.5]}, "plans: tp = 1.5 in row 0 is not a whole number"),
        ({"tp": [2.0, None]}, "plans: tp = nan in row 1 is not a whole number"),
        ({"tp": ["two"]}, "plans: tp = 'two' in row 0 is not a whole number"),
        ({"zero_stage": [4]}, "plans: zero_stage = 4 in row 0 is not a whole number from 0 to 3"),
        ({"recomputation": ["none", "half"]}, "recomputation = 'half' in row 1 is not one of none, selective, full"),
        ({"schedule": [1]}, "plans: schedule = 1 in row 0 is not one of gpipe, 1f1b"),
        ({"sequence_parallel": ["yes"]}, "sequence_parallel = 'yes' in row 0 is not one of False, True; correct it"),
    ],
)
def test_columns_that_are_no_plans(columns: dict[str, list[object]], message: str) -> None:
    """A column that is no field, or a value that is not of its kind, is told with its row."""
    with pytest.raises(ValueError, match=message):
        evaluate_plans(pd.DataFrame(columns), flavor=FLAVOR)


def test_what_is_refused() -> None:
    """A column there twice, several flavors, and what `estimate` refuses, are told."""
    twice = pd.concat([GRID, GRID[["tp"]]], axis=1)
    with pytest.raises(ValueError, match="plans: column 'tp' is there more than once; keep one"):
        evaluate_plans(twice, flavor=FLAVOR)
    with pytest.raises(ValueError, match="flavor: 'all' is several; give one, and call for each"):
        evaluate_plans(GRID, flavor="all")
    with pytest.raises(ValueError, match="unknown stack 'none'"):
        evaluate_plans(GRID, flavor=FLAVOR, stack="none")


@pytest.mark.parametrize("kind", ["int8", "float64", "Int64", "object", "category"])
def test_counts_of_any_kind(kind: str) -> None:
    """However pandas holds a column, its values count."""
    frame = GRID.astype({"tp": kind, "recomputation": "category"})
    assert evaluate_plans(frame, flavor=FLAVOR).step_s.equals(evaluate_plans(GRID, flavor=FLAVOR).step_s)
