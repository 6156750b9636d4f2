from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.counts import num_parameters
from estimator.formulas.layout import Layout, layout
from estimator.formulas.memory import (
    fullest_rank,
    host_bytes,
    plan_memory,
    rank_parameters,
    sharded_bytes,
    stage_bytes,
    total_bytes,
)
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.stack import Habits, load_stack
from estimator.work.plan import RECOMPUTATIONS, Plan, Plans
from estimator.work.shape import Shape, load_shape
from tests.support.strategies import EFFICIENCIES, habits, laid, listed, one_layout

DEVICES = 48
STATE = ("weights", "master_weights", "optimizer", "gradients")
lengths = st.integers(1, 4096)
layouts = laid(DEVICES)
mixtures = laid(DEVICES, "mixtral")
Laid = tuple[Shape, Layout]


def with_ratio(ratio: float) -> Efficiencies:
    """Return efficiencies of a stack whose devices hold so much more than is counted."""
    return EFFICIENCIES._replace(memory_ratio=ratio)


def layers_of(shape: Shape, plan: Layout) -> list[float]:
    """Return the layers of each stage, one by one."""
    first, middle, last = (float(count) for count in plan.stage_layers(shape.num_layers))
    return [first, *[middle] * (int(plan.stages) - 2), last] if plan.stages > 1 else [first]


def stages_of(shape: Shape, seq_len: int, plan: Layout, habit: Habits) -> list[dict[str, float]]:
    """Return the bytes per device of each stage by purpose, one by one."""
    p = int(plan.stages)
    stages = [
        stage_bytes(
            shape, seq_len, plan, habit, first=i == 0, last=i == p - 1, layers=layers, held=float(plan.in_flight(i))
        )
        for i, layers in enumerate(layers_of(shape, plan))
    ]
    return [{name: float(part) for name, part in stage.items()} for stage in stages]


def alone(shape: Shape, seq_len: int, plan: Layout, habit: Habits, held: float = 1) -> dict[str, float]:
    """Return the bytes per device of a stage that is the whole model, by purpose."""
    parts = stage_bytes(shape, seq_len, plan, habit, first=True, last=True, layers=shape.num_layers, held=held)
    return {name: float(part) for name, part in parts.items()}


def test_zero_figure_1() -> None:
    """A model of 7.5 billion parameters on 64 ranks needs 120, 31.4, 16.6 and 1.9 GB (arXiv:1910.02054, Figure 1)."""
    stage = np.array([0, 1, 2, 3])
    optimizer, gradients, weights = (
        sharded_bytes(7.5e9, bytes_each, 64, stage >= at) for bytes_each, at in ((12, 1), (2, 2), (2, 3))
    )
    np.testing.assert_allclose((optimizer + gradients + weights) / 1e9, [120, 31.4, 16.6, 1.9], atol=0.05)


@given(layouts, lengths, habits, st.integers(2, 8))
def test_more_ranks_never_need_more_state(drawn: Laid, seq_len: int, habit: Habits, factor: int) -> None:
    """Sharding over more data-parallel ranks, or sharding more, never adds bytes of state to a rank."""
    shape, plan = drawn

    def state(changed: Layout) -> float:
        held = alone(shape, seq_len, changed, habit)
        return sum(held[name] for name in STATE)

    assert state(plan._replace(dp=factor * plan.dp)) <= state(plan)
    by_stage = [state(plan._replace(zero_stage=stage)) for stage in range(4)]
    assert by_stage == sorted(by_stage, reverse=True)


@given(layouts, lengths, habits)
def test_recomputation_keeps_less(drawn: Laid, seq_len: int, habit: Habits) -> None:
    """Full recomputation keeps no more activations than selective, and selective no more than none."""
    shape, plan = drawn
    kept = [
        alone(
            shape,
            seq_len,
            plan._replace(recomputation=RECOMPUTATIONS.index(name), recomputed_layers=0),
            habit,
            held=2,
        )["activations"]
        for name in ("none", "selective", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < kept[0]


@given(layouts, lengths, habits)
def test_recomputing_more_layers_keeps_less(drawn: Laid, seq_len: int, habit: Habits) -> None:
    """Each layer more that is recomputed keeps less, from no layer to all of them."""
    shape, plan = drawn
    none, full = (
        plan._replace(recomputation=RECOMPUTATIONS.index(name), recomputed_layers=0) for name in ("none", "full")
    )
    partly = [full._replace(recomputed_layers=n) for n in range(1, shape.num_layers)]
    kept = [alone(shape, seq_len, way, habit)["activations"] for way in (none, *partly, full)]
    assert all(fewer > more for fewer, more in pairwise(kept))
    as_all = full._replace(recomputed_layers=shape.num_layers)
    assert alone(shape, seq_len, as_all, habit) == alone(shape, seq_len, full, habit)


@given(layouts, lengths, habits)
def test_sequence_parallelism_never_needs_more(drawn: Laid, seq_len: int, habit: Habits) -> None:
    """Splitting what tensor-parallel ranks would all hold keeps fewer bytes, and as many with one such rank."""
    shape, plan = drawn
    split, whole = (stages_of(shape, seq_len, plan._replace(sequence_parallel=flag), habit) for flag in (True, False))
    for less, more in zip(split, whole, strict=True):
        assert all(less[name] <= more[name] * (1 + 1e-12) for name in less)
        assert (less["activations"] < more["activations"]) == (plan.tp > 1)


@given(layouts, lengths, habits, st.floats(0.5, 3))
def test_devices_together_hold_all_stages(drawn: Laid, seq_len: int, habit: Habits, memory_ratio: float) -> None:
    """The bytes of all devices are those of every stage, times the devices of a stage."""
    shape, plan = drawn
    held = sum(sum(stage.values()) for stage in stages_of(shape, seq_len, plan, habit))
    expected = memory_ratio * held * plan.dp * plan.cp * plan.tp
    assert total_bytes(shape, seq_len, plan, habit, with_ratio(memory_ratio)) == pytest.approx(expected, rel=1e-9)


@given(layouts, lengths, habits, st.floats(0.5, 3))
def test_the_peak_is_the_fullest_stage(drawn: Laid, seq_len: int, habit: Habits, memory_ratio: float) -> None:
    """No stage holds more than the peak, which the ratio multiplies; the correction is what the ratio adds."""
    shape, plan = drawn
    memory = plan_memory(shape, seq_len, plan, habit, with_ratio(memory_ratio))
    fullest = max(sum(stage.values()) for stage in stages_of(shape, seq_len, plan, habit))
    assert memory.peak_bytes == pytest.approx(memory_ratio * fullest, rel=1e-9)
    assert sum(memory.peak.values()) == pytest.approx(float(memory.peak_bytes), rel=1e-9)
    assert memory.peak["correction"] == pytest.approx((memory_ratio - 1) * fullest, rel=1e-9, abs=1e-9 * fullest)
    assert all(value >= 0 for name, value in memory.peak.items() if name != "correction")


@given(layouts, lengths, habits)
def test_all_ranks_hold_the_model(drawn: Laid, seq_len: int, habit: Habits) -> None:
    """The devices of a stage together hold its optimizer state once where it is sharded, else once per replica."""
    shape, plan = drawn
    whole = plan._replace(dp=1, tp=1, cp=1, ep=1, shard_within_node=False, offload_optimizer=False)
    spread = plan._replace(shard_within_node=False, offload_optimizer=False)
    held = alone(shape, seq_len, spread, habit)["optimizer"] * plan.replicas * plan.tp
    once = alone(shape, seq_len, whole, habit)["optimizer"]
    if plan.zero_stage >= 1:
        assert held == pytest.approx(once)
    elif plan.ep == 1:
        assert held == pytest.approx(once * plan.replicas)
    else:  # experts have 1/ep of the replicas
        assert once * plan.replicas / plan.ep <= held <= once * plan.replicas


@given(layouts | mixtures)
def test_all_ranks_hold_every_parameter(drawn: Laid) -> None:
    """One replica of each stage, its tensor- and expert-parallel ranks together, holds each parameter once.

    A tied embedding's matrix lies at both ends of a pipeline.
    """
    shape, plan = drawn
    p = int(plan.stages)
    ranks = [
        rank_parameters(shape, plan, layers=layers, first=i == 0, last=i == p - 1)
        for i, layers in enumerate(layers_of(shape, plan))
    ]
    held = plan.tp * sum(rank.dense + plan.ep * rank.experts for rank in ranks)
    copies = shape.vocab_size * shape.hidden_size if shape.tied_embeddings and p > 1 else 0
    assert held == pytest.approx(num_parameters(shape) + copies, rel=1e-12)
    sharded = sum(rank.bytes_of(1, plan._replace(shard_within_node=False), True) for rank in ranks)
    assert plan.tp * plan.replicas * sharded == pytest.approx(float(held), rel=1e-12)


@given(layouts | mixtures)
def test_the_fullest_rank_is_the_fullest(drawn: Laid) -> None:
    """No stage's rank holds more parameters, of experts or not, and some stage's holds as many."""
    shape, plan = drawn
    p, most = int(plan.stages), fullest_rank(shape, plan)
    ranks = [
        rank_parameters(shape, plan, layers=layers, first=i == 0, last=i == p - 1)
        for i, layers in enumerate(layers_of(shape, plan))
    ]
    assert most.dense == max(float(rank.dense) for rank in ranks)
    assert most.experts == max(float(rank.experts) for rank in ranks)


@given(mixtures, lengths, habits)
def test_expert_parallelism_splits_experts_alone(drawn: Laid, seq_len: int, habit: Habits) -> None:
    """Each of ep ranks holds 1/ep of the experts and all of the rest; where all is sharded it changes no state."""
    shape, plan = drawn
    split, whole = (
        rank_parameters(shape, way, layers=1, first=False, last=False) for way in (plan, plan._replace(ep=1))
    )
    assert split.dense == whole.dense
    assert split.experts * plan.ep == pytest.approx(float(whole.experts))
    spread = plan._replace(zero_stage=3, shard_within_node=False)
    states = [alone(shape, seq_len, way, habit)["optimizer"] for way in (spread, spread._replace(ep=1))]
    assert states[0] == pytest.approx(states[1])


@given(layouts | mixtures, lengths, habits)
def test_hybrid_sharding_lies_between(drawn: Laid, seq_len: int, habit: Habits) -> None:
    """Shards over the replicas of a node hold what shards over all do or more, and no more than no shards."""
    shape, plan = drawn
    over_all, over_node, none = (
        alone(shape, seq_len, plan._replace(shard_within_node=within, zero_stage=zero), habit)
        for within, zero in ((False, plan.zero_stage), (True, plan.zero_stage), (False, 0))
    )
    for name in STATE:
        assert over_all[name] <= over_node[name] * (1 + 1e-12)
        assert over_node[name] <= none[name] * (1 + 1e-12)


@given(layouts, lengths, habits, st.floats(0.5, 3))
def test_offloading_moves_the_optimizer(drawn: Laid, seq_len: int, habit: Habits, memory_ratio: float) -> None:
    """Offloaded, each stage lacks exactly its master weights and optimizer state, and all else stays."""
    shape, plan = drawn
    off, on = plan._replace(offload_optimizer=True), plan._replace(offload_optimizer=False)
    before, after = (stages_of(shape, seq_len, way, habit) for way in (on, off))
    for kept, left in zip(before, after, strict=True):
        assert left == kept | {"master_weights": 0, "optimizer": 0}
    peak_on, peak_off = (
        plan_memory(shape, seq_len, way, habit, with_ratio(memory_ratio)).peak_bytes for way in (on, off)
    )
    if plan.stages == 1:
        state = before[0]["master_weights"] + before[0]["optimizer"]
        assert peak_on - peak_off == pytest.approx(memory_ratio * state, rel=1e-6, abs=1e-9 * float(peak_on))
    assert peak_off <= peak_on


@given(layouts, lengths, habits)
def test_the_host_holds_what_was_offloaded(drawn: Laid, seq_len: int, habit: Habits) -> None:
    """A node's host has the master weights and the state of its devices, of the stage that holds most; else nothing."""
    shape, plan = drawn
    off, on = plan._replace(offload_optimizer=True), plan._replace(offload_optimizer=False)
    stages = stages_of(shape, seq_len, on, habit)
    most = max(stage["master_weights"] + stage["optimizer"] for stage in stages)
    assert host_bytes(shape, on, habit) == 0
    found = host_bytes(shape, off, habit)
    if shape.num_experts and plan.first_layers:  # the most experts and the most of the rest may lie in two stages
        assert found >= plan.devices_per_node * most * (1 - 1e-12)
    else:
        assert found == pytest.approx(plan.devices_per_node * most)


@given(listed(DEVICES), lengths, habits)
def test_a_row_is_its_plan_alone(drawn: tuple[Shape, list[Plan]], seq_len: int, habit: Habits) -> None:
    """Row i of a table equals plan i alone, by purpose and in all."""
    shape, plans = drawn
    many = layout(Plans.of(plans), DEVICES, 8)
    table, totals = (
        plan_memory(shape, seq_len, many, habit, with_ratio(1.1)),
        total_bytes(shape, seq_len, many, habit, with_ratio(1.1)),
    )
    for i, plan in enumerate(plans):
        one = layout(plan, DEVICES, 8)
        by_itself = plan_memory(shape, seq_len, one, habit, with_ratio(1.1))
        assert {name: float(column[i]) for name, column in table.peak.items()} == {
            name: float(column[0]) for name, column in by_itself.peak.items()
        }
        assert totals[i] == total_bytes(shape, seq_len, one, habit, with_ratio(1.1))[0]
        assert host_bytes(shape, many, habit)[i] == host_bytes(shape, one, habit)[0]


def test_gpipe_holds_the_logits_of_every_micro_batch() -> None:
    """Under GPipe the last stage waits with the logits of all micro-batches, under 1F1B with those of one."""
    shape, habit = load_shape("mistral-7b-v0.1"), load_stack("moai-24.2").habits
    one, all_of_them = (
        plan_memory(
            shape,
            2048,
            one_layout(Plan(num_micro_batches=8, tp=1, schedule=schedule), 32),
            habit,
            with_ratio(1.0),
        ).peak["logits"]
        for schedule in ("1f1b", "gpipe")
    )
    assert all_of_them == 8 * one > 0


def test_rows_and_tokens_beyond_64_bits_do_not_wrap() -> None:
    """A product of rows and tokens beyond 2**63 is a large number of bytes, not a negative one."""
    shape, habit = load_shape("mistral-7b-v0.1"), load_stack("moai-24.2").habits
    plan = one_layout(Plan(batch_per_device=2**31 - 1), 1)
    assert plan_memory(shape, 2**39, plan, habit, with_ratio(1.0)).peak["activations"] > 2.0**70
