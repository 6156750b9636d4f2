"""The moments of a pipeline's stage under FSDP2, which keeps what it gathered and reduces gradients at the end.

As torch 2.13 runs a pipeline (torch/distributed/pipelining): a stage of several chunks has three of them gathered at
most (`_add_unshard_reshard`, schedules.py); a backward pass whose weight gradients are put off keeps the gradients of
what each product and norm gives, and frees nothing (`stage_backward_input`, _backward.py).
"""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.activations import (
    activation_bytes,
    final_norm_bytes,
    layer_in_backward,
    loss_bytes,
    waiting_logits,
)
from estimator.formulas.counts import head_matmul
from estimator.formulas.fully_sharded import Moment, Peak, Sharding, Units, peaks_alone, sharding_of, units_of
from estimator.formulas.inputs import StepInputs
from estimator.formulas.stages import Stage
from estimator.stack.efficiencies import Efficiencies

GATHERED_CHUNKS = 3
"""Chunks of a stage that are gathered at once (`max_active_stages` of torch's `_add_unshard_reshard`)."""


class Between(NamedTuple):
    """Bytes of what the stages of a pipeline hand to each other."""

    kept: Array
    """Per micro-batch in flight, beside what layers keep."""
    buffers: Array
    """For what is received, of all micro-batches."""


def between_stages(inputs: StepInputs, stage: Stage) -> Between:
    """Return what a stage keeps of what it hands on: torch's pipelines have a buffer for each micro-batch at once.

    Each chunk but the model's last keeps what it gave. What the first layer of a chunk was fed is in the buffer; but an
    eager layer that is not repeated keeps it in 32 bits alone, so that it counts no less for that.
    """
    plan, act, compiled = inputs.plan, inputs.habits.activation_bytes, inputs.habits.execution == "compiled"
    each = inputs.passed_bytes / plan.sequence_ways * (plan.num_stages > 1)
    first, last, chunks = 1.0 * np.asarray(stage.has_embedding), 1.0 * np.asarray(stage.has_head), plan.virtual_stages
    fed = np.where(plan.recomputes("full") | compiled, chunks - first, 0.0)
    angles = 2.0 * act * inputs.shape.head_dim * inputs.tokens  # sine and cosine of each position
    received = 2.0 * chunks - first - last + (1.0 - first) * plan.follows("zero_bubble")
    return Between(
        np.asarray(chunks * angles + each * (chunks - last - fed)), np.asarray(each * plan.num_micro_batches * received)
    )


class Flight(NamedTuple):
    """How far a stage is in its backward passes, of which a round of stages goes through a chunk before the next."""

    done: Num
    """Backward passes of chunks before it."""
    micro_batches: Array
    """In flight."""
    chunks: Array
    """That have gradients, from the last one on."""


def flight_after(inputs: StepInputs, stage: Stage, least: Num) -> Flight:
    """Return the last moment with most in flight, or where it is later, that after so many backward passes.

    With v chunks, p stages, m micro-batches, W chunks in flight at most: m v - W backward passes are done when the last
    forward pass is. After k of them min(v, ceil(k / p)) chunks have gradients.
    """
    plan, v = inputs.plan, inputs.plan.virtual_stages
    passes, most = plan.num_micro_batches * v, np.asarray(stage.held) * v
    done = np.maximum(np.round(passes - most), least)
    chunks = np.minimum(np.ceil(done / plan.num_stages), v)
    return Flight(done, np.asarray(np.clip(passes - done, 0, most) / v), np.asarray(chunks))


def puts_off(inputs: StepInputs, stage: Stage) -> Array:
    """Return whether weight gradients are a pass of their own: of zero bubble, but for the stage that begins."""
    return np.asarray(inputs.plan.follows("zero_bubble") & ~np.asarray(stage.has_embedding))


def put_off_bytes(inputs: StepInputs, stage: Stage) -> tuple[Array, Array]:
    """Return what a micro-batch whose weight gradients wait holds beyond what its layers keep: of one layer, of all.

    The gradients of what each product and each norm of a layer gives: of Mistral's 25 h bytes a token in 16 bits. The
    vocabulary projection's is that of the logits, and the final norm's values are kept beside.
    """
    shape, plan, habits, tokens = inputs.shape, inputs.plan, inputs.habits, inputs.tokens
    act = habits.activation_bytes
    heads = shape.q_size + 2 * shape.kv_size + (2 if shape.gated_ffn else 1) * shape.active_ffn_size
    norms = shape.num_pre_norms + shape.num_post_norms + shape.num_blocks
    layer = tokens * act * (heads / plan.tp + norms * shape.hidden_size / plan.sequence_ways)
    size = head_matmul(shape).out_size / plan.tp
    head = np.asarray(stage.has_head) * (tokens * act * size + final_norm_bytes(inputs))
    return np.asarray(layer), np.asarray(layer * stage.num_layers + head)


def _split_gradient(how: Sharding, tp: Num) -> Num:
    """Return bytes per own parameter of a split embedding's gradient, which DTensor makes whole, as sums are kept too.

    Of that the own part is counted already, among those of the stage.
    """
    whole = how.reduction + (how.weight if how.weight != how.reduction else 0.0)
    return tp * whole - how.reduction


def peaks_piped(
    inputs: StepInputs, stage: Stage, units: Units, how: Sharding, made: Num, work: Num
) -> tuple[Peak, ...]:
    """Return the moments of a stage of a pipeline.

    They are: the loss, the first backward pass with all in flight, the one after, that of the projection, the end of
    the first, and the reduction of the first unit; then the first where all chunks have gradients, and the weight
    gradients that were put off.

    Args:
        inputs: plans, a model and a machine.
        stage: its layers, ends, and micro-batches in flight.
        units: of the stage.
        how: they are sharded.
        made: parameters of a layer whose gradients are there in its backward pass.
        work: bytes of that pass beside what the layer keeps.
    """
    plan, has_head = inputs.plan, np.asarray(stage.has_head)
    m, v, p = plan.num_micro_batches, plan.virtual_stages, plan.num_stages
    waits = puts_off(inputs, stage)
    one, each = put_off_bytes(inputs, stage)
    waiting = waits * stage.waiting * each
    of_layers = units.all - units.head - units.embedding
    whole = how.whole_gradient * units.all

    def gradients(at: Flight) -> Array:  # that of a split embedding stays whole
        of_ends = units.head * (at.chunks > 0) + units.embedding * plan.tp * (at.chunks >= v)
        so_far = of_layers * at.chunks / v + of_ends
        return np.asarray(how.whole_gradient * so_far)

    full, after = flight_after(inputs, stage, 0), flight_after(inputs, stage, 1)
    last_chunk, all_chunks = (flight_after(inputs, stage, (v - 1) * p + k) for k in (0, 1))
    none = np.zeros(())
    in_work = how.weight * np.where(waits, units.all, made)  # those of the pass before, not yet added up
    gathered = how.weight * (units.all - of_layers * np.maximum(1.0 - GATHERED_CHUNKS / v, 0.0)) * how.is_sharded
    first_unit = np.where(units.embedding > 0, units.embedding, units.layer)
    of_embedding = units.embedding * np.where(plan.tp > 1, _split_gradient(how, plan.tp), how.weight)
    of_head = how.weight * units.head + has_head * inputs.passed_bytes * 4.0
    at_head = has_head * (gradients(after) * (m > 1) + how.weight * units.head)
    reduction = Moment(
        np.asarray(gathered - how.weight * first_unit * how.is_sharded),
        np.asarray(whole + how.gradient * first_unit / how.ranks),
        np.asarray(how.reduction * first_unit * how.is_sharded),
    )
    at_loss = gradients(full) + how.weight * units.head * waits
    peaks = [
        Peak(Moment(gathered, at_loss, none), full.micro_batches, 0.0, waiting),
        Peak(Moment(gathered, gradients(full) + in_work, none), full.micro_batches, work, waiting + waits * one),
        Peak(Moment(gathered, gradients(after) + in_work, none), after.micro_batches, work, waiting + waits * one),
        Peak(Moment(gathered, at_head, none), after.micro_batches * has_head, of_head, waiting),
        Peak(Moment(gathered, whole + of_embedding, none), np.maximum(last_chunk.micro_batches - 1 / v, 0), 0.0),
        Peak(reduction, 0.0, 0.0),
    ]
    if np.any(v > 1):
        peaks.append(Peak(Moment(gathered, whole + in_work, none), all_chunks.micro_batches, work))
    if np.any(waits):
        at_weights = Moment(gathered, waits * (gradients(full) + in_work), none)
        of_loss = each - one * stage.num_layers  # layers give theirs up as gradients come
        peaks.append(Peak(at_weights, waits * full.micro_batches, 0.0, waits * (waiting + of_loss)))
    return tuple(peaks)


def moments_of(inputs: StepInputs, efficiencies: Efficiencies, stage: Stage) -> tuple[dict[str, Array], ...]:
    """Return bytes by purpose of the moments of a step that may be a stage's fullest, beside what it always holds."""
    plan, units, how = inputs.plan, units_of(inputs, stage), sharding_of(inputs)
    piped, has_head = plan.num_stages > 1, np.asarray(stage.has_head)
    kept = activation_bytes(inputs, efficiencies, stage._replace(held=1.0))[0] + between_stages(inputs, stage).kept
    work, made = layer_in_backward(inputs, efficiencies, how.weight, makes_weights=~puts_off(inputs, stage))
    waiting = has_head * waiting_logits(inputs) * (plan.follows("gpipe") & piped)
    loss = has_head * loss_bytes(inputs, np.asarray(stage.held))
    alone = peaks_alone(units, how, stage.num_layers, made, work, plan.tp == 1)
    found = []
    for number, other in enumerate(peaks_piped(inputs, stage, units, how, made, work)):
        one = alone[min(number, len(alone) - 1)]
        flight = np.where(piped, other.flight, one.flight)
        gathered, gradients, buffers = (np.where(piped, b, a) for a, b in zip(one.moment, other.moment, strict=True))
        found.append(
            {
                "weights": gathered,
                "gradients": gradients,
                "communication_buffers": buffers,
                "activations": flight * kept + np.where(piped, other.put_off, 0.0),
                "recomputed_layer": np.where(piped, other.work, one.work),
                "logits": loss if number == 0 else flight * waiting,
            }
        )
    return tuple(found)
