from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.inputs import StepInputs
from estimator.formulas.launch import logged_tokens_per_s, paces
from estimator.formulas.layout import Layout, StageLayers, layout
from estimator.formulas.machine import Machine
from estimator.formulas.schedule import pass_orders, timeline
from estimator.formulas.step import StepTime, pipeline_seconds, plan_step
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.habits import Habits
from estimator.stack.stack import Window, load_stack
from estimator.work.plan import RECOMPUTATIONS, SCHEDULES, Plan, Plans
from estimator.work.shape import Shape, load_shape
from tests.support.strategies import (
    EFFICIENCIES,
    HABITS,
    habits,
    listed,
    machines_of,
    one_layout,
    step_inputs_of,
    with_plan,
)

DEVICES = 32
STACK_HABITS = load_stack("moai-24.2").habits
MACHINES = machines_of(DEVICES)
steps = step_inputs_of(DEVICES)
durations = st.floats(0.01, 100)
shares = st.floats(0.1, 0.9)
BUSY = ("matmul", "attention", "elementwise")


def mistral(plan: Plan, habit: Habits = STACK_HABITS) -> StepInputs:
    """Return what a step of Mistral 7B on MI250 is predicted from."""
    return StepInputs(load_shape("mistral-7b-v0.1"), 2048, one_layout(plan, DEVICES), MACHINES[0], habit)


def device_seconds(step: StepTime) -> float:
    """Return the seconds of a step that are not the host's."""
    return float(sum(seconds for name, seconds in step.breakdown.items() if name != "host"))


def pipeline(schedule: str, stages: int, micro_batches: int, virtual_stages: int = 1) -> Layout:
    """Return the numbers of a pipeline alone."""
    return one_layout(Plan(stages, micro_batches, schedule=schedule, virtual_stages=virtual_stages), stages)


def simulated_seconds(
    schedule: str, micro_batches: int, passes: tuple[list[float], list[float], list[float]], virtual: int = 1
) -> float:
    """Return the seconds of a pipeline pass by pass; those of forward, backward and weight gradient, by stage."""
    orders = pass_orders(schedule, len(passes[0]), micro_batches, virtual)
    return timeline(orders, dict(enumerate(map(np.asarray, passes)))).seconds


def closed_seconds(plan: Layout, first: float, middle: float, last: float, weight_gradient: float = 0.0) -> float:
    """Return the seconds of a pipeline in closed form."""
    return float(pipeline_seconds(StageLayers(*map(np.asarray, (first, middle, last))), plan, weight_gradient))


@given(durations, st.integers(1, 8), st.integers(1, 16), shares, st.sampled_from(["gpipe", "1f1b"]))
def test_equal_stages(seconds: float, stages: int, micro_batches: int, share: float, schedule: str) -> None:
    """Equal stages take (m + p - 1) t, as a simulated pipeline does with either schedule."""
    closed = closed_seconds(pipeline(schedule, stages, micro_batches), seconds, seconds, seconds)
    assert closed == pytest.approx((micro_batches + stages - 1) * seconds)
    forward, backward = [share * seconds] * stages, [(1 - share) * seconds] * stages
    assert closed == pytest.approx(simulated_seconds(schedule, micro_batches, (forward, backward, [])))


@given(durations, st.integers(2, 6), st.integers(1, 4), st.integers(2, 4), shares)
def test_equal_interleaved_stages(seconds: float, stages: int, rounds: int, virtual: int, share: float) -> None:
    """Equal stages of v chunks take (m + (p - 1) / v) t, whatever part of it is forward, as simulated."""
    micro_batches = rounds * stages
    closed = closed_seconds(pipeline("interleaved", stages, micro_batches, virtual), seconds, seconds, seconds)
    assert closed == pytest.approx((micro_batches + (stages - 1) / virtual) * seconds)
    forward, backward = [share * seconds / virtual] * stages, [(1 - share) * seconds / virtual] * stages
    assert closed == pytest.approx(simulated_seconds("interleaved", micro_batches, (forward, backward, []), virtual))


@given(durations, durations, shares, st.integers(2, 8), st.integers(0, 16))
def test_equal_zero_bubble_stages(forward: float, backward: float, share: float, stages: int, more: int) -> None:
    """Where the weight gradient is no longer than the other passes, ZB-H1 waits (p - 1)(f + b - w), as simulated."""
    micro_batches, gradient = stages + more, share * min(forward, backward)
    seconds = forward + backward + gradient
    plan = pipeline("zero_bubble", stages, micro_batches)
    closed = closed_seconds(plan, seconds, seconds, seconds, gradient / seconds)
    expected = micro_batches * seconds + (stages - 1) * (forward + backward - gradient)
    assert closed == pytest.approx(expected)
    passes = ([forward] * stages, [backward] * stages, [gradient] * stages)
    assert closed == pytest.approx(simulated_seconds("zero_bubble", micro_batches, passes))


@given(st.tuples(durations, durations, durations), st.integers(1, 8), st.integers(0, 16), st.floats(0, 1))
def test_zero_bubble_lies_between(
    seconds: tuple[float, float, float], stages: int, more: int, weight_gradient: float
) -> None:
    """Zero bubble takes its busiest stage's time or more, and no longer than 1F1B; as long without that gradient."""
    zero_bubble, usual = (pipeline(schedule, stages, stages + more) for schedule in ("zero_bubble", "1f1b"))
    first, middle, last = seconds
    busiest = (stages + more) * max([first, *[middle] * (stages - 2), last] if stages > 1 else [first])
    longest = closed_seconds(usual, *seconds)
    assert busiest * (1 - 1e-12) <= closed_seconds(zero_bubble, *seconds, weight_gradient) <= longest * (1 + 1e-12)
    assert closed_seconds(zero_bubble, *seconds, 0.0) == pytest.approx(longest)


@given(st.tuples(durations, durations, durations), st.integers(2, 8), st.integers(1, 16), shares, st.data())
def test_uneven_stages(
    each: tuple[float, float, float], stages: int, micro_batches: int, share: float, data: st.DataObject
) -> None:
    """A simulated pipeline of uneven stages takes at least its busiest stage, at most the closed form.

    Interleaved, where a chunk waits in each round for the slowest: at most a tenth more.
    """
    schedule = data.draw(st.sampled_from(SCHEDULES))
    first, middle, last = each
    seconds = [first, *[middle] * (stages - 2), last]
    virtual = data.draw(st.integers(2, 3)) if schedule == "interleaved" else 1
    micro_batches = {"interleaved": stages * (1 + micro_batches % 3), "zero_bubble": stages + micro_batches}.get(
        schedule, micro_batches
    )
    gradient = min(share, 1 - share) / 3 if schedule == "zero_bubble" else 0.0
    parts = (share - gradient / 2, 1 - share - gradient / 2, gradient)
    forward, backward, later = ([part * t / virtual for t in seconds] for part in parts)
    simulated = simulated_seconds(schedule, micro_batches, (forward, backward, later), virtual)
    closed = closed_seconds(pipeline(schedule, stages, micro_batches, virtual), *each, gradient)
    assert micro_batches * max(seconds) <= simulated * (1 + 1e-12)
    assert simulated <= closed * (1.1 if schedule == "interleaved" else 1 + 1e-12)


@given(steps)
def test_the_breakdown_is_the_step(inputs: StepInputs) -> None:
    """The parts of a step add up to it, and none is negative beyond rounding."""
    step = plan_step(inputs, EFFICIENCIES)
    assert step.seconds == pytest.approx(sum(float(part) for part in step.breakdown.values()))
    assert all(part >= -1e-12 * step.seconds for part in step.breakdown.values())


@given(steps | step_inputs_of(DEVICES, "mixtral"))
def test_what_one_rank_need_not_do(inputs: StepInputs) -> None:
    """One stage has no bubble and no transfers; one rank of any other kind has no collectives.

    Offloading takes time where it is done, and there alone.
    """
    plan, parts = inputs.plan, plan_step(inputs, EFFICIENCIES).breakdown
    if plan.num_stages == 1:
        assert parts["pipeline_bubble"] == pytest.approx(0, abs=1e-9 * float(sum(parts.values())))
    assert (parts["stage_transfer"] == 0) == (plan.num_stages == 1)
    assert (parts["tensor_parallel"] == 0) == (plan.tp == 1)
    assert (parts["context_parallel"] == 0) == (plan.cp == 1)
    assert (parts["expert_parallel"] == 0) == (plan.ep == 1)
    assert (parts["data_parallel"] == 0) == (plan.replicas == 1)
    assert (parts["offload"] == 0) == (not plan.offload_optimizer)


def test_gradients_added_up_by_their_products_take_less() -> None:
    """Micro-batches whose gradients are added up within their products take less than by a pass; one alone the same."""
    fused = STACK_HABITS.model_copy(update={"fuses_accumulation": True})
    for micro_batches in (1, 8):
        within, apart = (
            plan_step(mistral(Plan(num_micro_batches=micro_batches), habit), EFFICIENCIES).breakdown["elementwise"]
            for habit in (fused, STACK_HABITS)
        )
        assert within < apart if micro_batches > 1 else within == apart


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
@pytest.mark.parametrize(("exposed", "split", "sharded"), [(0.1, 0.2, 0.5), (0.4, 1.5, 2.0), (0.5, 0.8, 9.0)])
def test_nothing_hides_without_overlap(zero_stage: int, exposed: float, split: float, sharded: float) -> None:
    """Without overlap all seconds of collectives are exposed, at least: no step is faster for it."""
    plan = Plan(num_micro_batches=4, tp=2, zero_stage=zero_stage)
    apart = STACK_HABITS.model_copy(update={"overlaps_communication": False})
    fitted = EFFICIENCIES._replace(exposed_communication=exposed, tensor_exposure=split, sharded_exposure=sharded)
    bare = EFFICIENCIES._replace(exposed_communication=1.0, tensor_exposure=1.0, sharded_exposure=1.0)
    without, least, usual = (
        plan_step(mistral(plan, habit), efficiencies).seconds
        for habit, efficiencies in ((apart, fitted), (STACK_HABITS, bare), (STACK_HABITS, fitted))
    )
    assert without >= least
    assert without >= usual
    if exposed * sharded < 1 and split < 1:
        assert without == least


def test_an_unknown_host_takes_no_offloads() -> None:
    """Where nothing is known of the host, no step has an offload."""
    machine = MACHINES[0]._replace(node=MACHINES[0].node.model_copy(update={"host": None}))
    inputs = mistral(Plan(num_micro_batches=8))._replace(machine=machine)
    assert "offload" not in plan_step(inputs, EFFICIENCIES).breakdown


def recomputing(inputs: StepInputs, name: str, layers: int = 0) -> StepInputs:
    """Return inputs whose plan repeats so, of so many layers of a stage."""
    return with_plan(inputs, recomputation=RECOMPUTATIONS.index(name), recomputed_layers=layers)


@given(steps)
def test_recomputation_costs_time(inputs: StepInputs) -> None:
    """Full recomputation keeps the devices busy no less than selective, and selective no less than none."""
    seconds = [device_seconds(plan_step(recomputing(inputs, name), EFFICIENCIES)) for name in RECOMPUTATIONS]
    assert seconds[0] <= seconds[1] * (1 + 1e-12)
    assert seconds[1] <= seconds[2] * (1 + 1e-12)


@given(steps, st.integers(1, 24))
def test_recomputing_some_layers_lies_between(inputs: StepInputs, some: int) -> None:
    """Recomputing some layers takes no less than none and no more than all, on the devices and to launch."""
    ways = (("none", 0), ("full", some), ("full", some + 1), ("full", 0))
    found = [plan_step(recomputing(inputs, *way), EFFICIENCIES) for way in ways]
    for before, after in pairwise(found):
        assert device_seconds(before) <= device_seconds(after) * (1 + 1e-12)
        assert before.launch_s <= after.launch_s * (1 + 1e-12)
        assert all(before.breakdown[name] <= after.breakdown[name] * (1 + 1e-12) for name in BUSY)


@given(steps, st.sampled_from(["dp-sequences", "dp-micro", "tp", "pp", "cp"]))
def test_more_devices_share_the_work(inputs: StepInputs, how: str) -> None:
    """With the global batch as it is, twice the devices never keep the mean device busy for longer."""
    plan, machine = inputs.plan, inputs.machine
    twice = {"num_micro_batches": 2 * plan.num_micro_batches, "batch_per_device": 2 * plan.batch_per_device}
    few = with_plan(inputs, **twice)
    if how == "pp":  # as many layers of each of more stages would repeat more
        few = with_plan(few, recomputed_layers=0)
    changes = {
        "dp-sequences": {"dp": 2 * plan.dp, "batch_per_device": plan.batch_per_device},
        "dp-micro": {"dp": 2 * plan.dp, "num_micro_batches": plan.num_micro_batches},
        "tp": {"tp": 2 * plan.tp},
        "pp": {"num_stages": 2 * plan.num_stages},
        "cp": {"cp": 2 * plan.cp},
    }[how]
    larger = machine._replace(num_devices=2 * machine.num_devices, num_nodes=2 * machine.num_nodes)
    before, after = (
        sum(plan_step(case, EFFICIENCIES).breakdown[name] for name in BUSY)
        for case in (few, with_plan(few, **changes)._replace(machine=larger))
    )
    assert after <= before * (1 + 1e-12)


tables = st.tuples(listed(DEVICES), st.integers(1, 4096), st.sampled_from(MACHINES), habits)
Table = tuple[tuple[Shape, list[Plan]], int, Machine, Habits]


def of_table(table: Table, plans: Plan | Plans) -> StepInputs:
    """Return what a step of some plans of a table is predicted from."""
    (shape, _), seq_len, machine, habit = table
    return StepInputs(shape, seq_len, layout(plans, DEVICES, 8), machine, habit)


@given(tables)
def test_a_row_is_its_plan_alone(table: Table) -> None:
    """Row i of a table equals plan i alone, by purpose."""
    plans = table[0][1]
    together = plan_step(of_table(table, Plans.of(plans)), EFFICIENCIES)
    for i, plan in enumerate(plans):
        alone = plan_step(of_table(table, plan), EFFICIENCIES)
        for name, column in together.breakdown.items():
            one = alone.breakdown[name]
            assert np.broadcast_to(column, (len(plans),))[i] == pytest.approx(one.item(), rel=1e-12, abs=1e-12), name
        assert together.launch_s[i] == alone.launch_s[0]


@given(tables, st.lists(st.floats(0.1, 1), min_size=1, max_size=4))
def test_a_sample_is_its_efficiencies_alone(table: Table, factors: list[float]) -> None:
    """Samples of the efficiencies, k by 1, against n plans give k by n, each row as its sample gives alone."""
    plans = table[0][1]
    many = of_table(table, Plans.of(plans))
    together = plan_step(many, Efficiencies(*(np.array([[x * factor] for factor in factors]) for x in EFFICIENCIES)))
    assert together.seconds.shape == together.launch_s.shape == (len(factors), len(plans))
    for i, factor in enumerate(factors):
        alone = plan_step(many, Efficiencies(*(x * factor for x in EFFICIENCIES)))
        np.testing.assert_allclose(together.seconds[i], alone.seconds, rtol=1e-12)
        np.testing.assert_allclose(together.launch_s[i], alone.launch_s, rtol=1e-12)


@given(steps, st.floats(0, 10), st.integers(1, 50))
def test_the_host_delays_by_no_more_than_it_launches(inputs: StepInputs, launch_s: float, steps_per_read: int) -> None:
    """A step is as long as the devices or the host at least, both in turn at most; reading the loss less saves time.

    Hosts of their own also fill and drain the pipeline.
    """
    plan, efficiencies = inputs.plan, EFFICIENCIES._replace(launch_s_per_step=launch_s)
    each, rarely = (plan_step(inputs, efficiencies, steps_per_read=n) for n in (1, steps_per_read))
    device = device_seconds(each)
    assert max(device, each.launch_s) <= rarely.seconds * (1 + 1e-12)
    assert rarely.seconds <= each.seconds * (1 + 1e-12)
    in_turn = each.launch_s * (plan.num_micro_batches + plan.num_stages - 1) / plan.num_micro_batches
    assert each.seconds <= (device + in_turn) * (1 + 1e-12)
    if inputs.habits.single_controller:
        assert each.seconds == pytest.approx(device + float(each.launch_s))


@given(steps, st.floats(0, 1))
def test_a_host_that_launches_ahead_saves_only_the_filling(inputs: StepInputs, fill: float) -> None:
    """It saves nothing where there is one stage, and never makes a step shorter than its devices or its host take."""
    ahead, waiting = (plan_step(inputs, EFFICIENCIES._replace(host_fill=one)) for one in (fill, 1.0))
    assert ahead.seconds <= waiting.seconds * (1 + 1e-12)
    assert ahead.seconds >= max(device_seconds(ahead), float(ahead.launch_s)) * (1 - 1e-12)
    if inputs.plan.num_stages == 1 or fill == 1:
        assert ahead.seconds == pytest.approx(waiting.seconds)


@given(steps, st.floats(0.5, 2))
def test_a_family_factor_scales_the_devices(inputs: StepInputs, factor: float) -> None:
    """A family's factor multiplies the seconds of the devices, and leaves those of the launch of work."""
    inputs = inputs._replace(habits=HABITS)
    population, family = (plan_step(inputs, EFFICIENCIES._replace(family_factor=f)) for f in (1.0, factor))
    assert device_seconds(family) == pytest.approx(factor * device_seconds(population))
    assert family.launch_s == population.launch_s


windows = st.builds(
    Window,
    times=st.just("launch"),
    slow_fraction=st.floats(0, 1),
    slow_ratio=st.floats(1, 99),
    evidence=st.just("a test"),
)


@given(st.floats(1e-3, 1e3), windows)
def test_paces_have_the_mean(launch_s: float, window: Window) -> None:
    """Fast and slow steps, in their shares, launch in the mean time, and the slow ones are slower by the ratio."""
    pace = paces(launch_s, window)
    share = window.slow_fraction
    assert (1 - share) * pace.fast_launch_s + share * pace.slow_launch_s == pytest.approx(launch_s)
    assert pace.slow_launch_s == pytest.approx(window.slow_ratio * float(pace.fast_launch_s))


@given(st.floats(1, 1e6), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), windows)
def test_logged_rate(tokens: float, step_s: float, launch_s: float, window: Window) -> None:
    """A log that times the step prints tokens over it; one that times the launch of work, tokens over that or more."""
    whole = window.model_copy(update={"times": "step"})
    assert logged_tokens_per_s(tokens, step_s, launch_s, whole) == tokens / step_s
    logged = logged_tokens_per_s(tokens, step_s, launch_s, window)
    assert logged >= tokens / launch_s * (1 - 1e-9)  # a mean of rates is above the rate at the mean time
    assert logged <= tokens / float(paces(launch_s, window).fast_launch_s) * (1 + 1e-9)


def test_selective_recomputation_needs_scores() -> None:
    """Where attention is fused there are no scores to drop: selective recomputation costs nothing."""
    for model, is_free in (("Qwen/Qwen1.5-7B", True), ("mistral-7b-v0.1", False)):
        inputs = mistral(Plan(num_micro_batches=8))._replace(shape=load_shape(model))
        kept, dropped = (plan_step(recomputing(inputs, name), EFFICIENCIES).seconds for name in ("none", "selective"))
        assert (kept == dropped) == is_free


def test_recomputation_repeats_an_all_reduce() -> None:
    """A repeated layer stops before its last product, and so before the all-reduce behind it: 5 of them, not 6.

    The embedding and the vocabulary projection have one each.
    """
    inputs = mistral(Plan(num_micro_batches=8, tp=4))
    none, full = (
        plan_step(recomputing(inputs, name), EFFICIENCIES).breakdown["tensor_parallel"] for name in ("none", "full")
    )
    layers = inputs.shape.num_layers
    assert full / none == pytest.approx((5 * layers + 2) / (4 * layers + 2))
