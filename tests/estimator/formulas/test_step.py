from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.launch import logged_tokens_per_s, paces
from estimator.formulas.layout import Layout, StageLayers, layout
from estimator.formulas.machine import Machine
from estimator.formulas.step import StepTime, pipeline_seconds, plan_step
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.stack import Habits, Window, load_stack
from estimator.work.plan import RECOMPUTATIONS, SCHEDULES, Plan, Plans
from estimator.work.shape import Shape, load_shape
from hardware.catalog import load_catalog
from tests.support.schedules import makespan, orders
from tests.support.strategies import EFFICIENCIES, HABITS, habits, laid, listed, one_layout

CATALOG = load_catalog()
DEVICES = 32
STACK_HABITS = load_stack("moai-24.2").habits
MACHINES = [
    Machine.of(CATALOG, CATALOG.flavor_of(name, DEVICES)) for name in ("mi250", "mi210", "mi300x", "h100-sxm-80gb")
]
machines = st.sampled_from(MACHINES)
lengths = st.integers(1, 4096)
layouts = laid(DEVICES)
durations = st.floats(0.01, 100)
shares = st.floats(0.1, 0.9)
BUSY = ("matmul", "attention", "elementwise")
Laid = tuple[Shape, Layout]


def device_seconds(step: StepTime) -> float:
    """Return the seconds of a step that are not the host's."""
    return float(sum(seconds for name, seconds in step.breakdown.items() if name != "host"))


def pipeline(schedule: str, stages: int, micro_batches: int, virtual_stages: int = 1) -> Layout:
    """Return the numbers of a pipeline alone."""
    return one_layout(Plan(stages, micro_batches, schedule=schedule, virtual_stages=virtual_stages), stages)


def closed_seconds(plan: Layout, first: float, middle: float, last: float, weight_gradient: float = 0.0) -> float:
    """Return the seconds of a pipeline in closed form."""
    return float(pipeline_seconds(StageLayers(*map(np.asarray, (first, middle, last))), plan, weight_gradient))


@given(durations, st.integers(1, 8), st.integers(1, 16), shares, st.sampled_from(["gpipe", "1f1b"]))
def test_equal_stages(seconds: float, stages: int, micro_batches: int, share: float, schedule: str) -> None:
    """Equal stages take (m + p - 1) t, as a simulated pipeline does with either schedule."""
    closed = closed_seconds(pipeline(schedule, stages, micro_batches), seconds, seconds, seconds)
    assert closed == pytest.approx((micro_batches + stages - 1) * seconds)
    passes = {"f": [share * seconds] * stages, "b": [(1 - share) * seconds] * stages}
    assert closed == pytest.approx(makespan(orders(schedule, stages, micro_batches), passes))


@given(durations, st.integers(2, 6), st.integers(1, 4), st.integers(2, 4), shares)
def test_equal_interleaved_stages(seconds: float, stages: int, rounds: int, virtual: int, share: float) -> None:
    """Equal stages of v chunks take (m + (p - 1) / v) t, whatever part of it is forward, as simulated."""
    micro_batches = rounds * stages
    closed = closed_seconds(pipeline("interleaved", stages, micro_batches, virtual), seconds, seconds, seconds)
    assert closed == pytest.approx((micro_batches + (stages - 1) / virtual) * seconds)
    passes = {"f": [share * seconds / virtual] * stages, "b": [(1 - share) * seconds / virtual] * stages}
    assert closed == pytest.approx(makespan(orders("interleaved", stages, micro_batches, virtual), passes))


@given(durations, durations, shares, st.integers(2, 8), st.integers(0, 16))
def test_equal_zero_bubble_stages(forward: float, backward: float, share: float, stages: int, more: int) -> None:
    """Where the weight gradient is no longer than the other passes, ZB-H1 waits (p - 1)(f + b - w), as simulated."""
    micro_batches, gradient = stages + more, share * min(forward, backward)
    seconds = forward + backward + gradient
    plan = pipeline("zero_bubble", stages, micro_batches)
    closed = closed_seconds(plan, seconds, seconds, seconds, gradient / seconds)
    expected = micro_batches * seconds + (stages - 1) * (forward + backward - gradient)
    assert closed == pytest.approx(expected)
    passes = {"f": [forward] * stages, "b": [backward] * stages, "w": [gradient] * stages}
    assert closed == pytest.approx(makespan(orders("zero_bubble", stages, micro_batches), passes))


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
    parts = {"f": share - gradient / 2, "b": 1 - share - gradient / 2, "w": gradient}
    passes = {kind: [part * t / virtual for t in seconds] for kind, part in parts.items()}
    simulated = makespan(orders(schedule, stages, micro_batches, virtual), passes)
    closed = closed_seconds(pipeline(schedule, stages, micro_batches, virtual), *each, gradient)
    assert micro_batches * max(seconds) <= simulated * (1 + 1e-12)
    assert simulated <= closed * (1.1 if schedule == "interleaved" else 1 + 1e-12)


@given(layouts, lengths, machines, habits)
def test_the_breakdown_is_the_step(drawn: Laid, seq_len: int, machine: Machine, habit: Habits) -> None:
    """The parts of a step add up to it, and none is negative beyond rounding."""
    shape, plan = drawn
    step = plan_step(shape, seq_len, plan, machine, habit, EFFICIENCIES)
    assert step.seconds == pytest.approx(sum(float(part) for part in step.breakdown.values()))
    assert all(part >= -1e-12 * step.seconds for part in step.breakdown.values())


@given(layouts | laid(DEVICES, "mixtral"), lengths, machines, habits)
def test_what_one_rank_need_not_do(drawn: Laid, seq_len: int, machine: Machine, habit: Habits) -> None:
    """One stage has no bubble and no transfers; one rank of any other kind has no collectives.

    Offloading takes time where it is done, and there alone.
    """
    shape, plan = drawn
    parts = plan_step(shape, seq_len, plan, machine, habit, EFFICIENCIES).breakdown
    if plan.stages == 1:
        assert parts["pipeline_bubble"] == pytest.approx(0, abs=1e-9 * float(sum(parts.values())))
    assert (parts["stage_transfer"] == 0) == (plan.stages == 1)
    assert (parts["tensor_parallel"] == 0) == (plan.tp == 1)
    assert (parts["context_parallel"] == 0) == (plan.cp == 1)
    assert (parts["expert_parallel"] == 0) == (plan.ep == 1)
    assert (parts["data_parallel"] == 0) == (plan.replicas == 1)
    assert (parts["offload"] == 0) == (not plan.offload_optimizer)


def test_gradients_added_up_by_their_products_take_less() -> None:
    """Micro-batches whose gradients are added up within their products take less than by a pass; one alone the same."""
    shape, fused = load_shape("mistral-7b-v0.1"), STACK_HABITS.model_copy(update={"fuses_accumulation": True})
    for micro_batches in (1, 8):
        plan = one_layout(Plan(num_micro_batches=micro_batches), DEVICES)
        within, apart = (
            float(plan_step(shape, 2048, plan, MACHINES[0], habit, EFFICIENCIES).breakdown["elementwise"])
            for habit in (fused, STACK_HABITS)
        )
        assert within < apart if micro_batches > 1 else within == apart


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
@pytest.mark.parametrize(("exposed", "split", "sharded"), [(0.1, 0.2, 0.5), (0.4, 1.5, 2.0), (0.5, 0.8, 9.0)])
def test_nothing_hides_without_overlap(zero_stage: int, exposed: float, split: float, sharded: float) -> None:
    """Without overlap all seconds of collectives are exposed, at least: no step is faster for it."""
    plan, shape = (
        one_layout(Plan(num_micro_batches=4, tp=2, zero_stage=zero_stage), DEVICES),
        load_shape("mistral-7b-v0.1"),
    )
    apart = STACK_HABITS.model_copy(update={"overlaps_communication": False})
    fitted = EFFICIENCIES._replace(exposed_communication=exposed, tensor_exposure=split, sharded_exposure=sharded)
    bare = EFFICIENCIES._replace(exposed_communication=1.0, tensor_exposure=1.0, sharded_exposure=1.0)
    without, least, usual = (
        plan_step(shape, 2048, plan, MACHINES[0], habit, efficiencies).seconds
        for habit, efficiencies in ((apart, fitted), (STACK_HABITS, bare), (STACK_HABITS, fitted))
    )
    assert without >= least
    assert without >= usual
    if exposed * sharded < 1 and split < 1:
        assert without == least


def test_an_unknown_host_takes_no_offloads() -> None:
    """Where nothing is known of the host, no step has an offload."""
    machine = MACHINES[0]._replace(node=MACHINES[0].node.model_copy(update={"host": None}))
    plan, shape = one_layout(Plan(num_micro_batches=8), DEVICES), load_shape("mistral-7b-v0.1")
    assert "offload" not in plan_step(shape, 2048, plan, machine, STACK_HABITS, EFFICIENCIES).breakdown


@given(layouts, lengths, machines, habits)
def test_recomputation_costs_time(drawn: Laid, seq_len: int, machine: Machine, habit: Habits) -> None:
    """Full recomputation keeps the devices busy no less than selective, and selective no less than none."""
    shape, plan = drawn
    seconds = [
        device_seconds(
            plan_step(
                shape,
                seq_len,
                plan._replace(recomputation=RECOMPUTATIONS.index(name), recomputed_layers=0),
                machine,
                habit,
                EFFICIENCIES,
            )
        )
        for name in ("none", "selective", "full")
    ]
    assert seconds[0] <= seconds[1] * (1 + 1e-12)
    assert seconds[1] <= seconds[2] * (1 + 1e-12)


@given(layouts, lengths, machines, habits, st.integers(1, 24))
def test_recomputing_some_layers_lies_between(
    drawn: Laid, seq_len: int, machine: Machine, habit: Habits, some: int
) -> None:
    """Recomputing some layers takes no less than none and no more than all, on the devices and to launch."""
    shape, plan = drawn
    none, full = (
        plan._replace(recomputation=RECOMPUTATIONS.index(name), recomputed_layers=0) for name in ("none", "full")
    )
    steps = [
        plan_step(shape, seq_len, way, machine, habit, EFFICIENCIES)
        for way in (none, full._replace(recomputed_layers=some), full._replace(recomputed_layers=some + 1), full)
    ]
    for before, after in pairwise(steps):
        assert device_seconds(before) <= device_seconds(after) * (1 + 1e-12)
        assert before.launch_s <= after.launch_s * (1 + 1e-12)
        assert all(before.breakdown[name] <= after.breakdown[name] * (1 + 1e-12) for name in BUSY)


@given(layouts, lengths, machines, habits, st.sampled_from(["dp-rows", "dp-micro", "tp", "pp", "cp"]))
def test_more_devices_share_the_work(drawn: Laid, seq_len: int, machine: Machine, habit: Habits, how: str) -> None:
    """With the global batch as it is, twice the devices never keep the mean device busy for longer."""
    shape, plan = drawn
    few = plan._replace(micro_batches=2 * plan.micro_batches, rows=2 * plan.rows)
    if how == "pp":  # as many layers of each of more stages would repeat more
        few = few._replace(recomputed_layers=0)
    many = {
        "dp-rows": few._replace(dp=2 * few.dp, rows=plan.rows),
        "dp-micro": few._replace(dp=2 * few.dp, micro_batches=plan.micro_batches),
        "tp": few._replace(tp=2 * few.tp),
        "pp": few._replace(stages=2 * few.stages),
        "cp": few._replace(cp=2 * few.cp),
    }[how]
    larger = machine._replace(num_devices=2 * machine.num_devices, num_nodes=2 * machine.num_nodes)
    before, after = (
        sum(plan_step(shape, seq_len, on, devices, habit, EFFICIENCIES).breakdown[name] for name in BUSY)
        for on, devices in ((few, machine), (many, larger))
    )
    assert after <= before * (1 + 1e-12)


@given(listed(DEVICES), lengths, machines, habits)
def test_a_row_is_its_plan_alone(
    drawn: tuple[Shape, list[Plan]], seq_len: int, machine: Machine, habit: Habits
) -> None:
    """Row i of a table equals plan i alone, by purpose."""
    shape, plans = drawn
    table = plan_step(shape, seq_len, layout(Plans.of(plans), DEVICES, 8), machine, habit, EFFICIENCIES)
    for i, plan in enumerate(plans):
        alone = plan_step(shape, seq_len, layout(plan, DEVICES, 8), machine, habit, EFFICIENCIES)
        for name, column in table.breakdown.items():
            one = alone.breakdown[name]
            assert np.broadcast_to(column, (len(plans),))[i] == pytest.approx(one.item(), rel=1e-12, abs=1e-12), name
        assert table.launch_s[i] == alone.launch_s[0]


@given(listed(DEVICES), lengths, machines, habits, st.lists(st.floats(0.1, 1), min_size=1, max_size=4))
def test_a_sample_is_its_efficiencies_alone(
    drawn: tuple[Shape, list[Plan]], seq_len: int, machine: Machine, habit: Habits, factors: list[float]
) -> None:
    """Samples of the efficiencies, k by 1, against n plans give k by n, each row as its sample gives alone."""
    shape, plans = drawn
    many = layout(Plans.of(plans), DEVICES, 8)
    samples = Efficiencies(*(np.array([[x * factor] for factor in factors]) for x in EFFICIENCIES))
    together = plan_step(shape, seq_len, many, machine, habit, samples)
    assert together.seconds.shape == together.launch_s.shape == (len(factors), len(plans))
    for i, factor in enumerate(factors):
        alone = plan_step(shape, seq_len, many, machine, habit, Efficiencies(*(x * factor for x in EFFICIENCIES)))
        np.testing.assert_allclose(together.seconds[i], alone.seconds, rtol=1e-12)
        np.testing.assert_allclose(together.launch_s[i], alone.launch_s, rtol=1e-12)


@given(layouts, lengths, machines, habits, st.floats(0, 10), st.integers(1, 50))
def test_the_host_delays_by_no_more_than_it_launches(
    drawn: Laid, seq_len: int, machine: Machine, habit: Habits, launch_s: float, steps_per_read: int
) -> None:
    """A step is as long as the devices or the host at least, both in turn at most; reading the loss less saves time.

    Hosts of their own also fill and drain the pipeline.
    """
    shape, plan = drawn
    efficiencies = EFFICIENCIES._replace(launch_s_per_step=launch_s)
    each, rarely = (
        plan_step(shape, seq_len, plan, machine, habit, efficiencies, steps_per_read=n) for n in (1, steps_per_read)
    )
    device = device_seconds(each)
    assert max(device, each.launch_s) <= rarely.seconds * (1 + 1e-12)
    assert rarely.seconds <= each.seconds * (1 + 1e-12)
    in_turn = each.launch_s * (plan.micro_batches + plan.stages - 1) / plan.micro_batches
    assert each.seconds <= (device + in_turn) * (1 + 1e-12)
    if habit.single_controller:
        assert each.seconds == pytest.approx(device + float(each.launch_s))


@given(layouts, lengths, machines, st.floats(0.5, 2))
def test_a_family_factor_scales_the_devices(drawn: Laid, seq_len: int, machine: Machine, factor: float) -> None:
    """A family's factor multiplies the seconds of the devices, and leaves those of the launch of work."""
    shape, plan = drawn
    population = plan_step(shape, seq_len, plan, machine, HABITS, EFFICIENCIES)
    family = plan_step(shape, seq_len, plan, machine, HABITS, EFFICIENCIES._replace(family_factor=factor))
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
    fused, written = load_shape("Qwen/Qwen1.5-7B"), load_shape("mistral-7b-v0.1")
    kept, dropped = (one_layout(Plan(num_micro_batches=8, recomputation=r), DEVICES) for r in ("none", "selective"))
    for shape, is_free in ((fused, True), (written, False)):
        seconds = [
            float(plan_step(shape, 2048, plan, MACHINES[0], STACK_HABITS, EFFICIENCIES).seconds)
            for plan in (kept, dropped)
        ]
        assert (seconds[0] == seconds[1]) == is_free


def test_recomputation_repeats_an_all_reduce() -> None:
    """A repeated layer stops before its last product, and so before the all-reduce behind it: 5 of them, not 6.

    The embedding and the vocabulary projection have one each.
    """
    shape = load_shape("mistral-7b-v0.1")
    none, full = (
        plan_step(
            shape,
            2048,
            one_layout(Plan(num_micro_batches=8, tp=4, recomputation=r), DEVICES),
            MACHINES[0],
            STACK_HABITS,
            EFFICIENCIES,
        ).breakdown["tensor_parallel"]
        for r in ("none", "full")
    )
    assert full / none == pytest.approx((5 * shape.num_layers + 2) / (4 * shape.num_layers + 2))
