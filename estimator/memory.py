"""Bytes that a device holds, by purpose and by pipeline stage."""

from typing import NamedTuple

import numpy as np

from estimator.counts import Array, Num, head_matmul, layer_parameters, stage_parameters
from estimator.plan import RECOMPUTATIONS, SCHEDULES, Plan, Plans
from estimator.shape import Shape
from estimator.stack import Habits

SCORE_WORKSPACE_BYTES = 16
"""Bytes per score that the backward pass of one layer's materialized attention holds at once.

Gradient of the probabilities in 16 and in 32 bits, probabilities and gradient of the scores in 32 bits, and the latter
in 16: 2 + 4 + 4 + 4 + 2.
"""


class Layout(NamedTuple):
    """What memory depends on in a plan, as numbers or arrays."""

    stages: Num
    micro_batches: Num
    rows: Num
    dp: Num
    tp: Num
    recomputation: Num
    """Index into `RECOMPUTATIONS`."""
    zero_stage: Num
    gpipe: Num
    """1 where all micro-batches go forward before any goes backward."""

    @property
    def repeats_layer(self) -> Array:
        """Whether the backward pass repeats a whole layer."""
        return np.asarray(np.equal(self.recomputation, RECOMPUTATIONS.index("full")))

    def repeats_attention(self, *, fused: bool) -> Array:
        """Whether it repeats attention: with the layer, or alone where there are scores to drop."""
        selective = np.equal(self.recomputation, RECOMPUTATIONS.index("selective"))
        return np.asarray(self.repeats_layer | ((not fused) & selective))


def layout(plans: Plan | Plans, num_devices: int) -> Layout:
    """Return the numbers of one plan, or the arrays of many."""
    many = Plans.of([plans]) if isinstance(plans, Plan) else plans
    return Layout(
        many.num_stages,
        many.num_micro_batches,
        many.batch_per_device,
        np.maximum(many.data_parallel(num_devices), 1),
        many.tp,
        many.recomputation,
        many.zero_stage,
        many.schedule == SCHEDULES.index("gpipe"),
    )


def in_flight(stage: Num, stages: Num, micro_batches: Num, gpipe: Num) -> Array:
    """Micro-batches whose activations a stage holds at most.

    1F1B: min(p - i, m) on stage i of p (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1); GPipe: m.

    >>> [int(in_flight(i, 4, 8, gpipe=False)) for i in range(4)]
    [4, 3, 2, 1]
    """
    return np.where(gpipe, micro_batches, np.minimum(np.asarray(stages) - stage, micro_batches))


def sharded_bytes(num_params: Num, bytes_each: Num, ranks: Num, is_sharded: Num) -> Array:
    """Bytes of one rank's part of something that each parameter has: all of it, or 1/ranks (ZeRO).

    (Rajbhandari et al. 2020, arXiv:1910.02054, Figure 1: 7.5 billion parameters, 12 bytes of optimizer state, 64 ranks)

    >>> sharded_bytes(7.5e9, 12, 64, np.array([False, True])) / 1e9
    array([90.     ,  1.40625])
    """
    return np.asarray(num_params * bytes_each / np.where(is_sharded, ranks, 1))


def kept_bytes_per_token(shape: Shape, seq_len: Num, recomputation: Num, *, fused: bool, act: int) -> Array:
    """Bytes per token that one layer keeps between its forward and its backward pass.

    Without recomputation: per norm its input, its 32-bit copy and its output; queries, keys, values; attention's
    output; the feed-forward block's one (plain) or three (gated) inner values beside its input, that of the last
    product included. Materialized attention adds the keys and values repeated for every query head, and the
    probabilities, which selective recomputation drops. Full recomputation keeps the layer's input.
    """
    hidden, ffn = shape.hidden_size, shape.ffn_size * max(shape.num_experts_per_token, 1)
    norms = 2 * (2 * act + 4) * hidden
    heads = act * (shape.q_size + 2 * shape.kv_size + shape.q_size)
    block = act * (4 if shape.gated_ffn else 2) * ffn
    repeated = 0 if fused else act * 2 * (shape.q_size - shape.kv_size)
    scores = 0.0 if fused else act * shape.num_heads * np.asarray(seq_len, dtype=np.float64)
    whole = norms + heads + block + repeated
    return np.select(
        [np.asarray(recomputation) == RECOMPUTATIONS.index(name) for name in ("none", "selective")],
        [whole + scores, whole + 0.0 * scores],
        float(act * hidden),
    )


def mean_in_flight_between(stages: Num, micro_batches: Num, gpipe: Num) -> Array:
    """Mean of `in_flight` over the stages between the first and the last; 0 where there are none.

    sum over k = 2 .. p - 1 of min(k, m) = c (c + 1) / 2 - 1 + (p - 1 - c) m, c = min(m, p - 1).

    >>> float(mean_in_flight_between(4, 8, gpipe=False)), float(mean_in_flight_between(8, 3, gpipe=False))
    (2.5, 2.8333333333333335)
    """
    p, m = np.asarray(stages, dtype=np.float64), np.asarray(micro_batches, dtype=np.float64)
    c = np.minimum(m, p - 1)
    total = np.where(gpipe, (p - 2) * m, c * (c + 1) / 2 - 1 + (p - 1 - c) * m)
    return np.where(p > 2, total / np.maximum(p - 2, 1), 0.0)


def stage_bytes(
    shape: Shape, seq_len: Num, plan: Layout, habits: Habits, *, first: Num, last: Num, held: Num
) -> dict[str, Array]:
    """Bytes that each device of a pipeline stage allocates at its peak, by purpose.

    Args:
        shape: the model.
        seq_len: tokens per row.
        plan: degrees and counts, scalars or arrays.
        habits: what the stack keeps, in which precision.
        first: whether the stage holds the embedding.
        last: whether it holds the vocabulary projection.
        held: micro-batches in flight.
    """
    layers = shape.num_layers / np.asarray(plan.stages)
    fused = habits.fuses_attention(shape)
    tokens = np.asarray(plan.rows, dtype=np.float64) * seq_len / plan.tp
    params = stage_parameters(shape, layers, first, last) / plan.tp
    layer_params = layer_parameters(shape) / np.asarray(plan.tp)
    zero = np.asarray(plan.zero_stage)
    shards_weights = (zero == 3) & (not habits.keeps_weights_gathered)
    shards_gradients = (zero >= 2) & (habits.reduces_every_micro_batch | (np.asarray(plan.micro_batches) == 1))
    act = habits.activation_bytes
    kept = kept_bytes_per_token(shape, seq_len, plan.recomputation, fused=fused, act=act)
    whole = kept_bytes_per_token(shape, seq_len, 0, fused=fused, act=act)
    scores = 0 if fused else shape.num_heads * np.asarray(seq_len, dtype=np.float64) * tokens
    return {
        "weights": sharded_bytes(params, habits.weight_bytes, plan.dp, shards_weights),
        "master_weights": sharded_bytes(params, habits.master_bytes, plan.dp, zero >= 1),
        "optimizer": sharded_bytes(params, habits.optimizer_bytes, plan.dp, zero >= 1),
        "gradients": sharded_bytes(params, habits.gradient_bytes, plan.dp, shards_gradients),
        "communication_buffers": (
            2 * layer_params * (habits.gradient_bytes * (zero >= 2) + habits.weight_bytes * shards_weights)
        )
        * (np.asarray(plan.dp) > 1),
        "activations": tokens * layers * held * kept,
        "recomputed_layer": tokens * np.where(plan.repeats_layer, whole, whole - kept),
        "attention_workspace": np.asarray(SCORE_WORKSPACE_BYTES * scores, dtype=np.float64),
        "logits": np.asarray(last) * held * tokens * head_matmul(shape).out_size * float(habits.logit_bytes),
    }


class Memory(NamedTuple):
    """Memory of a plan: its fullest device by purpose, and all devices together."""

    peak: dict[str, Array]
    """Bytes per device on the fullest stage, by purpose."""
    total_bytes: Array
    """Bytes of all devices."""

    @property
    def peak_bytes(self) -> Array:
        """Bytes of the fullest device."""
        return np.asarray(sum(self.peak.values()))


def plan_memory(shape: Shape, seq_len: Num, plan: Layout, habits: Habits, memory_ratio: Num) -> Memory:
    """Memory of the fullest device and of all devices.

    The first stage holds the embedding and the most micro-batches in flight, the last one the logits; those between
    hold less than the first, and bytes are linear in the micro-batches in flight, so that their mean stands for all.

    Args:
        shape: the model.
        seq_len: tokens per row.
        plan: degrees and counts.
        habits: what the stack keeps.
        memory_ratio: bytes that devices were measured to hold, over the bytes counted here.
    """
    stages, gpipe = np.asarray(plan.stages), plan.gpipe
    alone = stages == 1
    held_first = in_flight(0, stages, plan.micro_batches, gpipe)
    held_last = in_flight(stages - 1, stages, plan.micro_batches, gpipe)
    held_between = mean_in_flight_between(stages, plan.micro_batches, gpipe)
    first = stage_bytes(shape, seq_len, plan, habits, first=True, last=alone, held=held_first)
    last = stage_bytes(shape, seq_len, plan, habits, first=alone, last=True, held=held_last)
    between = stage_bytes(shape, seq_len, plan, habits, first=False, last=False, held=held_between)
    first_bytes, last_bytes, between_bytes = (sum(stage.values()) for stage in (first, last, between))
    peak = {name: np.where(first_bytes >= last_bytes, first[name], last[name]) for name in first}
    peak["correction"] = np.asarray((memory_ratio - 1.0) * sum(peak.values()))
    pipeline = np.where(alone, first_bytes, first_bytes + last_bytes + (stages - 2) * between_bytes)
    return Memory(peak, np.asarray(memory_ratio * pipeline * plan.dp * plan.tp))
