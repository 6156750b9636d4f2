from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.counts import num_parameters
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import Layout, layout
from estimator.formulas.memory import StageBytes, host_bytes, plan_memory, stage_bytes, total_bytes
from estimator.formulas.stages import Stage, fullest_rank, one_layer, rank_parameters, sharded_bytes
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.habits import Habits
from estimator.stack.stack import load_stack
from estimator.work.plan import RECOMPUTATIONS, Plan, Plans
from estimator.work.shape import Shape, load_shape
from tests.support.strategies import (
    EFFICIENCIES,
    habits,
    laid,
    listed,
    machines_of,
    one_layout,
    step_inputs_of,
    with_plan,
)

DEVICES = 48
STATE = ("weights", "master_weights", "optimizer", "gradients")
steps = step_inputs_of(DEVICES)
mixtures = step_inputs_of(DEVICES, "mixtral")
layouts = laid(DEVICES) | laid(DEVICES, "mixtral")
MACHINE = machines_of(DEVICES)[0]


def with_ratio(ratio: float) -> Efficiencies:
    """Return efficiencies of a stack whose devices hold so much more than is counted."""
    return EFFICIENCIES._replace(memory_ratio=ratio)


def stages(shape: Shape, plan: Layout) -> list[Stage]:
    """Return the stages of a pipeline, one by one."""
    first, middle, last = zip(*([float(n) for n in kind.layers] for kind in plan.kind_layers(shape)), strict=True)
    p = int(plan.num_stages)
    layers = [first, *[middle] * (p - 2), last] if p > 1 else [first]
    return [Stage(count, i == 0, i == p - 1, float(plan.in_flight(i))) for i, count in enumerate(layers)]


def held(inputs: StepInputs, stage: Stage) -> dict[str, float]:
    """Return the bytes per device of a stage by purpose."""
    return {name: float(part) for name, part in stage_bytes(inputs, EFFICIENCIES, stage).parts.items()}


def counted(inputs: StepInputs) -> list[StageBytes]:
    """Return what is counted of each stage, one by one."""
    return [stage_bytes(inputs, EFFICIENCIES, stage) for stage in stages(inputs.shape, inputs.plan)]


def stages_of(inputs: StepInputs) -> list[dict[str, float]]:
    """Return the bytes per device of each stage by purpose, one by one."""
    return [held(inputs, stage) for stage in stages(inputs.shape, inputs.plan)]


def alone(inputs: StepInputs, num_held: float = 1) -> dict[str, float]:
    """Return the bytes per device of a stage that is the whole model, by purpose."""
    return held(
        inputs,
        Stage(tuple(kind.num_layers for kind in inputs.shape.kinds), has_embedding=True, has_head=True, held=num_held),
    )


def test_zero_figure_1() -> None:
    """A model of 7.5 billion parameters on 64 ranks needs 120, 31.4, 16.6 and 1.9 GB (arXiv:1910.02054, Figure 1)."""
    stage = np.array([0, 1, 2, 3])
    optimizer, gradients, weights = (
        sharded_bytes(7.5e9, bytes_each, 64, stage >= at) for bytes_each, at in ((12, 1), (2, 2), (2, 3))
    )
    np.testing.assert_allclose((optimizer + gradients + weights) / 1e9, [120, 31.4, 16.6, 1.9], atol=0.05)


@given(steps, st.integers(2, 8))
def test_more_ranks_never_need_more_state(inputs: StepInputs, factor: int) -> None:
    """Sharding over more data-parallel ranks, or sharding more, never adds bytes of state to a rank."""

    def state(**changes: object) -> float:
        found = alone(with_plan(inputs, **changes))
        return sum(found[name] for name in STATE)

    assert state(dp=factor * inputs.plan.dp) <= state()
    by_stage = [state(zero_stage=stage) for stage in range(4)]
    assert by_stage == sorted(by_stage, reverse=True)


@given(steps)
def test_recomputation_keeps_less(inputs: StepInputs) -> None:
    """Full recomputation keeps no more activations than selective, and selective no more than none."""
    kept = [
        alone(with_plan(inputs, recomputation=i, recomputed_layers=0), 2)["activations"]
        for i in range(len(RECOMPUTATIONS))
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < kept[0]


@given(steps)
def test_recomputing_more_layers_keeps_less(inputs: StepInputs) -> None:
    """Each layer more that is recomputed keeps less, from no layer to all of them."""
    none, full = (
        with_plan(inputs, recomputation=RECOMPUTATIONS.index(name), recomputed_layers=0) for name in ("none", "full")
    )
    partly = [with_plan(full, recomputed_layers=n) for n in range(1, inputs.shape.num_layers)]
    kept = [alone(way)["activations"] for way in (none, *partly, full)]
    assert all(fewer > more for fewer, more in pairwise(kept))
    as_all = with_plan(full, recomputed_layers=inputs.shape.num_layers)
    assert alone(as_all) == alone(full)


@given(steps)
def test_sequence_parallelism_never_needs_more(inputs: StepInputs) -> None:
    """Splitting what tensor-parallel ranks would all hold keeps fewer bytes, and as many with one such rank."""
    split, whole = (stages_of(with_plan(inputs, sequence_parallel=flag)) for flag in (True, False))
    for less, more in zip(split, whole, strict=True):
        assert sum(less.values()) <= sum(more.values()) * (1 + 1e-12)
        assert (sum(less.values()) < sum(more.values())) == (inputs.plan.tp > 1)


@given(steps, st.floats(0.5, 3))
def test_devices_together_hold_all_stages(inputs: StepInputs, memory_ratio: float) -> None:
    """The bytes of all devices are those of every stage, its work times the ratio, times the devices of a stage."""
    plan, whole = inputs.plan, sum(stage.of_state + memory_ratio * stage.of_work for stage in counted(inputs))
    expected = whole * plan.dp * plan.cp * plan.tp
    assert total_bytes(inputs, with_ratio(memory_ratio)) == pytest.approx(expected, rel=1e-9)


@given(steps, st.floats(0.5, 3))
def test_the_peak_is_the_fullest_stage(inputs: StepInputs, memory_ratio: float) -> None:
    """No stage holds more than the peak; the ratio multiplies its work alone, and none holds less than is certain."""
    memory = plan_memory(inputs, with_ratio(memory_ratio))
    fullest = max(max(stage.of_state + memory_ratio * stage.of_work, stage.certain) for stage in counted(inputs))
    assert memory.peak_bytes == pytest.approx(fullest, rel=1e-9)
    assert sum(memory.peak.values()) == pytest.approx(float(memory.peak_bytes), rel=1e-9)
    assert all(value >= 0 for name, value in memory.peak.items() if name != "correction")


@given(steps)
def test_all_ranks_hold_the_model(inputs: StepInputs) -> None:
    """The devices of a stage together hold its optimizer state once where it is sharded, else once per replica."""
    plan = inputs.plan
    spread = with_plan(inputs, shard_within_node=False, offload_optimizer=False)
    together = alone(spread)["optimizer"] * plan.replicas * plan.tp
    once = alone(with_plan(spread, dp=1, tp=1, cp=1, ep=1))["optimizer"]
    if plan.zero_stage >= 1:
        assert together == pytest.approx(once)
    elif plan.ep == 1:
        assert together == pytest.approx(once * plan.replicas)
    else:  # experts have 1/ep of the replicas
        assert once * plan.replicas / plan.ep <= together <= once * plan.replicas


@given(layouts)
def test_all_ranks_hold_every_parameter(drawn: tuple[Shape, Layout]) -> None:
    """One replica of each stage, its tensor- and expert-parallel ranks together, holds each parameter once.

    A tied embedding's matrix lies at both ends of a pipeline.
    """
    shape, plan = drawn
    ranks = [rank_parameters(shape, plan, stage) for stage in stages(shape, plan)]
    whole = plan.tp * sum(rank.dense + plan.ep * rank.experts for rank in ranks)
    copies = shape.vocab_size * shape.hidden_size if shape.tied_embeddings and plan.num_stages > 1 else 0
    assert whole == pytest.approx(num_parameters(shape) + copies, rel=1e-12)
    sharded = sum(rank.bytes_of(1, replace(plan, shard_within_node=False), True) for rank in ranks)
    assert plan.tp * plan.replicas * sharded == pytest.approx(float(whole), rel=1e-12)


@given(layouts)
def test_the_fullest_rank_is_the_fullest(drawn: tuple[Shape, Layout]) -> None:
    """No stage's rank holds more parameters, of experts or not, and some stage's holds as many."""
    shape, plan = drawn
    most, ranks = fullest_rank(shape, plan), [rank_parameters(shape, plan, stage) for stage in stages(shape, plan)]
    assert most.dense == max(float(rank.dense) for rank in ranks)
    assert most.experts == max(float(rank.experts) for rank in ranks)


@given(mixtures)
def test_expert_parallelism_splits_experts_alone(inputs: StepInputs) -> None:
    """Each of ep ranks holds 1/ep of the experts and all of the rest; where all is sharded it changes no state."""
    shape, plan = inputs.shape, inputs.plan
    split, whole = (rank_parameters(shape, way, one_layer(shape, 0)) for way in (plan, replace(plan, ep=1)))
    assert split.dense == whole.dense
    assert split.experts * plan.ep == pytest.approx(float(whole.experts))
    spread = with_plan(inputs, zero_stage=3, shard_within_node=False)
    states = [alone(way)["optimizer"] for way in (spread, with_plan(spread, ep=1))]
    assert states[0] == pytest.approx(states[1])


@given(steps | mixtures)
def test_hybrid_sharding_lies_between(inputs: StepInputs) -> None:
    """Shards over the replicas of a node hold what shards over all do or more, and no more than no shards."""
    zero_stage = inputs.plan.zero_stage
    over_all, over_node, none = (
        alone(with_plan(inputs, shard_within_node=within, zero_stage=zero))
        for within, zero in ((False, zero_stage), (True, zero_stage), (False, 0))
    )
    for name in STATE:
        assert over_all[name] <= over_node[name] * (1 + 1e-12)
        assert over_node[name] <= none[name] * (1 + 1e-12)


@given(steps, st.floats(1, 3))
def test_offloading_moves_the_optimizer(inputs: StepInputs, memory_ratio: float) -> None:
    """Offloaded, each stage lacks exactly its master weights and optimizer state, and all else stays."""
    off, on = (with_plan(inputs, offload_optimizer=flag) for flag in (True, False))
    before, after = (stages_of(way) for way in (on, off))
    for kept, left in zip(before, after, strict=True):
        assert left == kept | {"master_weights": 0, "optimizer": 0}
    peak_on, peak_off = (plan_memory(way, with_ratio(memory_ratio)).peak_bytes for way in (on, off))
    if inputs.plan.num_stages == 1:
        state = before[0]["master_weights"] + before[0]["optimizer"]
        assert peak_on - peak_off == pytest.approx(state, rel=1e-6, abs=1e-9 * float(peak_on))
    assert peak_off <= peak_on


@given(steps)
def test_the_host_holds_what_was_offloaded(inputs: StepInputs) -> None:
    """A node's host has the master weights and the state of its devices, of the stage that holds most; else nothing."""
    off, on = (with_plan(inputs, offload_optimizer=flag) for flag in (True, False))
    most = max(stage["master_weights"] + stage["optimizer"] for stage in stages_of(on))
    assert host_bytes(on, with_ratio(1.0)) == 0
    found, plan = host_bytes(off, with_ratio(1.0)), inputs.plan
    if inputs.shape.num_experts and plan.first_layers:  # most experts and most of the rest may lie in two stages
        assert found >= plan.devices_per_node * most * (1 - 1e-12)
    else:
        assert found == pytest.approx(plan.devices_per_node * most)


@given(listed(DEVICES), st.integers(1, 4096), habits)
def test_a_row_is_its_plan_alone(drawn: tuple[Shape, list[Plan]], seq_len: int, habit: Habits) -> None:
    """Row i of a table equals plan i alone, by purpose and in all."""
    shape, plans = drawn

    def inputs_of(plans: Plan | Plans) -> StepInputs:
        return StepInputs(shape, seq_len, layout(plans, DEVICES, 8), MACHINE, habit)

    many = inputs_of(Plans.of(plans))
    table, totals = plan_memory(many, with_ratio(1.1)), total_bytes(many, with_ratio(1.1))
    for i, one in enumerate(map(inputs_of, plans)):
        by_itself = plan_memory(one, with_ratio(1.1))
        assert {name: float(column[i]) for name, column in table.peak.items()} == {
            name: float(column[0]) for name, column in by_itself.peak.items()
        }
        assert totals[i] == total_bytes(one, with_ratio(1.1))[0]
        assert host_bytes(many, with_ratio(1.0))[i] == host_bytes(one, with_ratio(1.0))[0]


def mistral(plan: Plan, seq_len: int, num_devices: int) -> StepInputs:
    """Return what a step of Mistral 7B under the platform's stack is predicted from."""
    habit = load_stack("moai-24.2").habits
    return StepInputs(load_shape("mistral-7b-v0.1"), seq_len, one_layout(plan, num_devices), MACHINE, habit)


def test_gpipe_holds_the_logits_of_every_micro_batch() -> None:
    """Under GPipe the last of two stages waits with the logits of all micro-batches; one stage waits with none."""

    def logits(num_stages: int, micro_batches: int) -> float:
        plan = Plan(num_stages=num_stages, num_micro_batches=micro_batches, batch_per_device=1, schedule="gpipe")
        return stages_of(mistral(plan, 2048, 32))[-1]["logits"]

    assert logits(2, 8) == 8 * logits(2, 1) > 0
    assert logits(1, 8) == logits(1, 1)


def test_rows_and_tokens_beyond_64_bits_do_not_wrap() -> None:
    """A product of rows and tokens beyond 2**63 is a large number of bytes, not a negative one."""
    huge = mistral(Plan(batch_per_device=2**31 - 1), 2**39, 1)
    assert plan_memory(huge, with_ratio(1.0)).peak["activations"] > 2.0**70
