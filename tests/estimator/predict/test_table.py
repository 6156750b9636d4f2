import pandas as pd
import pytest

from estimator.formulas.machine import Machine
from estimator.formulas.wall import price_range
from estimator.predict.evaluate import evaluate
from estimator.predict.table import COLUMNS, INTERVAL_COLUMNS, columns_of, row_of
from estimator.stack.stack import load_stack
from estimator.work.plan import PLAN_NAMES, Plan, Plans
from estimator.work.shape import load_shape
from estimator.work.workload import Workload
from hardware.catalog import load_catalog

CATALOG = load_catalog()
PLANS = Plans.of(Plan(2, 16 // rows, rows, recomputation=kept) for rows in (1, 2, 4) for kept in ("none", "full"))


@pytest.mark.parametrize("stack", ["moai-24.2", "nanotron"])
@pytest.mark.parametrize("flavor", ["4xLarge.2048GB", "mi210x32"])  # mi210 has no price
def test_columns_are_rows(stack: str, flavor: str) -> None:
    """The columns of many plans hold what each plan's row does."""
    machine = Machine.of(CATALOG, CATALOG.flavor(flavor))
    prices = price_range(CATALOG.latest_prices(machine.accelerator.id))
    workload = Workload(load_shape("mistralai/Mistral-7B-v0.1"), 2048, 256, 10)
    found = evaluate(PLANS, workload, machine, load_stack(stack))
    rows = pd.DataFrame([row_of(found.row(i, prices), machine.accelerator.bf16_flop_per_s) for i in range(len(PLANS))])
    assert tuple(rows.columns) == (*PLAN_NAMES, *COLUMNS)
    columns = pd.DataFrame(columns_of(found, prices))
    pd.testing.assert_frame_equal(columns, rows[list(columns)], rtol=1e-12)
    assert set(columns) == set(COLUMNS)


def test_what_needs_the_intervals() -> None:
    """Every range has two ends, and whether a plan is risky is told by one of them."""
    assert len(INTERVAL_COLUMNS) == 1 + 2 * sum(f"{name}_low" in COLUMNS for name in COLUMNS)
