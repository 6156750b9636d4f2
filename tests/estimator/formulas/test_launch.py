import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.launch import launch_seconds, layer_launch_seconds
from estimator.work.plan import Plan
from estimator.work.shape import load_shape
from tests.support.strategies import EFFICIENCIES, HABITS, one_layout

SHAPE = load_shape("mistralai/Mistral-7B-v0.1")
STALLING = EFFICIENCIES._replace(launch_s_per_split_layer=1e-3, launch_s_per_stalled_rank=2e-3, hop_s=4e-5)
DEVICES = 64

degrees = st.sampled_from([1, 2, 4, 8, 16, 32])


@given(tp=degrees)
def test_stalls_cost_each_rank_of_a_split_layer(tp: int) -> None:
    """On a machine that stalls a layer takes longer in proportion to its ranks, and no longer where it is not split."""
    calm = one_layout(Plan(num_micro_batches=8, tp=tp), DEVICES)
    usual, stalled = (
        layer_launch_seconds(SHAPE, plan, HABITS, STALLING)[0] for plan in (calm, calm._replace(stalls=True))
    )
    assert np.isclose(stalled - usual, 2e-3 * tp if tp > 1 else 0.0)


def test_only_mixtures_wait_for_their_router() -> None:
    """A mixture's layer takes the host longer by what routing takes, a dense model's does not."""
    plan, waits = one_layout(Plan(num_micro_batches=8), DEVICES), EFFICIENCIES._replace(launch_s_per_routed_layer=3e-3)
    for shape, expected in ((SHAPE, 0.0), (load_shape("mistralai/Mixtral-8x7B-v0.1"), 3e-3)):
        usual, routed = (layer_launch_seconds(shape, plan, HABITS, e)[0] for e in (EFFICIENCIES, waits))
        assert np.isclose(routed - usual, expected)


@given(tp=degrees)
def test_only_ranks_on_several_nodes_hop(tp: int) -> None:
    """A ring within a node has no hop between nodes; one over more has two less than twice its ranks."""
    plan = one_layout(Plan(num_micro_batches=8, tp=tp), DEVICES)
    assert plan.tensor_parallel_hops == (2 * (tp - 1) if tp > 8 else 0)


@given(tp=degrees, micro_batches=st.integers(1, 64))
def test_launch_grows_with_work(tp: int, micro_batches: int) -> None:
    """One more micro-batch is more to launch; so is a layer that is split."""
    few, more = (
        one_layout(Plan(num_micro_batches=count, tp=tp), DEVICES) for count in (micro_batches, micro_batches + 1)
    )
    assert launch_seconds(SHAPE, few, HABITS, STALLING) < launch_seconds(SHAPE, more, HABITS, STALLING)
    whole = one_layout(Plan(num_micro_batches=micro_batches), DEVICES)
    assert launch_seconds(SHAPE, whole, HABITS, STALLING) <= launch_seconds(SHAPE, few, HABITS, STALLING)
