"""What a stage of a pipeline is made of: its layers and ends, and the parameters that one of its ranks holds."""

import functools
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.counts import dense_parameters, end_parameters, expert_parameters
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import Layout
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
    waiting: Num = 0.0
    """Of them, those whose weight gradients are put off (zero bubble)."""

    @property
    def num_layers(self) -> Num:
        """Layers of all kinds."""
        return sum(self.layers[1:], self.layers[0])

    def at(self, plan: Layout, number: Num) -> "Stage":
        """Return the stage with the micro-batches that one at this place holds."""
        return self._replace(held=plan.in_flight(number), waiting=plan.put_off(number))


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
    return stage.at(inputs.plan, number)


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
