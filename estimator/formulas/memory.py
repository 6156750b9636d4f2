"""Bytes that a device holds, by purpose and by pipeline stage."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num, total
from estimator.formulas import fully_sharded
from estimator.formulas.counts import dense_parameters, end_parameters, expert_parameters, head_matmul
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import Layout, StageLayers
from estimator.stack.efficiencies import Efficiencies
from estimator.work.shape import Shape


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


class Stage(NamedTuple):
    """A stage of a pipeline."""

    layers: tuple[Num, ...]
    """Of each kind of the model."""
    has_embedding: Num = False
    has_head: Num = False
    """It holds the vocabulary projection."""
    held: Num = 1.0
    """Micro-batches in flight."""

    @property
    def num_layers(self) -> Num:
        """Layers of all kinds."""
        return sum(self.layers[1:], self.layers[0])


def one_layer(shape: Shape, kind: int) -> Stage:
    """Return a stage of one layer of a kind, without ends."""
    return Stage(tuple(float(i == kind) for i in range(len(shape.kinds))))


def stages_of(shape: Shape, plan: Layout) -> tuple[Stage, Stage, Stage]:
    """Return the first stage, one between, and the last; where one stage is all, the first and the last are that."""
    alone = plan.num_stages == 1
    first, middle, last = zip(*(kind.layers for kind in plan.kind_layers(shape)), strict=True)
    return (
        Stage(first, has_embedding=True, has_head=alone),
        Stage(middle),
        Stage(last, has_embedding=alone, has_head=True),
    )


def stage_at(inputs: StepInputs, number: int) -> Stage:
    """Return a stage of one plan's pipeline by its place, with as many micro-batches in flight as it has at most."""
    first, middle, last = stages_of(inputs.shape, inputs.plan)
    is_last = number == int(inputs.plan.num_stages.item()) - 1
    stage = first if number == 0 else last if is_last else middle
    return stage._replace(held=inputs.plan.in_flight(number))


def rank_parameters(shape: Shape, plan: Layout, stage: Stage, *, trained: bool = False) -> RankParameters:
    """Return the parameters, all or those trained, of one rank of a stage."""
    layers = [(kind, np.asarray(count)) for kind, count in zip(shape.kinds, stage.layers, strict=True)]
    of_layers = sum(count * dense_parameters(kind, trained=trained) for kind, count in layers)
    dense = (of_layers + end_parameters(shape, stage.has_embedding, stage.has_head, trained=trained)) / plan.tp
    experts = sum(count * expert_parameters(kind, trained=trained) for kind, count in layers)
    return RankParameters(np.asarray(dense), np.asarray(experts / plan.tp / plan.ep))


def largest_layer(shape: Shape, plan: Layout, *, trained: bool = False) -> Array:
    """Return the parameters, all or those trained, of one rank in the layer that has most of them."""
    kinds = range(len(shape.kinds))
    each = (np.asarray(sum(rank_parameters(shape, plan, one_layer(shape, i), trained=trained))) for i in kinds)
    return functools.reduce(np.maximum, each)


def fullest_rank(shape: Shape, plan: Layout, *, trained: bool = False) -> RankParameters:
    """Return the parameters, all or those trained, of a rank of the stage that holds most."""
    ranks = (rank_parameters(shape, plan, stage, trained=trained) for stage in stages_of(shape, plan))
    has_middle = plan.num_stages > 2
    return RankParameters(
        *(np.maximum(np.maximum(first, last), has_middle * middle) for first, middle, last in zip(*ranks, strict=True))
    )


WIDE_LOGITS = 2**24
"""Logits that a loss in chunks has 32-bit copies of at once where nothing is compiled: 64 MiB a copy, three of them
(trainer/parallel/loss.py).
"""

SPLIT_LOGIT_BYTES = 16.0
"""Per logit of a rank, of a loss whose vocabulary ranks share: four in 32 bits at once (torch's `loss_parallel`)."""


class Kept(NamedTuple):
    """Bytes per token that a layer keeps from its forward to its backward pass."""

    whole: float
    """That every tensor-parallel rank keeps, unless sequence parallelism splits it."""
    split: Num
    """That tensor parallelism splits."""


def kept_bytes_per_token(inputs: StepInputs, scores: Num = 1.0) -> Kept:
    """Bytes per token that one layer keeps between its forward and its backward pass where none of it is repeated.

    Whole: per norm its input, its copy in 32 bits where one is made, and its output; of a mixture, the tokens as sorted
    for their experts, and what these return. Split: queries, keys, values, and what norms of queries and keys take;
    attention's output; the feed-forward block's one (plain) or three (gated) inner values beside its input, that of the
    last product included; where the activation is fused with its gate, one less of three. A compiled layer repeats the
    activation and makes no copies in 32 bits: of Mistral's it keeps 34 h bytes a token in 16 bits, 49 h operator by
    operator (`train --dry-run --verify`).
    Materialized attention adds the keys and values repeated for every query head, and the probabilities (`scores`: 1,
    or 0 where they are dropped).
    """
    shape, habits, fused = inputs.shape, inputs.habits, inputs.fuses_attention
    act, mixer, compiled = habits.activation_bytes, shape.mixer, habits.execution == "compiled"
    ffn = shape.active_ffn_size
    norm_copy = 0.0 if compiled else habits.norm_copy_bytes
    heads = act * (shape.q_size + 2 * shape.kv_size + shape.q_size if mixer is None else mixer.kept_size)
    if shape.qk_norm and mixer is None:
        heads += (act + norm_copy) * (shape.q_size + shape.kv_size)
    block = act * ((3 if habits.fuses_activation or compiled else 4) if shape.gated_ffn else 2) * ffn
    repeated = 0 if fused else act * 2 * (shape.q_size - shape.kv_size)
    probabilities = 0.0 if fused else scores * np.asarray(act * shape.num_heads * inputs.seq_len, dtype=np.float64)
    sorted_tokens = 2 * act * (shape.num_experts_per_token if shape.num_experts else 0)
    norms = shape.num_pre_norms + shape.num_post_norms
    whole = norms * (act + norm_copy) + shape.num_blocks * act + sorted_tokens
    inner = 0.0 if mixer is None else act * mixer.kept_whole_size
    return Kept(float(whole * shape.hidden_size + inner), heads + block + repeated + probabilities)


def products_bytes_per_token(inputs: StepInputs) -> Kept:
    """Bytes per token that one layer keeps where only what products and attention give is kept, and the layer's input.

    Of Mistral's layer 25 h bytes in 16 bits, 23 h compiled, where its last product's result is not asked for again: a
    dry run holds 25.2 and 23.1 (`train --dry-run --plan recomputation=selective`).
    """
    shape, habits = inputs.shape, inputs.habits
    ffn = shape.active_ffn_size
    given = shape.num_blocks - (habits.execution == "compiled")
    heads = 2 * shape.q_size + 2 * shape.kv_size if shape.mixer is None else shape.mixer.kept_size
    act = habits.activation_bytes
    return Kept(float(act * (1 + given) * shape.hidden_size), act * (heads + (2 if shape.gated_ffn else 1) * ffn))


def activation_bytes(inputs: StepInputs, efficiencies: Efficiencies, stage: Stage) -> tuple[Array, Array]:
    """Bytes that a stage keeps for its backward pass, and what the layer in the backward pass adds by repeating.

    Full recomputation keeps the layer's input, of all layers or of as many as the plan says. A layer also keeps whole
    what it gathered from tensor-parallel ranks, as far as devices were measured to.
    """
    kinds = [inputs._replace(shape=kind) for kind in inputs.shape.kinds]
    each = [
        kind_activation_bytes(kind, efficiencies, count, stage) for kind, count in zip(kinds, stage.layers, strict=True)
    ]
    if len(each) == 1:
        return each[0]
    repeated = [np.where(np.asarray(count) > 0, one, 0.0) for count, (_, one) in zip(stage.layers, each, strict=True)]
    return np.asarray(sum(stored for stored, _ in each)), functools.reduce(np.maximum, repeated)


def kind_activation_bytes(
    inputs: StepInputs, efficiencies: Efficiencies, layers: Num, stage: Stage
) -> tuple[Array, Array]:
    """Return the same of the layers of one kind, `inputs.shape`, of which the stage has so many."""
    shape, plan, tokens = inputs.shape, inputs.plan, inputs.tokens
    full, act = plan.recomputes("full"), inputs.habits.activation_bytes
    selective = plan.recomputes("selective")
    kept, unrepeated = (kept_bytes_per_token(inputs, scores) for scores in (1.0 - selective, 1.0))
    gathered = efficiencies.gathered_bytes * shape.hidden_size * (plan.sequence_ways > 1)
    if inputs.habits.keeps_gathered:
        gathered = gathered + act * shape.num_blocks * shape.hidden_size * (1.0 - 1.0 / plan.sequence_ways)
    layer = kept.whole / plan.sequence_ways + kept.split / plan.tp + gathered
    if inputs.habits.selective_keeps_products:
        products = products_bytes_per_token(inputs)
        layer = np.where(selective, products.whole / plan.sequence_ways + products.split / plan.tp + gathered, layer)
    whole = unrepeated.whole / plan.sequence_ways + unrepeated.split / plan.tp + gathered
    small = act * shape.hidden_size / plan.sequence_ways
    share = np.where(full, plan.repeated_layers(stage.num_layers) / np.maximum(stage.num_layers, 1), 0.0)
    stored = tokens * layers * stage.held * (layer + share * (small - layer))
    return stored, tokens * np.where(full, whole, whole - layer)


def state_bytes(inputs: StepInputs, stage: Stage) -> dict[str, Array]:
    """Bytes that each device of a stage holds of its parameters, whatever it is fed, by purpose."""
    shape, _, plan, _, habits = inputs
    zero = plan.zero_stage
    shards_weights = (zero == 3) & ~habits.gathers_once(plan.num_stages)
    shards_gradients = (zero >= 2) & (habits.reduces_often(plan.num_stages) | (plan.num_micro_batches == 1))
    trained = rank_parameters(shape, plan, stage, trained=True)
    of_layer, trained_of_layer = (largest_layer(shape, plan, trained=only) for only in (False, True))
    buffered = of_layer * habits.weight_bytes * shards_weights + trained_of_layer * habits.gradient_bytes * (zero >= 2)
    weights = trained.bytes_of(habits.weight_bytes, plan, shards_weights)
    if shape.lora_rank:  # trained are adapters alone; the ends are frozen, but not quantized
        params, in_layers = rank_parameters(shape, plan, stage), rank_parameters(shape, plan, Stage(stage.layers))
        weights = weights + in_layers.less(trained).bytes_of(habits.bytes_of_frozen, plan, shards_weights)
        weights = weights + params.less(in_layers).bytes_of(habits.weight_bytes, plan, shards_weights)
    on_device = 1.0 - plan.offload_optimizer
    return {
        "weights": weights,
        "master_weights": on_device * trained.bytes_of(habits.master_bytes, plan, zero >= 1),
        "optimizer": on_device * trained.bytes_of(habits.optimizer_bytes, plan, zero >= 1),
        "gradients": trained.bytes_of(habits.gradient_bytes, plan, shards_gradients),
        "communication_buffers": (2 * buffered + sum(trained) * habits.reduction_bytes) * (plan.replicas > 1),
    }


STATE = ("weights", "master_weights", "optimizer", "gradients", "communication_buffers")
"""Purposes whose bytes follow from the plan alone: no fit scales them."""


@dataclass(frozen=True)
class StageBytes:
    """Bytes of a device of a stage."""

    moments: tuple[dict[str, Array], ...]
    """By purpose, at each moment that may be the fullest."""
    always: dict[str, Array]
    """By purpose, at all of them; what is in both adds up."""
    kept: Array
    """Of its parameters, gradients and optimizer, all of which it holds at some moment."""
    share: Num = 1.0
    """Of all of this; 0 where there is no such stage."""

    @cached_property
    def parts(self) -> dict[str, Array]:
        """As counted at the fullest moment, by purpose."""
        names = dict.fromkeys([*self.always, *(name for moment in self.moments for name in moment)])
        zero = np.zeros(())
        return {
            name: self.share * (self.always.get(name, zero) + self._fullest([m.get(name, zero) for m in self.moments]))
            for name in names
        }

    @cached_property
    def certain(self) -> Array:
        """Those that no prediction lies below: what is kept, or is there at the fullest moment whatever is fed."""
        return np.maximum(self.share * self.kept, self.of_state)

    @cached_property
    def of_state(self) -> Array:
        """Those of the fullest moment that no fit scales."""
        always = total(self.always[name] for name in STATE if name in self.always)
        each = [total(moment[name] for name in STATE if name in moment) for moment in self.moments]
        return np.asarray(self.share * (always + self._fullest(each)))

    @cached_property
    def of_work(self) -> Array:
        """The others."""
        always = total(part for name, part in self.always.items() if name not in STATE)
        each = [total(part for name, part in moment.items() if name not in STATE) for moment in self.moments]
        return np.asarray(self.share * (always + self._fullest(each)))

    def only_where(self, there_is: Num) -> "StageBytes":
        """Return the same where there is such a stage, else nothing."""
        return replace(self, share=there_is)

    def _fullest(self, each: Sequence[Array]) -> Array:
        """Return what is told of each moment, of the fullest one."""
        chosen = np.asarray(each[0])
        for value, fuller in zip(each[1:], self._fuller, strict=True):
            chosen = np.where(fuller, value, chosen)
        return chosen

    @cached_property
    def _fuller(self) -> list[Array]:
        """Whether each moment but the first is fuller than those before it."""
        if len(self.moments) == 1:
            return []
        sums = [total(moment.values()) for moment in self.moments]
        most, found = sums[0], []
        for held in sums[1:]:
            found.append(np.asarray(held > most))
            most = np.maximum(most, held)
        return found


def stage_bytes(inputs: StepInputs, efficiencies: Efficiencies, stage: Stage) -> StageBytes:
    """Bytes that each device of a pipeline stage allocates at its peak, by purpose.

    Of a single micro-batch whose gradients have no lasting buffers, activations go as gradients come: the peak is at
    the begin of the backward pass or at its end. At its begin the logits are gone before the last layer is repeated.

    Args:
        inputs: plans, a model and a machine.
        efficiencies: what devices were measured to hold beyond the bytes counted here.
        stage: its layers, ends, and micro-batches in flight.
    """
    if inputs.habits.fully_shards and not inputs.shape.lora_rank:
        return _fully_sharded_bytes(inputs, efficiencies, stage)
    shape, habits, tokens, tp = inputs.shape, inputs.habits, inputs.tokens, inputs.plan.tp
    activations, recomputed = activation_bytes(inputs, efficiencies, stage)
    heads = max(kind.num_heads for kind in shape.kinds)
    scores = 0.0 if inputs.fuses_attention else heads * float(inputs.seq_len) * tokens / tp
    logits = np.asarray(stage.has_head) * loss_bytes(inputs, stage.held)
    state = state_bytes(inputs, stage)
    come_late = (inputs.plan.num_micro_batches == 1) & (not habits.keeps_gradients)
    of_last_layer = activations / np.maximum(stage.num_layers, 1)
    attention = np.asarray(habits.score_workspace_bytes * scores, dtype=np.float64)
    waits = inputs.plan.follows("gpipe") & (inputs.plan.num_stages > 1)
    of_loss = ~waits & (logits > recomputed + attention)
    logits = np.where(waits | of_loss, logits, 0.0)
    in_work = np.where(of_loss, logits, recomputed + attention)
    at_end = come_late & (state["gradients"] + of_last_layer + recomputed + attention > activations + in_work)
    of_loss = of_loss & ~at_end
    parts = {
        **state,
        "gradients": np.where(come_late & ~at_end, 0.0, state["gradients"]),
        "activations": np.where(at_end, of_last_layer, activations),
        "recomputed_layer": np.where(of_loss, 0.0, recomputed),
        "attention_workspace": np.where(of_loss, 0.0, attention),
        "logits": np.where(at_end, 0.0, logits),
        "workspace": workspace_bytes(inputs, efficiencies, stage.held),
    }
    return StageBytes((parts,), {}, total(state.values()))


def _fully_sharded_bytes(inputs: StepInputs, efficiencies: Efficiencies, stage: Stage) -> StageBytes:
    """Return the same of a trainer whose parameters are sharded as FSDP2 does: of the fullest of a step's moments.

    They are: the loss, the last layer's backward pass, the one before it, the second layer's, the first's, and the
    embedding's. In a pipeline, which keeps all gathered and reduces at the end: the loss, the first backward pass with
    all in flight, the second, that of the projection, the end of the first, and the reduction of the first unit.
    """
    plan, habits = inputs.plan, inputs.habits
    units, how, piped = _units(inputs, stage), _sharding(inputs), plan.num_stages > 1
    m, held, several = plan.num_micro_batches, np.asarray(stage.held), plan.num_micro_batches > 1
    one = activation_bytes(inputs, efficiencies, stage._replace(held=1.0))[0]
    between = _between_stages(inputs, stage)
    waiting = np.asarray(stage.has_head) * _waiting_logits(inputs)
    whole = how.whole_gradient * units.all
    work, made = layer_in_backward(inputs, efficiencies, how.weight)
    first_unit = np.where(units.embedding > 0, units.embedding, units.layer)
    everything = how.weight * units.all * how.is_sharded
    gpipe = plan.follows("gpipe") & piped
    loss = np.asarray(stage.has_head) * loss_bytes(inputs, held)
    second = np.minimum(held, np.maximum(m - 1, 0))
    has_head = np.asarray(stage.has_head)
    # DTensor makes the gradient of a split embedding whole, and adds it up so
    split_embedding = how.reduction * units.embedding * (plan.tp + (m > held))
    of_embedding = np.where(plan.tp > 1, split_embedding, how.weight * units.embedding)
    of_pipe = (
        fully_sharded.Moment(everything, whole * (m > held), np.zeros(())),
        fully_sharded.Moment(everything, whole * (m > held) + how.weight * made, np.zeros(())),
        fully_sharded.Moment(everything, whole * several + how.weight * made, np.zeros(())),
        fully_sharded.Moment(everything, has_head * (whole * several + how.weight * units.head), np.zeros(())),
        fully_sharded.Moment(everything, whole + of_embedding, np.zeros(())),
        fully_sharded.Moment(
            np.asarray(everything - how.weight * first_unit * how.is_sharded),
            np.asarray(whole + how.gradient * first_unit / how.ranks),
            np.asarray(how.reduction * first_unit * how.is_sharded),
        ),
    )
    layers = stage.num_layers
    alone = (
        fully_sharded.at_loss(units, how, plan.tp == 1),
        fully_sharded.at_layer(units, how, 0.0, made),
        fully_sharded.at_layer(units, how, 1.0, made),
        fully_sharded.at_layer(units, how, np.maximum(layers - 2, 1), made),
        fully_sharded.at_layer(units, how, np.maximum(layers - 1, 0), made, is_first=True),
        fully_sharded.at_end(units, how),
    )
    a_layer = 1.0 / np.maximum(layers, 1)
    held_alone = (1.0, 1.0, 1.0 - a_layer, np.minimum(2.0 * a_layer, 1.0), a_layer, 0.0)
    held_piped = (held, held, second, second * has_head, np.maximum(held - 1, 0), 0.0)
    works: tuple[Num, ...] = (0.0, work, work, work, work, 0.0)
    of_head = how.weight * units.head + stage.has_head * inputs.passed_bytes * 4.0
    works_piped: tuple[Num, ...] = (0.0, work, work, of_head, 0.0, 0.0)
    found = []
    for i in range(6):
        a, b = alone[i], of_pipe[i]
        flight = np.where(piped, held_piped[i], held_alone[i])
        found.append(
            {
                "weights": np.where(piped, b.gathered, a.gathered),
                "gradients": np.where(piped, b.gradients, a.gradients),
                "communication_buffers": np.where(piped, b.buffers, a.buffers),
                "activations": flight * (one + between.kept),
                "recomputed_layer": np.where(piped, works_piped[i], works[i]),
                "logits": loss if i == 0 else flight * waiting * gpipe,
            }
        )
    state = state_bytes(inputs, stage)
    kept_weights = units.all * (0.0 if habits.master_bytes else habits.weight_bytes) / how.ranks
    master_weights = units.all * habits.master_bytes / how.ranks
    gradients = how.gradient * units.all / how.ranks
    certain = total((master_weights, kept_weights, state["optimizer"], gradients))
    return StageBytes(
        tuple(found),
        {
            "weights": kept_weights,
            "master_weights": master_weights,
            "optimizer": state["optimizer"],
            "communication_buffers": between.buffers,
            "attention_workspace": np.zeros(()),
            "workspace": workspace_bytes(inputs, efficiencies, stage.held),
        },
        certain,
    )


def _units(inputs: StepInputs, stage: Stage) -> fully_sharded.Units:
    """Return the parameters of what a stage's rank gathers at once."""
    shape, plan = inputs.shape, inputs.plan
    tied = shape.tied_embeddings
    ends = end_parameters(shape, stage.has_embedding, stage.has_head) / plan.tp
    head = np.zeros(()) if tied else end_parameters(shape, False, stage.has_head) / plan.tp
    params = np.asarray(sum(rank_parameters(shape, plan, stage)))
    return fully_sharded.Units(params, largest_layer(shape, plan), np.asarray(ends - head), np.asarray(head), tied)


def _sharding(inputs: StepInputs) -> fully_sharded.Sharding:
    plan, habits = inputs.plan, inputs.habits
    zero, alone, several = plan.zero_stage, plan.num_stages == 1, plan.num_micro_batches > 1
    return fully_sharded.Sharding(
        habits.weight_bytes,
        habits.master_bytes or habits.weight_bytes,
        habits.reduced_bytes,
        np.where(zero >= 1, plan.shard_ranks, 1),
        np.asarray((plan.replicas > 1) | (habits.master_bytes > 0)),
        np.asarray((zero == 3) & alone),
        np.asarray((zero >= 2) & alone),
        np.asarray(several),
    )


class Between(NamedTuple):
    """Bytes of what the stages of a pipeline hand to each other."""

    kept: Array
    """Per micro-batch in flight, beside what layers keep."""
    buffers: Array
    """For what is received, of all micro-batches."""


def _between_stages(inputs: StepInputs, stage: Stage) -> Between:
    """Return what a stage keeps of what it hands on: torch's pipelines have a buffer for each micro-batch at once."""
    plan, act = inputs.plan, inputs.habits.activation_bytes
    each = inputs.passed_bytes / plan.sequence_ways * (plan.num_stages > 1)
    first, last = np.asarray(stage.has_embedding), np.asarray(stage.has_head)
    angles = 2.0 * act * inputs.shape.head_dim * inputs.tokens  # sine and cosine of each position
    return Between(
        np.asarray(angles + each * (1.0 * first - last)),
        np.asarray(each * plan.num_micro_batches * (2.0 * plan.virtual_stages - first - last)),
    )


def _waiting_logits(inputs: StepInputs) -> Array:
    """Return bytes of the logits of a micro-batch whose backward pass waits, and of their logarithms in 32 bits."""
    logits = inputs.tokens / inputs.plan.tp * head_matmul(inputs.shape).out_size
    return np.asarray(logits * (inputs.habits.activation_bytes + 4.0))


def layer_in_backward(inputs: StepInputs, efficiencies: Efficiencies, weight_bytes: float) -> tuple[Array, Array]:
    """Bytes that a layer's backward pass holds beyond what the layer keeps, and parameters whose gradients are made.

    Of a gated block, the fuller of two moments: where the gradients of its inner values are made, beside what was kept
    and the last product's gradient; or where all its gradients are there, and the norm's are made in 32 bits, beside
    what attention kept. As torch's tracker finds them: of Mistral-7B 44 h bytes a token and 42 of gradients.
    """
    shape, plan, habits, tokens = inputs.shape, inputs.plan, inputs.habits, inputs.tokens
    act, compiled = habits.activation_bytes, habits.execution == "compiled"
    full = plan.recomputes("full")
    hidden, ffn = shape.hidden_size / plan.sequence_ways, shape.ffn_size / plan.tp
    kept, again = activation_bytes(inputs, efficiencies, Stage(one_layer(shape, 0).layers))
    layer = np.where(full, again, kept + again)
    heads = act * (2 * shape.q_size + 2 * shape.kv_size) / plan.tp
    copies = 0.0 if compiled else habits.norm_copy_bytes
    early = layer + tokens * act * (2 * ffn + hidden)
    late = heads + hidden * (4.0 * act + 5.5 * act if compiled else 2.0 * act + 2 * copies + 11.0 * act)
    if compiled:
        early = np.where(full, tokens * act * (4 * ffn + hidden), early)
        late = np.where(full, 10.0 * act * hidden, late)
    one = shape.ffn_size * shape.hidden_size / plan.tp
    products = 3.0 if shape.gated_ffn else 2.0
    is_late = tokens * late + weight_bytes * products * one > early + weight_bytes * one
    own = np.where(full, 0.0, kept)
    work = np.where(is_late, tokens * late, early) - own
    return np.asarray(work), np.where(is_late, products * one, one)


def loss_bytes(inputs: StepInputs, held: Num) -> Array:
    """Bytes of the last stage's loss: logits of one micro-batch, but for GPipe's, which all wait; or a loss in chunks.

    That holds its logits, 32-bit copies of a few of them, the gradients of the projection (their sum in 32 bits beside,
    where there are several chunks) and of what it takes, and the final norm's values (trainer/parallel/loss.py). So
    counted, 21 of 24 steps are within 0.6 % of what torch's tracker has of them (the steps of
    reports/measured/h200/dry_runs.csv).
    """
    plan, habits, size = inputs.plan, inputs.habits, head_matmul(inputs.shape).out_size
    whole = np.where(plan.follows("gpipe"), held, 1.0) * inputs.tokens / plan.tp * size
    if not habits.chunked_logits:
        return np.asarray(whole * habits.logit_bytes)
    act, hidden, weight = habits.activation_bytes, inputs.shape.hidden_size, habits.weight_bytes
    logits = np.minimum(whole, habits.chunked_logits)
    wide = np.minimum(logits, WIDE_LOGITS)
    copies = 0.0 if habits.execution == "compiled" else 8.0 * wide + 4.0 * np.minimum(logits - wide, wide)
    sums = 4.0 * size * hidden * (whole > habits.chunked_logits)
    around = inputs.tokens * hidden * (4.0 * act + habits.norm_copy_bytes)
    chunked = act * logits + sums + copies + weight * size * hidden + around
    if not habits.fully_shards:
        return np.where(chunks_loss(plan), chunked, whole * habits.logit_bytes)
    each = (habits.norm_copy_bytes + act) / plan.sequence_ways + act  # of the final norm
    one = inputs.tokens / plan.tp * size
    waits = (held - 1.0) * _waiting_logits(inputs) * plan.follows("gpipe")
    per_logit = np.where(plan.tp > 1, SPLIT_LOGIT_BYTES, habits.logit_bytes)
    return np.where(chunks_loss(plan), chunked, one * per_logit + waits + inputs.tokens * hidden * each)


def chunks_loss(plan: Layout) -> Array:
    """Whether a loss in chunks can be one: where ranks do not share the vocabulary, and no logits wait."""
    return ~(plan.follows("gpipe") & (plan.num_stages > 1)) & np.equal(plan.tp, 1)


def workspace_bytes(inputs: StepInputs, efficiencies: Efficiencies, held: Num) -> Array:
    """Bytes that every tensor-parallel rank holds whole: of the layer in work, and of each micro-batch in flight."""
    flight = efficiencies.flight_bytes * (inputs.plan.sequence_ways > 1) * np.asarray(held)
    return np.asarray(inputs.tokens * inputs.shape.hidden_size * (efficiencies.workspace_bytes + flight))


class Memory(NamedTuple):
    """Memory of a plan's stages, in bytes per device, and the stack's corrections of it."""

    first: StageBytes
    second: StageBytes
    """The stage that holds most of those between; all 0 where there are none."""
    last: StageBytes
    ratio: Num
    """Bytes that devices hold beyond those of state, over those counted."""
    base_bytes: Num
    """Bytes that each device holds beside."""
    factor: Num = 1.0
    """What runs like these held over what was predicted."""

    def held(self, stage: StageBytes) -> Array:
        """Bytes of a device of a stage: no less than what is certain of it."""
        beside = self.factor * (self.ratio * stage.of_work + self.base_bytes)
        return np.maximum(self.factor * stage.of_state + beside, stage.certain)

    def as_counted(self) -> "Memory":
        """Return what tensors hold, without what a stack was measured to hold beyond them."""
        return self._replace(ratio=1.0, base_bytes=0.0, factor=1.0)

    @property
    def peak_bytes(self) -> Array:
        """Bytes of the fullest device."""
        return np.maximum(self.held(self.first), np.maximum(self.held(self.second), self.held(self.last)))

    @property
    def first_bytes(self) -> Array:
        """Bytes of a device of the first stage."""
        return self.held(self.first)

    @property
    def certain_bytes(self) -> Array:
        """Bytes of the stage with most of what is certain."""
        return np.maximum(self.first.certain, np.maximum(self.second.certain, self.last.certain))

    @property
    def peak(self) -> dict[str, Array]:
        """Bytes of the fullest device, by purpose; `correction` is what the fit adds."""
        first, second, last = self.held(self.first), self.held(self.second), self.held(self.last)
        is_first, is_second = (first >= last) & (first >= second), second >= last
        peak = {
            name: np.where(is_first, part, np.where(is_second, self.second.parts[name], self.last.parts[name]))
            for name, part in self.first.parts.items()
        }
        peak["correction"] = np.asarray(self.peak_bytes - sum(peak.values()))
        return peak


def plan_memory(inputs: StepInputs, efficiencies: Efficiencies) -> Memory:
    """Memory of the stages that can be the fullest.

    The first stage holds the embedding and the most micro-batches in flight, the last one the logits; of those between,
    equal in layers, the second holds the most.
    """
    plan, efficiencies = inputs.plan, efficiencies.on(inputs.machine.accelerator)
    first, second, last = stages_of(inputs.shape, plan)
    of_second = stage_bytes(inputs, efficiencies, second._replace(held=plan.in_flight(1)))
    between = plan.num_stages > 2
    return Memory(
        first=stage_bytes(inputs, efficiencies, first._replace(held=plan.in_flight(0))),
        second=of_second.only_where(between),
        last=stage_bytes(inputs, efficiencies, last._replace(held=plan.in_flight(plan.num_stages - 1))),
        ratio=efficiencies.memory_ratio,
        base_bytes=efficiencies.base_bytes,
    )


def total_bytes(inputs: StepInputs, efficiencies: Efficiencies) -> Array:
    """Bytes of all devices together."""
    efficiencies = efficiencies.on(inputs.machine.accelerator)
    ratio, base = efficiencies.memory_ratio, efficiencies.base_bytes
    return _of_all(inputs, efficiencies, lambda stage: stage.of_state + ratio * stage.of_work + base)


def certain_total_bytes(inputs: StepInputs, efficiencies: Efficiencies) -> Array:
    """Bytes of all devices together that are certain."""
    return _of_all(inputs, efficiencies, lambda stage: stage.certain)


def _of_all(inputs: StepInputs, efficiencies: Efficiencies, each: Callable[[StageBytes], Array]) -> Array:
    """Return the sum over all devices of what each of a stage holds.

    It is linear in the micro-batches in flight, so that their mean stands for the stages between.
    """
    plan = inputs.plan
    in_flight = plan.in_flight(0), plan.mean_in_flight_between(), plan.in_flight(plan.num_stages - 1)
    stages = (stage._replace(held=held) for stage, held in zip(stages_of(inputs.shape, plan), in_flight, strict=True))
    held = (each(stage_bytes(inputs, efficiencies, stage)) for stage in stages)
    return np.asarray(plan.over_stages(StageLayers(*held)) * plan.replicas * plan.tp)


def host_bytes(inputs: StepInputs) -> Array:
    """Bytes that the host of a node holds for the optimizers of its devices; 0 where they are not offloaded."""
    shape, _, plan, _, habits = inputs
    state = fullest_rank(shape, plan, trained=True).bytes_of(
        habits.master_bytes + habits.optimizer_bytes, plan, plan.zero_stage >= 1
    )
    return plan.offload_optimizer * state * plan.devices_per_node
