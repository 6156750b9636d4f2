import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.host import logged_tokens_per_s, paces
from estimator.machine import Machine
from estimator.memory import Layout, layout
from estimator.plan import RECOMPUTATIONS, Plan, Plans
from estimator.shape import Shape, load_shape
from estimator.stack import Efficiencies, Habits, Window, load_stack
from estimator.step import Step, pipeline_seconds, plan_step
from hardware.catalog import load_catalog
from tests.strategies import EFFICIENCIES, HABITS, habits, one_layout, plan_lists, shapes

CATALOG = load_catalog()
DEVICES = 32
STACK_HABITS = load_stack("moai-24.2").habits
MACHINES = [
    Machine.of(CATALOG, CATALOG.flavor_of(name, DEVICES)) for name in ("mi250", "mi210", "mi300x", "h100-sxm-80gb")
]
machines = st.sampled_from(MACHINES)
lengths = st.integers(1, 4096)
layouts = plan_lists(DEVICES).map(lambda drawn: one_layout(drawn[0], DEVICES))
durations = st.floats(0.01, 100)
BUSY = ("matmul", "attention", "elementwise")


def device_seconds(step: Step) -> float:
    """Return the seconds of a step that are not the host's."""
    return float(sum(seconds for name, seconds in step.breakdown.items() if name != "host"))


def makespan(forward: list[float], backward: list[float], micro_batches: int, *, gpipe: bool) -> float:
    """Return when the last of a pipeline's passes ends, each stage running its own in the schedule's order."""
    stages = len(forward)
    queues = []
    for i in range(stages):
        ahead = micro_batches if gpipe else min(stages - 1 - i, micro_batches)
        order = [("f", k) for k in range(ahead)]
        for k in range(micro_batches):
            order += [("f", ahead + k)] * (ahead + k < micro_batches) + [("b", k)]
        queues.append(order)
    ended: dict[tuple[str, int, int], float] = {}
    free = [0.0] * stages
    while any(queues):
        for i, queue in enumerate(queues):
            while queue:
                kind, k = queue[0]
                before = (kind, i - 1 if kind == "f" else i + 1, k)
                if kind == "b" and i == stages - 1:
                    before = ("f", i, k)
                if not (kind == "f" and i == 0) and before not in ended:
                    break
                start = max(free[i], ended.get(before, 0.0))
                free[i] = ended[kind, i, k] = start + (forward if kind == "f" else backward)[i]
                queue.pop(0)
    return max(free)


@given(durations, st.integers(1, 8), st.integers(1, 16), st.floats(0.1, 0.9), st.booleans())
def test_equal_stages(seconds: float, stages: int, micro_batches: int, share: float, gpipe: bool) -> None:
    """Equal stages take (m + p - 1) t, as a simulated pipeline does with either schedule."""
    closed = pipeline_seconds(seconds, seconds, seconds, stages, micro_batches)
    assert closed == pytest.approx((micro_batches + stages - 1) * seconds)
    forward, backward = [share * seconds] * stages, [(1 - share) * seconds] * stages
    assert closed == pytest.approx(makespan(forward, backward, micro_batches, gpipe=gpipe))


@given(durations, durations, durations, st.integers(2, 8), st.integers(1, 16), st.floats(0.1, 0.9), st.booleans())
def test_uneven_stages(
    first: float, middle: float, last: float, stages: int, micro_batches: int, share: float, gpipe: bool
) -> None:
    """A simulated pipeline of uneven stages takes at most the closed form, at least its busiest stage."""
    seconds = [first, *[middle] * (stages - 2), last]
    forward, backward = [share * t for t in seconds], [(1 - share) * t for t in seconds]
    simulated = makespan(forward, backward, micro_batches, gpipe=gpipe)
    closed = float(pipeline_seconds(first, middle, last, stages, micro_batches))
    assert micro_batches * max(seconds) <= simulated * (1 + 1e-12)
    assert simulated <= closed * (1 + 1e-12)


@given(shapes(), lengths, layouts, machines, habits)
def test_the_breakdown_is_the_step(shape: Shape, seq_len: int, plan: Layout, machine: Machine, habit: Habits) -> None:
    """The parts of a step add up to it, and none is negative beyond rounding."""
    step = plan_step(shape, seq_len, plan, machine, habit, EFFICIENCIES)
    assert step.seconds == pytest.approx(sum(float(part) for part in step.breakdown.values()))
    assert all(part >= -1e-12 * step.seconds for part in step.breakdown.values())


@given(shapes(), lengths, layouts, machines, habits)
def test_what_one_rank_need_not_do(shape: Shape, seq_len: int, plan: Layout, machine: Machine, habit: Habits) -> None:
    """One stage has no bubble and no transfers; one tensor-parallel and one data-parallel rank have no collectives."""
    parts = plan_step(shape, seq_len, plan, machine, habit, EFFICIENCIES).breakdown
    if plan.stages == 1:
        assert parts["stage_transfer"] == 0
        assert parts["pipeline_bubble"] == pytest.approx(0, abs=1e-9 * float(sum(parts.values())))
    assert (parts["tensor_parallel"] == 0) == (plan.tp == 1)
    assert (parts["data_parallel"] == 0) == (plan.dp == 1)


@given(shapes(), lengths, layouts, machines, habits)
def test_recomputation_costs_time(shape: Shape, seq_len: int, plan: Layout, machine: Machine, habit: Habits) -> None:
    """Full recomputation keeps the devices busy no less than selective, and selective no less than none."""
    seconds = [
        device_seconds(
            plan_step(
                shape,
                seq_len,
                plan._replace(recomputation=RECOMPUTATIONS.index(name)),
                machine,
                habit,
                EFFICIENCIES,
            )
        )
        for name in ("none", "selective", "full")
    ]
    assert seconds[0] <= seconds[1] * (1 + 1e-12)
    assert seconds[1] <= seconds[2] * (1 + 1e-12)


@given(shapes(), lengths, layouts, machines, habits, st.sampled_from(["dp-rows", "dp-micro", "tp", "pp"]))
def test_more_devices_share_the_work(
    shape: Shape, seq_len: int, plan: Layout, machine: Machine, habit: Habits, how: str
) -> None:
    """With the global batch as it is, twice the devices never keep the mean device busy for longer."""
    few = plan._replace(micro_batches=2 * plan.micro_batches, rows=2 * plan.rows)
    many = {
        "dp-rows": few._replace(dp=2 * few.dp, rows=plan.rows),
        "dp-micro": few._replace(dp=2 * few.dp, micro_batches=plan.micro_batches),
        "tp": few._replace(tp=2 * few.tp),
        "pp": few._replace(stages=2 * few.stages),
    }[how]
    larger = machine._replace(num_devices=2 * machine.num_devices, num_nodes=2 * machine.num_nodes)
    before, after = (
        sum(plan_step(shape, seq_len, on, devices, habit, EFFICIENCIES).breakdown[name] for name in BUSY)
        for on, devices in ((few, machine), (many, larger))
    )
    assert after <= before * (1 + 1e-12)


@given(shapes(), lengths, plan_lists(DEVICES), machines, habits)
def test_a_row_is_its_plan_alone(
    shape: Shape, seq_len: int, drawn: list[Plan], machine: Machine, habit: Habits
) -> None:
    """Row i of a table equals plan i alone, by purpose."""
    table = plan_step(shape, seq_len, layout(Plans.of(drawn), DEVICES), machine, habit, EFFICIENCIES)
    for i, plan in enumerate(drawn):
        alone = plan_step(shape, seq_len, layout(plan, DEVICES), machine, habit, EFFICIENCIES)
        for name, column in table.breakdown.items():
            assert column[i] == pytest.approx(alone.breakdown[name][0], rel=1e-12, abs=1e-12), name
        assert table.issue_s[i] == alone.issue_s[0]


@given(shapes(), lengths, plan_lists(DEVICES), machines, habits, st.lists(st.floats(0.1, 1), min_size=1, max_size=4))
def test_a_sample_is_its_efficiencies_alone(
    shape: Shape, seq_len: int, drawn: list[Plan], machine: Machine, habit: Habits, factors: list[float]
) -> None:
    """Samples of the efficiencies, k by 1, against n plans give k by n, each row as its sample gives alone."""
    many = layout(Plans.of(drawn), DEVICES)
    samples = Efficiencies(*(np.array([[x * factor] for factor in factors]) for x in EFFICIENCIES))
    together = plan_step(shape, seq_len, many, machine, habit, samples)
    assert together.seconds.shape == together.issue_s.shape == (len(factors), len(drawn))
    for i, factor in enumerate(factors):
        alone = plan_step(shape, seq_len, many, machine, habit, Efficiencies(*(x * factor for x in EFFICIENCIES)))
        np.testing.assert_allclose(together.seconds[i], alone.seconds, rtol=1e-12)
        np.testing.assert_allclose(together.issue_s[i], alone.issue_s, rtol=1e-12)


@given(shapes(), lengths, layouts, machines, habits, st.floats(0, 10), st.integers(1, 50))
def test_the_host_delays_by_no_more_than_it_issues(
    shape: Shape, seq_len: int, plan: Layout, machine: Machine, habit: Habits, issue_s: float, steps_per_read: int
) -> None:
    """A step is as long as the devices or the host at least, both in turn at most; reading the loss less saves time."""
    efficiencies = EFFICIENCIES._replace(issue_s_per_step=issue_s)
    each, rarely = (
        plan_step(shape, seq_len, plan, machine, habit, efficiencies, steps_per_read=n) for n in (1, steps_per_read)
    )
    device = device_seconds(each)
    assert max(device, each.issue_s) <= rarely.seconds * (1 + 1e-12)
    assert rarely.seconds <= each.seconds * (1 + 1e-12)
    assert each.seconds <= (device + each.issue_s) * (1 + 1e-12)
    if habit.single_controller:
        assert each.seconds == pytest.approx(device + float(each.issue_s))


@given(shapes(), lengths, layouts, machines, st.floats(0.5, 2))
def test_a_family_factor_scales_the_devices(
    shape: Shape, seq_len: int, plan: Layout, machine: Machine, factor: float
) -> None:
    """A family's factor multiplies the seconds of the devices, and leaves those of the issue of work."""
    population = plan_step(shape, seq_len, plan, machine, HABITS, EFFICIENCIES)
    family = plan_step(shape, seq_len, plan, machine, HABITS, EFFICIENCIES._replace(family_factor=factor))
    assert device_seconds(family) == pytest.approx(factor * device_seconds(population))
    assert family.issue_s == population.issue_s


windows = st.builds(
    Window,
    times=st.just("issue"),
    slow_fraction=st.floats(0, 1),
    slow_ratio=st.floats(1, 99),
    evidence=st.just("a test"),
)


@given(st.floats(1e-3, 1e3), windows)
def test_paces_have_the_mean(issue_s: float, window: Window) -> None:
    """Fast and slow steps, in their shares, issue in the mean time, and the slow ones are slower by the ratio."""
    pace = paces(issue_s, window)
    share = window.slow_fraction
    assert (1 - share) * pace.fast_issue_s + share * pace.slow_issue_s == pytest.approx(issue_s)
    assert pace.slow_issue_s == pytest.approx(window.slow_ratio * float(pace.fast_issue_s))


@given(st.floats(1, 1e6), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), windows)
def test_logged_rate(tokens: float, step_s: float, issue_s: float, window: Window) -> None:
    """A log that times the step prints tokens over it; one that times the issue of work, tokens over that or more."""
    whole = window.model_copy(update={"times": "step"})
    assert logged_tokens_per_s(tokens, step_s, issue_s, whole) == tokens / step_s
    logged = logged_tokens_per_s(tokens, step_s, issue_s, window)
    assert logged >= tokens / issue_s * (1 - 1e-9)  # a mean of rates is above the rate at the mean time
    assert logged <= tokens / float(paces(issue_s, window).fast_issue_s) * (1 + 1e-9)


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
    """A repeated layer stops before its last product, and so before the all-reduce behind it: 5 of them, not 6."""
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
    assert full / none == pytest.approx(5 / 4)
