"""Bytes of parameters and gradients under FSDP2, moment by moment: gathered, prefetched, reduced, not yet freed.

A unit is what FSDP gathers at once: a layer, the embedding, the final norm with the vocabulary projection. Torch 2.13's
`fully_shard` gathers a unit through a buffer of its size, which in the forward pass lives until the next unit's is
there; in the backward pass it prefetches one unit, and what a unit's gradients are reduced from lives until the next
unit's are (torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py, `wait_for_unshard`, `_backward_prefetch`,
`post_backward`).
"""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.counts import end_parameters
from estimator.formulas.inputs import StepInputs
from estimator.formulas.stages import Stage, largest_layer, rank_parameters


class Units(NamedTuple):
    """Parameters of one rank of a stage."""

    all: Array
    layer: Array
    """Of the largest layer."""
    embedding: Array
    """Of the unit that is reduced last: the embedding, tied with the vocabulary projection or not; 0 without one."""
    head: Array
    """Of the final norm and the vocabulary projection; 0 without them, and where they are tied."""
    tied: bool


class Sharding(NamedTuple):
    """How units are sharded, and bytes per parameter."""

    weight: float
    gradient: float
    """Of a shard."""
    reduction: float
    """Of what is reduced, and of gradients that wait for it."""
    ranks: Array
    """Over which units are sharded; 1 for copies, and where nothing is wrapped."""
    is_sharded: Array
    """Units are wrapped at all."""
    reshards: Array
    """Weights are freed after each use, and gathered for the next."""
    reduces: Array
    """Gradients of each micro-batch are reduced; else those of the last, and whole ones wait."""
    accumulates: Array
    """There are several micro-batches."""

    @property
    def whole_gradient(self) -> Array:
        """Bytes per parameter of gradients that wait whole."""
        return np.where(self.is_sharded, self.reduction, self.weight)


class Moment(NamedTuple):
    """Bytes beside what is kept between steps."""

    gathered: Array
    gradients: Array
    buffers: Array


def waiting_gradients(units: Units, how: Sharding) -> Array:
    """Bytes of the gradients of the micro-batches before the last: shards where each was reduced, else whole."""
    each = np.where(how.reduces, how.gradient / how.ranks, how.whole_gradient)
    return np.asarray(units.all * each * how.accumulates)


def at_loss(units: Units, how: Sharding, is_inside: Array) -> Moment:
    """Return what is held where the forward pass ends.

    The vocabulary projection is gathered, its buffer not yet freed, and neither is what the last unit of the
    micro-batch before was reduced from.

    Args:
        units: of the stage.
        how: they are sharded.
        is_inside: the loss is computed within the forward pass, at whose end the last buffer is freed.
    """
    last = units.embedding if units.tied else units.head
    gathered = how.weight * np.where(how.reshards, last, units.all) * how.is_sharded
    waits = is_inside & (how.ranks > 1) & (how.reshards | ~how.accumulates)
    buffers = how.weight * (units.layer if units.tied else units.head) * waits
    pending = how.reduction * units.embedding * (how.accumulates & how.reduces & how.is_sharded)
    return Moment(np.asarray(gathered), waiting_gradients(units, how), np.asarray(buffers + pending))


def at_layer(units: Units, how: Sharding, layers_done: Num, made: Num, *, is_first: bool = False) -> Moment:
    """Return what is held in the backward pass of a layer.

    Args:
        units: of the stage.
        how: they are sharded.
        layers_done: layers whose gradients were reduced.
        made: parameters of the layer whose gradients are there, not yet reduced.
        is_first: nothing is prefetched but the embedding.
    """
    done = units.head + layers_done * units.layer
    left = units.all - done
    gathered = how.weight * np.where(how.reshards, units.layer, left) * how.is_sharded
    before = np.where(np.equal(layers_done, 0), np.where(units.tied, 0.0, units.head), units.layer)
    next_one = 0.0 if units.tied and is_first else units.embedding if is_first else units.layer
    prefetched = how.weight * next_one * (how.reshards & (how.ranks > 1))
    reduced = how.gradient * done / how.ranks
    waits = np.where(
        how.accumulates,
        np.where(how.reduces, units.all * how.gradient / how.ranks, how.whole_gradient * left + reduced),
        reduced,
    )
    tied = how.weight * units.embedding if units.tied else 0.0  # from the projection's backward pass on
    gradients = waits + how.weight * made + tied
    return Moment(
        np.asarray(gathered), np.asarray(gradients), np.asarray(how.reduction * before * how.is_sharded + prefetched)
    )


def at_end(units: Units, how: Sharding) -> Moment:
    """Return what is held where the embedding's gradients are made, and then reduced."""
    whole = units.embedding
    gradients = how.gradient * (units.all - whole) / how.ranks + how.weight * whole
    waits = how.accumulates & how.reduces
    gradients = gradients + np.where(waits, how.gradient * whole / how.ranks, 0.0)
    unreduced = how.accumulates & ~how.reduces
    gradients = gradients + np.where(unreduced, whole * how.whole_gradient, 0.0)
    made = how.weight * whole + how.reduction * units.layer
    reduced = how.reduction * whole * (1 + 1 / how.ranks)
    at_reduction = reduced > made
    gathered = np.where(at_reduction, 0.0, how.weight * whole) * how.is_sharded
    buffers = how.reduction * np.where(at_reduction, whole * (1 + 1 / how.ranks), units.layer) * how.is_sharded
    return Moment(np.asarray(gathered), np.asarray(gradients), np.asarray(buffers))


# --- of a stage ------------------------------------------------------------------------------------------------------


def units_of(inputs: StepInputs, stage: Stage) -> Units:
    """Return the parameters of what a stage's rank gathers at once."""
    shape, plan = inputs.shape, inputs.plan
    tied = shape.tied_embeddings
    ends = end_parameters(shape, stage.has_embedding, stage.has_head) / plan.tp
    head = np.zeros(()) if tied else end_parameters(shape, False, stage.has_head) / plan.tp
    params = np.asarray(sum(rank_parameters(shape, plan, stage)))
    return Units(params, largest_layer(shape, plan), np.asarray(ends - head), np.asarray(head), tied)


def sharding_of(inputs: StepInputs) -> Sharding:
    """Return how a plan shards its units under the stack's habits."""
    plan, habits = inputs.plan, inputs.habits
    zero, alone, several = plan.zero_stage, plan.num_stages == 1, plan.num_micro_batches > 1
    return Sharding(
        habits.weight_bytes,
        0.0 if habits.updates_in_backward else habits.master_bytes or habits.weight_bytes,
        habits.reduced_bytes,
        np.where(zero >= 1, plan.shard_ranks, 1),
        np.asarray((plan.replicas > 1) | (habits.master_bytes > 0)),
        np.asarray((zero == 3) & alone),
        np.asarray((zero >= 2) & alone),
        np.asarray(several),
    )


class Peak(NamedTuple):
    """A moment of a step that may be its fullest, and what else is there."""

    moment: Moment
    flight: Num
    """Micro-batches whose activations the stage has."""
    work: Num
    """Bytes of a backward pass beside."""
    put_off: Num = 0.0
    """Bytes that weight gradients wait with, of zero bubble's passes."""


def peaks_alone(units: Units, how: Sharding, layers: Num, made: Num, work: Num, is_inside: Array) -> tuple[Peak, ...]:
    """Return the moments of a stage that is alone.

    They are: the loss, the last layer's backward pass, the one before it, the second layer's, the first's, and the
    embedding's.

    Args:
        units: of the stage.
        how: they are sharded.
        layers: of the stage.
        made: parameters of a layer whose gradients are there in its backward pass.
        work: bytes of a layer's backward pass beside what it keeps.
        is_inside: as `at_loss` takes it.
    """
    a_layer = 1.0 / np.maximum(layers, 1)
    return (
        Peak(at_loss(units, how, is_inside), 1.0, 0.0),
        Peak(at_layer(units, how, 0.0, made), 1.0, work),
        Peak(at_layer(units, how, 1.0, made), 1.0 - a_layer, work),
        Peak(at_layer(units, how, np.maximum(layers - 2, 1), made), np.minimum(2.0 * a_layer, 1.0), work),
        Peak(at_layer(units, how, np.maximum(layers - 1, 0), made, is_first=True), a_layer, work),
        Peak(at_end(units, how), 0.0, 0.0),
    )
