import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.inputs import step_inputs
from estimator.formulas.layout import balanced
from estimator.formulas.machine import Fabric
from estimator.work.plan import Plan, Plans
from estimator.work.shape import load_shape
from estimator.work.workload import Workload
from tests.support.strategies import HABITS, machines_of

WORKLOAD = Workload(load_shape("meta-llama/Meta-Llama-3-8B"), 2048, 64, 1)
MACHINE = machines_of(16)[0]
PLANS = Plans.of([Plan(num_stages=stages, num_micro_batches=8, batch_per_device=4, cp=2) for stages in (1, 4)])


@pytest.mark.parametrize("stalls", [False, True, np.array([False, True])])
def test_a_machine_that_was_measured_says_whether_it_stalls(stalls: bool | np.ndarray) -> None:
    """Collectives stall where they were measured to, and nowhere else."""
    measured = MACHINE._replace(fabric=Fabric(1e-5, stalls))
    assert np.array_equal(step_inputs(PLANS, WORKLOAD, measured, HABITS).plan.stalls, stalls)
    assert step_inputs(PLANS, WORKLOAD, MACHINE, HABITS).plan.stalls is False


def test_a_stack_may_divide_the_layers_itself() -> None:
    """Under a stack that balances its stages the layers are as it divides them, else as the plan says."""
    balances = HABITS.model_copy(update={"balances_stages": True})
    plain, own = (step_inputs(PLANS, WORKLOAD, MACHINE, habits).plan for habits in (HABITS, balances))
    assert plain.first_layers.tolist() == [0, 0]
    assert own.first_layers.tolist() == balanced(plain, WORKLOAD.shape).first_layers.tolist() == [0, 9]


@given(st.integers(1, 64), st.integers(1, 8), st.sampled_from([1, 2, 4]))
def test_ranks_share_the_tokens(sequences: int, micro_batches: int, cp: int) -> None:
    """A micro-batch has the tokens of its sequences, which context-parallel ranks share."""
    plan = Plan(num_micro_batches=micro_batches, batch_per_device=sequences, cp=cp)
    assert step_inputs(plan, WORKLOAD, MACHINE, HABITS).tokens == pytest.approx(sequences * 2048 / cp)
