import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.memory import Layout, in_flight, layout, mean_in_flight_between, plan_memory, sharded_bytes, stage_bytes
from estimator.plan import RECOMPUTATIONS, Plan, Plans
from estimator.shape import Shape, load_shape
from estimator.stack import Habits, load_stack
from tests.strategies import habits, one_layout, plan_lists, plans, shapes

DEVICES = 48
STATE = ("weights", "master_weights", "optimizer", "gradients")
counts = st.integers(1, 64)
lengths = st.integers(1, 4096)
layouts = plan_lists(DEVICES).map(lambda drawn: one_layout(drawn[0], DEVICES))


def stages_of(shape: Shape, seq_len: int, plan: Layout, habit: Habits) -> list[float]:
    """Return the bytes per device of each stage, one by one."""
    p = int(plan.stages)
    held = [in_flight(i, p, plan.micro_batches, plan.gpipe) for i in range(p)]
    ends = [(i == 0, i == p - 1) for i in range(p)]
    return [
        float(sum(stage_bytes(shape, seq_len, plan, habit, first=first, last=last, held=h).values()))
        for (first, last), h in zip(ends, held, strict=True)
    ]


def test_zero_figure_1() -> None:
    """A model of 7.5 billion parameters on 64 ranks needs 120, 31.4, 16.6 and 1.9 GB (arXiv:1910.02054, Figure 1)."""
    stage = np.array([0, 1, 2, 3])
    optimizer, gradients, weights = (
        sharded_bytes(7.5e9, bytes_each, 64, stage >= at) for bytes_each, at in ((12, 1), (2, 2), (2, 3))
    )
    np.testing.assert_allclose((optimizer + gradients + weights) / 1e9, [120, 31.4, 16.6, 1.9], atol=0.05)


@given(counts, counts)
def test_in_flight_under_1f1b(stages: int, micro_batches: int) -> None:
    """A stage starts as many forward passes as stages follow it, itself included, before its first backward pass."""
    held = [int(in_flight(i, stages, micro_batches, gpipe=False)) for i in range(stages)]
    assert held == [min(stages - i, micro_batches) for i in range(stages)]
    assert held[-1] == 1


@given(counts, counts, st.booleans())
def test_mean_in_flight_is_the_mean_over_stages(stages: int, micro_batches: int, gpipe: bool) -> None:
    """The closed form is the mean over the stages between the first and the last."""
    held = [float(in_flight(i, stages, micro_batches, gpipe)) for i in range(1, stages - 1)]
    mean = sum(held) / len(held) if held else 0.0
    assert mean_in_flight_between(stages, micro_batches, gpipe) == pytest.approx(mean, rel=1e-12)


@given(shapes(), lengths, layouts, habits, st.integers(2, 8))
def test_more_ranks_never_need_more_state(shape: Shape, seq_len: int, plan: Layout, habit: Habits, factor: int) -> None:
    """Sharding over more data-parallel ranks, or sharding more, never adds bytes of state to a rank."""

    def state(changed: Layout) -> float:
        held = stage_bytes(shape, seq_len, changed, habit, first=True, last=True, held=1)
        return float(sum(held[name] for name in STATE))

    assert state(plan._replace(dp=factor * plan.dp)) <= state(plan)
    by_stage = [state(plan._replace(zero_stage=stage)) for stage in range(4)]
    assert by_stage == sorted(by_stage, reverse=True)


@given(shapes(), lengths, layouts, habits)
def test_recomputation_keeps_less(shape: Shape, seq_len: int, plan: Layout, habit: Habits) -> None:
    """Full recomputation keeps no more activations than selective, and selective no more than none."""
    kept = [
        float(
            stage_bytes(
                shape,
                seq_len,
                plan._replace(recomputation=RECOMPUTATIONS.index(name)),
                habit,
                first=True,
                last=True,
                held=2,
            )["activations"]
        )
        for name in ("none", "selective", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < kept[0]


@given(shapes(), lengths, layouts, habits, st.floats(0.5, 3))
def test_devices_together_hold_all_stages(
    shape: Shape, seq_len: int, plan: Layout, habit: Habits, memory_ratio: float
) -> None:
    """The bytes of all devices are those of every stage, times the devices of a stage."""
    expected = memory_ratio * sum(stages_of(shape, seq_len, plan, habit)) * plan.dp * plan.tp
    assert plan_memory(shape, seq_len, plan, habit, memory_ratio).total_bytes == pytest.approx(expected, rel=1e-9)


@given(shapes(), lengths, layouts, habits, st.floats(0.5, 3))
def test_the_peak_is_the_fullest_stage(
    shape: Shape, seq_len: int, plan: Layout, habit: Habits, memory_ratio: float
) -> None:
    """No stage holds more than the peak, which the ratio multiplies; the correction is what the ratio adds."""
    memory = plan_memory(shape, seq_len, plan, habit, memory_ratio)
    fullest = max(stages_of(shape, seq_len, plan, habit))
    assert memory.peak_bytes == pytest.approx(memory_ratio * fullest, rel=1e-9)
    assert memory.peak["correction"] == pytest.approx((memory_ratio - 1) * fullest, rel=1e-9, abs=1e-9 * fullest)
    assert all(value >= 0 for name, value in memory.peak.items() if name != "correction")


@given(shapes(), lengths, layouts, habits)
def test_all_ranks_hold_the_model(shape: Shape, seq_len: int, plan: Layout, habit: Habits) -> None:
    """The devices of a stage together hold its optimizer state at least once, and once where it is sharded."""
    held = stage_bytes(shape, seq_len, plan, habit, first=True, last=True, held=1)["optimizer"] * plan.dp * plan.tp
    once = stage_bytes(shape, seq_len, plan._replace(dp=1, tp=1), habit, first=True, last=True, held=1)["optimizer"]
    assert held == pytest.approx(float(once * (1 if plan.zero_stage >= 1 else plan.dp)))


@given(shapes(), lengths, plan_lists(DEVICES), habits)
def test_a_row_is_its_plan_alone(shape: Shape, seq_len: int, drawn: list[Plan], habit: Habits) -> None:
    """Row i of a table equals plan i alone, by purpose and in all."""
    table = plan_memory(shape, seq_len, layout(Plans.of(drawn), DEVICES), habit, 1.1)
    for i, plan in enumerate(drawn):
        alone = plan_memory(shape, seq_len, layout(plan, DEVICES), habit, 1.1)
        assert {name: float(column[i]) for name, column in table.peak.items()} == {
            name: float(column[0]) for name, column in alone.peak.items()
        }
        assert table.total_bytes[i] == alone.total_bytes[0]


@given(plans(st.integers(1, 100)))
def test_layout_leaves_no_rank_out(plan: Plan) -> None:
    """A plan that does not divide the devices still has a data-parallel rank, so that nothing is divided by zero."""
    assert (np.asarray(layout(plan, DEVICES).dp) >= 1).all()


def test_gpipe_holds_the_logits_of_every_micro_batch() -> None:
    """Under GPipe the last stage waits with the logits of all micro-batches, under 1F1B with those of one."""
    shape, habit = load_shape("mistral-7b-v0.1"), load_stack("moai-24.2").habits
    one, all_of_them = (
        plan_memory(shape, 2048, one_layout(Plan(num_micro_batches=8, tp=1, schedule=schedule), 32), habit, 1.0).peak[
            "logits"
        ]
        for schedule in ("1f1b", "gpipe")
    )
    assert all_of_them == 8 * one > 0


def test_rows_and_tokens_beyond_64_bits_do_not_wrap() -> None:
    """A product of rows and tokens beyond 2**63 is a large number of bytes, not a negative one."""
    shape, habit = load_shape("mistral-7b-v0.1"), load_stack("moai-24.2").habits
    plan = one_layout(Plan(batch_per_device=2**31 - 1), 1)
    assert plan_memory(shape, 2**39, plan, habit, 1.0).peak["activations"] > 2.0**70
