"""Bytes that a device holds, by purpose and by pipeline stage."""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.counts import dense_parameters, end_parameters, expert_parameters, head_matmul
from estimator.formulas.layout import Layout, StageLayers
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.stack import Habits
from estimator.work.shape import Shape

SCORE_WORKSPACE_BYTES = 16
"""Bytes per score that the backward pass of one layer's materialized attention holds at once.

Gradient of the probabilities in 16 and in 32 bits, probabilities and gradient of the scores in 32 bits, and the latter
in 16: 2 + 4 + 4 + 4 + 2.
"""


def sharded_bytes(num_params: Num, bytes_each: Num, ranks: Num, is_sharded: Num) -> Array:
    """Bytes of one rank's part of something that each parameter has: all of it, or 1/ranks (ZeRO).

    (Rajbhandari et al. 2020, arXiv:1910.02054, Figure 1: 7.5 billion parameters, 12 bytes of optimizer state, 64 ranks)

    >>> sharded_bytes(7.5e9, 12, 64, np.array([False, True])) / 1e9
    array([90.     ,  1.40625])
    """
    return np.asarray(num_params * bytes_each / np.where(is_sharded, ranks, 1))


class RankParameters(NamedTuple):
    """Parameters of one rank: those that all its replicas hold, and those of the experts, which fewer ranks hold."""

    dense: Array
    experts: Array

    def bytes_of(self, bytes_each: Num, plan: Layout, is_sharded: Num) -> Array:
        """Bytes of something that each parameter has, sharded over the plan's ranks where it is."""
        dense = sharded_bytes(self.dense, bytes_each, plan.shard_ranks, is_sharded)
        return np.asarray(dense + sharded_bytes(self.experts, bytes_each, plan.expert_shard_ranks, is_sharded))

    def less(self, other: "RankParameters") -> "RankParameters":
        """Return the parameters without some of them."""
        return RankParameters(self.dense - other.dense, self.experts - other.experts)


def rank_parameters(
    shape: Shape, plan: Layout, *, layers: Num, first: Num, last: Num, trained: bool = False
) -> RankParameters:
    """Return the parameters, all or those trained, of one rank of a stage of so many layers."""
    of_layers = np.asarray(layers) * dense_parameters(shape, trained=trained)
    dense = (of_layers + end_parameters(shape, first, last, trained=trained)) / plan.tp
    return RankParameters(dense, np.asarray(layers) * expert_parameters(shape, trained=trained) / plan.tp / plan.ep)


def fullest_rank(shape: Shape, plan: Layout, *, trained: bool = False) -> RankParameters:
    """Return the parameters, all or those trained, of a rank of the stage that holds most."""
    alone, layers = np.asarray(plan.stages) == 1, plan.stage_layers(shape.num_layers)
    stages = (
        rank_parameters(shape, plan, layers=layers.first, first=True, last=alone, trained=trained),
        rank_parameters(shape, plan, layers=layers.middle, first=False, last=False, trained=trained),
        rank_parameters(shape, plan, layers=layers.last, first=alone, last=True, trained=trained),
    )
    has_middle = np.asarray(plan.stages) > 2
    return RankParameters(
        *(np.maximum(np.maximum(first, last), has_middle * middle) for first, middle, last in zip(*stages, strict=True))
    )


class Kept(NamedTuple):
    """Bytes per token that a layer keeps from its forward to its backward pass."""

    whole: float
    """That every tensor-parallel rank keeps, unless sequence parallelism splits it."""
    split: Num
    """That tensor parallelism splits."""


def kept_bytes_per_token(
    shape: Shape, seq_len: Num, *, scores: Num, fused: bool, act: int, fuses_activation: bool = False
) -> Kept:
    """Bytes per token that one layer keeps between its forward and its backward pass where none of it is repeated.

    Whole: per norm its input, its 32-bit copy and its output. Split: queries, keys, values; attention's output; the
    feed-forward block's one (plain) or three (gated) inner values beside its input, that of the last
    product included; where the activation is fused with its gate, one less of three.
    Materialized attention adds the keys and values repeated for every query head, and the probabilities (`scores`: 1,
    or 0 where they are dropped).
    """
    ffn = shape.ffn_size * max(shape.num_experts_per_token, 1)
    heads = act * (shape.q_size + 2 * shape.kv_size + shape.q_size)
    block = act * ((3 if fuses_activation else 4) if shape.gated_ffn else 2) * ffn
    repeated = 0 if fused else act * 2 * (shape.q_size - shape.kv_size)
    probabilities = 0.0 if fused else scores * np.asarray(act * shape.num_heads * seq_len, dtype=np.float64)
    return Kept(2.0 * (2 * act + 4) * shape.hidden_size, heads + block + repeated + probabilities)


def activation_bytes(
    shape: Shape, seq_len: Num, plan: Layout, habits: Habits, *, layers: Num, held: Num, gathered: Num = 0.0
) -> tuple[Array, Array]:
    """Bytes that a stage keeps for its backward pass, and what the layer in the backward pass adds by repeating.

    Full recomputation keeps the layer's input, of all layers or of as many as the plan says. `gathered` are bytes per
    token and unit of the hidden size that a layer keeps whole of inputs gathered from tensor-parallel ranks.
    """
    fused, act = habits.fuses_attention(shape), habits.activation_bytes
    drops = plan.recomputes("selective")
    kept, unrepeated = (
        kept_bytes_per_token(
            shape, seq_len, scores=scores, fused=fused, act=act, fuses_activation=habits.fuses_activation
        )
        for scores in (1.0 - drops, 1.0)
    )
    tokens, full = plan.tokens(seq_len), plan.recomputes("full")
    inputs = gathered * shape.hidden_size * (plan.sequence_ways > 1)
    layer = kept.whole / plan.sequence_ways + kept.split / plan.tp + inputs
    whole = unrepeated.whole / plan.sequence_ways + unrepeated.split / plan.tp + inputs
    small = act * shape.hidden_size / plan.sequence_ways
    share = np.where(full, plan.repeated_layers(layers) / np.maximum(layers, 1), 0.0)
    stored = tokens * layers * held * (layer + share * (small - layer))
    return stored, tokens * np.where(full, whole, whole - layer)


def stage_bytes(
    shape: Shape,
    seq_len: Num,
    plan: Layout,
    habits: Habits,
    *,
    first: Num,
    last: Num,
    layers: Num,
    held: Num,
    gathered: Num = 0.0,
) -> dict[str, Array]:
    """Bytes that each device of a pipeline stage allocates at its peak, by purpose.

    Args:
        shape: the model.
        seq_len: tokens per row.
        plan: degrees and counts, scalars or arrays.
        habits: what the stack keeps, in which precision.
        first: whether the stage holds the embedding.
        last: whether it holds the vocabulary projection.
        layers: layers of the stage.
        held: micro-batches in flight.
        gathered: bytes per token and unit of the hidden size of gathered inputs that each layer keeps.
    """
    zero, tokens = np.asarray(plan.zero_stage), plan.tokens(seq_len)
    shards_weights = (zero == 3) & ~habits.gathers_once(plan.stages)
    shards_gradients = (zero >= 2) & (habits.reduces_often(plan.stages) | (np.asarray(plan.micro_batches) == 1))
    params = rank_parameters(shape, plan, layers=layers, first=first, last=last)
    trained = rank_parameters(shape, plan, layers=layers, first=first, last=last, trained=True)
    layer = sum(rank_parameters(shape, plan, layers=1, first=False, last=False))
    trained_layer = sum(rank_parameters(shape, plan, layers=1, first=False, last=False, trained=True))
    buffered = layer * habits.weight_bytes * shards_weights + trained_layer * habits.gradient_bytes * (zero >= 2)
    in_layers = rank_parameters(shape, plan, layers=layers, first=False, last=False)
    weights = trained.bytes_of(habits.weight_bytes, plan, shards_weights)
    if shape.lora_rank:  # trained are adapters alone; the ends are frozen, but not quantized
        weights = weights + in_layers.less(trained).bytes_of(habits.bytes_of_frozen, plan, shards_weights)
        weights = weights + params.less(in_layers).bytes_of(habits.weight_bytes, plan, shards_weights)
    on_device = 1.0 - np.asarray(plan.offload_optimizer)
    activations, recomputed = activation_bytes(
        shape, seq_len, plan, habits, layers=layers, held=held, gathered=gathered
    )
    scores = 0.0 if habits.fuses_attention(shape) else shape.num_heads * float(seq_len) * tokens / plan.tp
    return {
        "weights": weights,
        "master_weights": on_device * trained.bytes_of(habits.master_bytes, plan, zero >= 1),
        "optimizer": on_device * trained.bytes_of(habits.optimizer_bytes, plan, zero >= 1),
        "gradients": trained.bytes_of(habits.gradient_bytes, plan, shards_gradients),
        "communication_buffers": (2 * buffered + sum(trained) * habits.reduction_bytes) * (plan.replicas > 1),
        "activations": activations,
        "recomputed_layer": recomputed,
        "attention_workspace": np.asarray(SCORE_WORKSPACE_BYTES * scores, dtype=np.float64),
        "logits": np.asarray(last) * held * tokens / plan.tp * head_matmul(shape).out_size * float(habits.logit_bytes),
    }


class Memory(NamedTuple):
    """Memory of a plan's stages, in bytes per device, by purpose, before the stack's corrections."""

    first: dict[str, Array]
    second: dict[str, Array]
    """The stage that holds most of those between; all 0 where there are none."""
    last: dict[str, Array]
    ratio: Num
    """Bytes that devices hold, over the bytes counted."""
    base_bytes: Num
    """Bytes that each device holds beside."""

    @property
    def peak_bytes(self) -> Array:
        """Bytes of the fullest device."""
        fullest = np.maximum(_sum(self.first), np.maximum(_sum(self.second), _sum(self.last)))
        return np.asarray(self.ratio * fullest + self.base_bytes)

    @property
    def first_bytes(self) -> Array:
        """Bytes of a device of the first stage."""
        return np.asarray(self.ratio * _sum(self.first) + self.base_bytes)

    @property
    def peak(self) -> dict[str, Array]:
        """Bytes of the fullest device, by purpose; `correction` is what ratio and base add."""
        first, second, last = _sum(self.first), _sum(self.second), _sum(self.last)
        is_first, is_second = (first >= last) & (first >= second), second >= last
        peak = {
            name: np.where(is_first, self.first[name], np.where(is_second, self.second[name], self.last[name]))
            for name in self.first
        }
        peak["correction"] = np.asarray((self.ratio - 1.0) * sum(peak.values()) + self.base_bytes)
        return peak


def workspace_bytes(shape: Shape, seq_len: Num, plan: Layout, efficiencies: Efficiencies, held: Num) -> Array:
    """Bytes that every tensor-parallel rank holds whole: of the layer in work, and of each micro-batch in flight."""
    each = efficiencies.workspace_bytes + efficiencies.flight_bytes * (plan.sequence_ways > 1) * np.asarray(held)
    return np.asarray(plan.tokens(seq_len) * shape.hidden_size * each)


def _sum(parts: dict[str, Array]) -> Array:
    return np.asarray(sum(parts.values()))


def plan_memory(shape: Shape, seq_len: Num, plan: Layout, habits: Habits, efficiencies: Efficiencies) -> Memory:
    """Memory of the stages that can be the fullest.

    The first stage holds the embedding and the most micro-batches in flight, the last one the logits; of those between,
    equal in layers, the second holds the most.

    Args:
        shape: the model.
        seq_len: tokens per row.
        plan: degrees and counts.
        habits: what the stack keeps.
        efficiencies: what devices were measured to hold beyond the bytes counted here.
    """
    gathered = efficiencies.gathered_bytes
    stages, alone, layers = np.asarray(plan.stages), np.asarray(plan.stages) == 1, plan.stage_layers(shape.num_layers)

    def stage(number: Num, count: Array, first: Num, last: Num) -> dict[str, Array]:
        held = plan.in_flight(number)
        ends = {"first": first, "last": last}
        found = stage_bytes(shape, seq_len, plan, habits, **ends, layers=count, held=held, gathered=gathered)
        return {**found, "workspace": workspace_bytes(shape, seq_len, plan, efficiencies, held)}

    between = stages > 2
    return Memory(
        first=stage(0, layers.first, True, alone),
        second={name: between * part for name, part in stage(1, layers.middle, False, False).items()},
        last=stage(stages - 1, layers.last, alone, True),
        ratio=efficiencies.memory_ratio,
        base_bytes=efficiencies.base_bytes,
    )


def total_bytes(shape: Shape, seq_len: Num, plan: Layout, habits: Habits, efficiencies: Efficiencies) -> Array:
    """Bytes of all devices together.

    They are linear in the micro-batches in flight, so that the mean stands for the stages between.
    """
    layers, alone = plan.stage_layers(shape.num_layers), np.asarray(plan.stages) == 1

    def stage(held: Num, count: Array, first: Num, last: Num) -> Array:
        ends = {"first": first, "last": last}
        gathered = efficiencies.gathered_bytes
        counted = _sum(stage_bytes(shape, seq_len, plan, habits, **ends, layers=count, held=held, gathered=gathered))
        workspace = workspace_bytes(shape, seq_len, plan, efficiencies, held)
        return efficiencies.memory_ratio * (counted + workspace) + efficiencies.base_bytes

    pipeline = plan.over_stages(
        StageLayers(
            stage(plan.in_flight(0), layers.first, True, alone),
            stage(plan.mean_in_flight_between(), layers.middle, False, False),
            stage(plan.in_flight(np.asarray(plan.stages) - 1), layers.last, alone, True),
        )
    )
    return np.asarray(pipeline * plan.replicas * plan.tp)


def host_bytes(shape: Shape, plan: Layout, habits: Habits) -> Array:
    """Bytes that the host of a node holds for the optimizers of its devices; 0 where they are not offloaded."""
    state = fullest_rank(shape, plan, trained=True).bytes_of(
        habits.master_bytes + habits.optimizer_bytes, plan, np.asarray(plan.zero_stage) >= 1
    )
    return np.asarray(plan.offload_optimizer) * state * plan.devices_per_node
