"""Bytes of what a step computes: what layers keep for their backward pass and hold in it, and the loss."""

import functools
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.adapters import adapters_keep, merged_bytes
from estimator.formulas.counts import head_matmul
from estimator.formulas.fused_loss import fused_loss_bytes
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import Layout
from estimator.formulas.stages import Stage, one_layer
from estimator.stack.efficiencies import Efficiencies

WIDE_LOGITS = 2**24
"""Logits that a loss in chunks has 32-bit copies of at once where nothing is compiled: 64 MiB a copy, three of them
(trainer/parallel/loss.py).
"""

LAYERS_STAYING = 2.0
"""Layers whose activations are on the device where the others' are sent to the host.

assumed: one in work, one on its way
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
    by_adapters = adapters_keep(shape, fuses_attention=fused)
    whole_bytes = float(whole * shape.hidden_size + inner + act * by_adapters.whole)
    return Kept(whole_bytes, heads + block + repeated + probabilities + act * by_adapters.split)


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
    again = tokens * np.where(full, whole, whole - layer)
    if merged := merged_bytes(shape, plan, inputs.habits.weight_bytes):
        stored = stored + layers * stage.held * (1.0 - share) * merged.all
        again = again + merged.largest + np.where(full, merged.all, 0.0)
    if inputs.habits.offloads_activations:
        stored = stored * np.minimum(1.0, LAYERS_STAYING / np.maximum(stage.num_layers * np.asarray(stage.held), 1))
    return stored, again


def waiting_logits(inputs: StepInputs) -> Array:
    """Return bytes of a micro-batch's loss whose backward pass waits: logits, logarithms in 32 bits, the final norm."""
    logits = inputs.tokens / inputs.plan.tp * head_matmul(inputs.shape).out_size
    return np.asarray(logits * (inputs.habits.activation_bytes + 4.0) + final_norm_bytes(inputs))


def final_norm_bytes(inputs: StepInputs) -> Array:
    """Return bytes that the final norm of a micro-batch keeps, and what it gave, which every rank has whole."""
    act = inputs.habits.activation_bytes
    each = (inputs.habits.norm_copy_bytes + act) / inputs.plan.sequence_ways + act
    return np.asarray(inputs.tokens * inputs.shape.hidden_size * each)


def layer_in_backward(
    inputs: StepInputs, efficiencies: Efficiencies, weight_bytes: float, *, makes_weights: Num = True
) -> tuple[Array, Array]:
    """Bytes that a layer's backward pass holds beyond what the layer keeps, and parameters whose gradients are made.

    Of a gated block, the fuller of two moments: where the gradients of its inner values are made, beside what was kept
    and the last product's gradient; or where all its gradients are there, and the norm's are made in 32 bits, beside
    what attention kept. As torch's tracker finds them: of Mistral-7B 44 h bytes a token and 42 of gradients.

    Args:
        inputs: plans, a model and a machine.
        efficiencies: what devices were measured to hold beyond.
        weight_bytes: of a gradient.
        makes_weights: weight gradients are made in this pass; else it is the first moment, without them.
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
    is_late = np.asarray(makes_weights) & (tokens * late + weight_bytes * products * one > early + weight_bytes * one)
    own = np.where(full, 0.0, kept)
    work = np.where(is_late, tokens * late, early) - own
    return np.asarray(work), np.where(is_late, products * one, np.asarray(makes_weights) * one)


def loss_bytes(inputs: StepInputs, held: Num) -> Array:
    """Bytes of the last stage's loss: logits of one micro-batch, but for GPipe's, which all wait; or a loss in chunks.

    That holds its logits, 32-bit copies of a few of them, the gradients of the projection where it is trained (their
    sum in 32 bits beside, where there are several chunks) and of what it takes, and the final norm's values
    (trainer/parallel/loss.py). So counted, 21 of 24 steps are within 0.6 % of what torch's tracker has of them (the
    steps of reports/measured/h200/dry_runs.csv).
    """
    plan, habits, size = inputs.plan, inputs.habits, head_matmul(inputs.shape).out_size
    whole = np.where(plan.follows("gpipe"), held, 1.0) * inputs.tokens / plan.tp * size
    if habits.fused_loss:
        return np.where(chunks_loss(plan), fused_loss_bytes(inputs), whole * habits.logit_bytes)
    if not habits.chunked_logits:
        return np.asarray(whole * habits.logit_bytes)
    act, hidden, weight = habits.activation_bytes, inputs.shape.hidden_size, habits.weight_bytes
    logits = np.minimum(whole, habits.chunked_logits)
    wide = np.minimum(logits, WIDE_LOGITS)
    copies = 0.0 if habits.execution == "compiled" else 8.0 * wide + 4.0 * np.minimum(logits - wide, wide)
    gradients = (4.0 * (whole > habits.chunked_logits) + weight) * size * hidden * (inputs.shape.lora_rank == 0)
    around = inputs.tokens * hidden * (4.0 * act + habits.norm_copy_bytes)
    chunked = act * logits + gradients + copies + around
    if not habits.fully_shards:
        return np.where(chunks_loss(plan), chunked, whole * habits.logit_bytes)
    one = inputs.tokens / plan.tp * size
    waits = (held - 1.0) * waiting_logits(inputs) * plan.follows("gpipe")
    given = act * (plan.num_stages > 1)  # a pipeline keeps what its last stage gave
    per_logit = np.where(plan.tp > 1, SPLIT_LOGIT_BYTES, habits.logit_bytes) + given
    return np.asarray(np.where(chunks_loss(plan), chunked, one * per_logit + waits + final_norm_bytes(inputs)))


def chunks_loss(plan: Layout) -> Array:
    """Whether a loss in chunks can be one: where ranks do not share the vocabulary, and no logits wait."""
    return ~(plan.follows("gpipe") & (plan.num_stages > 1)) & np.equal(plan.tp, 1)


def workspace_bytes(inputs: StepInputs, efficiencies: Efficiencies, held: Num) -> Array:
    """Bytes that every tensor-parallel rank holds whole: of the layer in work, and of each micro-batch in flight."""
    flight = efficiencies.flight_bytes * (inputs.plan.sequence_ways > 1) * np.asarray(held)
    return np.asarray(inputs.tokens * inputs.shape.hidden_size * (efficiencies.workspace_bytes + flight))
