from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.inputs import StepInputs
from estimator.formulas.launch import launch_seconds, layer_launch_seconds, stage_launch_seconds
from estimator.work.plan import Plan
from estimator.work.shape import load_shape
from tests.support.strategies import EFFICIENCIES, HABITS, machines_of, one_layout, with_plan

SHAPE = load_shape("mistralai/Mistral-7B-v0.1")
STALLING = EFFICIENCIES._replace(launch_s_per_split_layer=1e-3, launch_s_per_stalled_rank=2e-3, hop_s=4e-5)
DEVICES = 64

MACHINE = machines_of(DEVICES)[0]

degrees = st.sampled_from([1, 2, 4, 8, 16, 32])


def inputs_of(plan: Plan) -> StepInputs:
    """Return what a step of one plan is predicted from."""
    return StepInputs(SHAPE, 2048, one_layout(plan, DEVICES), MACHINE, HABITS)


def step_launch_seconds(plan: Plan) -> float:
    """Return the host seconds to launch a step."""
    inputs = inputs_of(plan)
    return float(launch_seconds(inputs, STALLING, stage_launch_seconds(inputs, STALLING)))


@given(tp=degrees)
def test_stalls_cost_each_rank_of_a_split_layer(tp: int) -> None:
    """On a machine that stalls a layer takes longer in proportion to its ranks, and no longer where it is not split."""
    calm = inputs_of(Plan(num_micro_batches=8, tp=tp))
    usual, stalled = (layer_launch_seconds(i, STALLING)[0] for i in (calm, with_plan(calm, stalls=True)))
    assert np.isclose(stalled - usual, 2e-3 * tp if tp > 1 else 0.0)


def test_compiled_layers_are_launched_faster() -> None:
    """A compiled layer takes the host less than one whose operators are launched one by one, by kernel or by hand."""
    found = {}
    for name in ("kernels", "eager", "compiled"):
        inputs = inputs_of(Plan(num_micro_batches=8))
        habits = inputs.habits.model_copy(update={"execution": name})
        found[name] = float(layer_launch_seconds(inputs._replace(habits=habits), STALLING)[0])
    assert found["compiled"] < found["eager"] == found["kernels"]


def test_only_mixtures_wait_for_their_router() -> None:
    """A mixture's layer takes the host longer by what routing takes, a dense model's does not."""
    dense, waits = inputs_of(Plan(num_micro_batches=8)), EFFICIENCIES._replace(launch_s_per_routed_layer=3e-3)
    mixture = dense._replace(shape=load_shape("mistralai/Mixtral-8x7B-v0.1"))
    for inputs, expected in ((dense, 0.0), (mixture, 3e-3)):
        usual, routed = (layer_launch_seconds(inputs, e)[0] for e in (EFFICIENCIES, waits))
        assert np.isclose(routed - usual, expected)


@given(tp=degrees)
def test_only_ranks_on_several_nodes_hop(tp: int) -> None:
    """A ring within a node has no hop between nodes; one over more has two less than twice its ranks."""
    plan = one_layout(Plan(num_micro_batches=8, tp=tp), DEVICES)
    assert plan.tensor_parallel_hops == (2 * (tp - 1) if tp > 8 else 0)


@given(tp=degrees, micro_batches=st.integers(1, 64))
def test_launch_grows_with_work(tp: int, micro_batches: int) -> None:
    """One more micro-batch is more to launch; so is a layer that is split."""
    few = Plan(num_micro_batches=micro_batches, tp=tp)
    more, whole = replace(few, num_micro_batches=micro_batches + 1), replace(few, tp=1)
    assert step_launch_seconds(few) < step_launch_seconds(more)
    assert step_launch_seconds(whole) <= step_launch_seconds(few)
