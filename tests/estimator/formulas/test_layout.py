from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import Layout, StageLayers, layout
from estimator.formulas.schedule import pass_orders, timeline
from estimator.work.plan import PLAN_FIELDS, RECOMPUTATIONS, SCHEDULES, Plan, Plans
from estimator.work.shape import Shape
from tests.support.strategies import laid, one_layout, plans, step_inputs_of

DEVICES = 48
counts = st.integers(1, 64)
schedules = st.sampled_from(SCHEDULES)


def pipeline(schedule: str, stages: int, micro_batches: int, virtual_stages: int = 1) -> Layout:
    """Return the numbers of a pipeline alone."""
    plan = Plan(stages, micro_batches, schedule=schedule, virtual_stages=virtual_stages)
    return one_layout(plan, stages)


@given(counts, counts)
def test_in_flight_under_1f1b(stages: int, micro_batches: int) -> None:
    """A stage starts as many forward passes as stages follow it, itself included, before its first backward pass."""
    plan = pipeline("1f1b", stages, micro_batches)
    held = [int(plan.in_flight(i)) for i in range(stages)]
    assert held == [min(stages - i, micro_batches) for i in range(stages)]
    assert held[-1] == 1


@given(schedules, st.integers(1, 8), st.integers(1, 16), st.integers(2, 4))
def test_in_flight_is_what_the_schedule_holds(schedule: str, stages: int, micro_batches: int, virtual: int) -> None:
    """Each stage holds the most micro-batches whose gradients are not all made, as its passes in order have them.

    A stage alone has nobody to wait for: it holds one, whatever the schedule.
    """
    virtual = virtual if schedule == "interleaved" else 1
    micro_batches *= stages if schedule == "interleaved" else 1
    plan = pipeline(schedule, stages, micro_batches, virtual)
    found = timeline(pass_orders(schedule, stages, micro_batches, virtual), dict.fromkeys(range(3), np.ones(stages)))
    simulated = [max(found.held(i)[1]) / virtual for i in range(stages)]
    expected = [1.0] if schedule == "gpipe" and stages == 1 else simulated
    assert [float(plan.in_flight(i)) for i in range(stages)] == expected


@given(schedules, counts, counts, st.integers(1, 8))
def test_mean_in_flight_is_the_mean_over_stages(schedule: str, stages: int, micro_batches: int, virtual: int) -> None:
    """The closed form is the mean over the stages between the first and the last."""
    plan = pipeline(schedule, stages, micro_batches, virtual if schedule == "interleaved" else 1)
    held = [float(plan.in_flight(i)) for i in range(1, stages - 1)]
    mean = sum(held) / len(held) if held else 0.0
    assert plan.mean_in_flight_between() == pytest.approx(mean, rel=1e-12)


@given(laid(DEVICES))
def test_stages_hold_every_layer(drawn: tuple[Shape, Layout]) -> None:
    """The first, the last, and those between, as many layers each, together hold each layer once."""
    shape, plan = drawn
    layers = plan.stage_layers(shape.num_layers)
    if plan.num_stages > 1:
        assert layers.first + layers.last + (plan.num_stages - 2) * layers.middle == pytest.approx(shape.num_layers)
    assert plan.over_stages(layers) == pytest.approx(shape.num_layers)
    if plan.first_layers:
        assert (layers.first, layers.last) == (plan.first_layers, plan.last_layers)
    else:
        assert layers.first == layers.middle == layers.last


@given(counts, st.tuples(*[st.floats(0, 1e6)] * 3))
def test_over_stages_is_the_sum(stages: int, each: tuple[float, float, float]) -> None:
    """A quantity over all stages is that of the first, of those between and of the last; one alone is the first."""
    first, middle, last = each
    listed = [first, *[middle] * (stages - 2), last] if stages > 1 else [first]
    plan = pipeline("1f1b", stages, stages)
    assert plan.over_stages(StageLayers(*map(np.asarray, each))) == pytest.approx(sum(listed), rel=1e-12)


@given(laid(DEVICES))
def test_shards_lie_among_the_replicas(drawn: tuple[Shape, Layout]) -> None:
    """Shards are over all replicas, or over those of a node; experts have an ep-th of them, and one at least."""
    _, plan = drawn
    assert plan.replicas * plan.tp * plan.num_stages == DEVICES
    in_node = replace(plan, shard_within_node=True).shard_ranks
    assert replace(plan, shard_within_node=False).shard_ranks == plan.replicas
    assert 1 <= in_node <= plan.replicas
    assert in_node == plan.replicas or in_node == max(8 // plan.tp, 1)
    assert plan.expert_shard_ranks == max(plan.shard_ranks // plan.ep, 1)


@given(laid(DEVICES), st.integers(1, 24))
def test_repeated_layers(drawn: tuple[Shape, Layout], layers: int) -> None:
    """Recomputation concerns as many layers as the plan says, and no more than a stage has; all where it says none."""
    _, plan = drawn
    repeated = plan.repeated_layers(layers)
    assert repeated == (min(plan.recomputed_layers, layers) if plan.recomputed_layers else layers)


@given(step_inputs_of(DEVICES))
def test_what_a_plan_repeats(inputs: StepInputs) -> None:
    """Attention is repeated with its layer, or alone where its scores were dropped, which fused kernels never write."""
    recomputation = RECOMPUTATIONS[int(inputs.plan.recomputation)]
    alone = recomputation == "selective" and not inputs.habits.fuses_attention(inputs.shape)
    assert inputs.repeats_attention == (recomputation == "full" or alone)


@given(plans(st.integers(1, 100), st.integers(1, 100)))
def test_layout_leaves_no_rank_out(plan: Plan) -> None:
    """A plan that does not divide the devices still has a data-parallel rank, so that nothing is divided by zero."""
    assert (np.asarray(layout(plan, DEVICES, 8).dp) >= 1).all()
    assert (layout(plan, DEVICES, 8).expert_shard_ranks >= 1).all()


@given(st.lists(plans(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
def test_a_layout_has_every_field_of_its_plans(drawn: list[Plan]) -> None:
    """The formulas see each field of a plan under its own name, and three that the machine adds."""
    found, many = layout(Plans.of(drawn), DEVICES, 8), Plans.of(drawn)
    for own in PLAN_FIELDS:
        np.testing.assert_array_equal(getattr(found, own.name), getattr(many, own.name))
    added = {f.name for f in fields(Layout)} - {own.name for own in PLAN_FIELDS}
    assert added == {"dp", "devices_per_node", "stalls"}
