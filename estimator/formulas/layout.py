"""Where a plan puts the work: degrees, ranks, layers of a stage, micro-batches in flight, as numbers or arrays.

Ranks are laid over the devices tensor parallel first, then context, data, and stages last. Context-parallel ranks hold
the same parameters, so that the replicas of a parameter are the data- and the context-parallel ranks together.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.work.plan import RECOMPUTATIONS, SCHEDULES, Plan, PlanFields, Plans
from estimator.work.shape import Shape


class StageLayers(NamedTuple):
    """A number for the first stage of a pipeline, for each between, and for the last; one stage alone is the first."""

    first: Array
    middle: Array
    last: Array


class KindLayers(NamedTuple):
    """Layers of one kind of a model on each kind of stage."""

    kind: Shape
    layers: StageLayers
    repeated: StageLayers
    """Of them, those that recomputation concerns."""


@dataclass(frozen=True, kw_only=True)
class Layout(PlanFields[Array, Array, Array]):
    """What the formulas take of plans: their arrays, which broadcast against each other, and what the machine adds."""

    dp: Array
    devices_per_node: int
    stalls: Num = False
    """Small collectives wait on this machine."""

    def follows(self, schedule: str) -> Array:
        """Whether the pipeline follows a schedule."""
        return np.asarray(np.equal(self.schedule, SCHEDULES.index(schedule)))

    def recomputes(self, recomputation: str) -> Array:
        """Whether the backward pass recomputes in this way."""
        return np.asarray(np.equal(self.recomputation, RECOMPUTATIONS.index(recomputation)))

    @cached_property
    def replicas(self) -> Array:
        """Ranks that hold the same parameters."""
        return self.dp * self.cp

    @cached_property
    def tensor_parallel_hops(self) -> Array:
        """Hops of an all-reduce's ring over a tensor-parallel group that leaves the node; 0 where it does not."""
        ways = self.tp
        return np.where(ways > self.devices_per_node, 2.0 * (ways - 1), 0.0)

    @cached_property
    def shard_ranks(self) -> Array:
        """Ranks over which ZeRO spreads what it shards: all replicas, or those of a node."""
        within = np.clip(self.devices_per_node // self.tp, 1, self.replicas)
        return np.where(self.shard_within_node, within, self.replicas)

    @cached_property
    def expert_shard_ranks(self) -> Array:
        """The same for the parameters of experts, which fewer ranks hold."""
        return np.asarray(np.maximum(self.shard_ranks // self.ep, 1))

    @cached_property
    def sequence_ways(self) -> Array:
        """Parts into which tensor parallelism splits what every of its ranks would hold whole: norms, layer inputs."""
        return np.where(self.sequence_parallel, self.tp, 1)

    def stage_layers(self, num_layers: int) -> StageLayers:
        """Layers of the first, of a middle and of the last stage."""
        stages = np.asarray(self.num_stages, dtype=np.float64)
        even = num_layers / stages
        uneven = self.first_layers > 0
        middle = (num_layers - self.first_layers - self.last_layers) / np.maximum(stages - 2, 1)
        return StageLayers(
            np.where(uneven, self.first_layers, even),
            np.where(uneven, middle, even),
            np.where(uneven, self.last_layers, even),
        )

    def kind_layers(self, shape: Shape) -> tuple["KindLayers", ...]:
        """Layers of each kind of a model in the first, in the mean middle and in the last stage.

        Exact for the first and the last stage, as the order of the layers is known; those between are counted together.
        Recomputation concerns the same part of each kind.
        """
        layers = self.stage_layers(shape.num_layers)
        repeated = StageLayers(*map(self.repeated_layers, layers))
        if not shape.parts:
            return (KindLayers(shape, layers, repeated),)
        found = []
        for i, kind in enumerate(shape.kinds):
            before = np.concatenate([[0.0], np.cumsum(np.equal(shape.order, i), dtype=np.float64)])
            first, last = self._of_kind(before, layers.first), self._of_kind(before[-1] - before[::-1], layers.last)
            between = np.maximum(kind.num_layers - first - last, 0.0) / np.maximum(self.num_stages - 2, 1)
            own = StageLayers(first, between, last)
            shares = (each / np.where(np.equal(total, 0), 1.0, total) for each, total in zip(own, layers, strict=True))
            found.append(KindLayers(kind, own, StageLayers(*(r * s for r, s in zip(repeated, shares, strict=True)))))
        return tuple(found)

    def _of_kind(self, before: Array, layers: Array) -> Array:
        """Layers of a kind in the stage at one end, given how many of it lie before each layer from that end.

        Of an interleaved schedule it holds a chunk of every round of the stages.
        """
        chunk, at, found = layers / self.virtual_stages, np.arange(len(before)), np.zeros(())
        for i in range(int(np.max(self.virtual_stages))):
            begin = i * self.num_stages * chunk
            inside = np.interp(begin + chunk, at, before) - np.interp(begin, at, before)
            found = found + np.where(i < self.virtual_stages, inside, 0.0)
        return np.asarray(found)

    def repeated_layers(self, layers: Num) -> Array:
        """Layers of a stage of so many that recomputation concerns: all, or as many as the plan says."""
        return np.where(self.recomputed_layers > 0, np.minimum(self.recomputed_layers, layers), layers)

    def over_stages(self, each: StageLayers) -> Array:
        """Return the sum over all stages of a quantity."""
        stages = self.num_stages
        return np.where(stages == 1, each.first, each.first + each.last + np.maximum(stages - 2, 0) * each.middle)

    def most_of_stages(self, each: StageLayers) -> Array:
        """Return the largest of all stages of a quantity."""
        stages = self.num_stages
        between = np.where(stages > 2, each.middle, 0.0)
        return np.where(stages == 1, each.first, np.maximum(np.maximum(each.first, each.last), between))

    def _in_flight_terms(self) -> tuple[Array, Array, Array]:
        """Slope, offset and cap of the chunks that a stage holds, in its distance from the last stage.

        min(slope * (p - 1 - i) + offset, cap) on stage i of p: GPipe m; 1F1B min(p - i, m); interleaved
        min(2 (p - 1 - i) + (v - 1) p + 1, m v), chunks of 1/v of a stage (Narayanan et al. 2021, arXiv:2104.04473,
        section 2.2); zero bubble min(p, m), as the i weight gradients that stage i puts off need what their layers were
        fed (Qi et al. 2023, arXiv:2401.10241, Table 2: ZB-H1 holds p M_B at most). A stage that is alone runs a
        micro-batch backward right after it ran forward, whatever the schedule.
        """
        gpipe, interleaved = self.follows("gpipe") & (self.num_stages > 1), self.follows("interleaved")
        zero_bubble = self.follows("zero_bubble")
        micro_batches, virtual = self.num_micro_batches, self.virtual_stages
        slope = np.where(gpipe | zero_bubble, 0, np.where(interleaved, 2, 1))
        offset = np.where(interleaved, (virtual - 1) * self.num_stages + 1, 1)
        offset = np.where(gpipe, micro_batches, np.where(zero_bubble, self.num_stages, offset))
        return slope, np.minimum(offset, micro_batches * virtual), micro_batches * virtual

    def in_flight(self, stage: Num) -> Array:
        """Micro-batches whose activations a stage holds at most, chunks of an interleaved one as parts of one.

        >>> plan = layout(Plan(num_stages=4, num_micro_batches=8), num_devices=4, devices_per_node=4)
        >>> [int(plan.in_flight(i).item()) for i in range(4)]
        [4, 3, 2, 1]
        """
        slope, offset, cap = self._in_flight_terms()
        return np.asarray(np.minimum(slope * (self.num_stages - 1 - stage) + offset, cap) / self.virtual_stages)

    def put_off(self, stage: Num) -> Array:
        """Micro-batches whose weight gradients a stage puts off at once: i on stage i of zero bubble, else none.

        (Qi et al. 2023, arXiv:2401.10241, section 2.1: ZB-H1)
        """
        return np.where(self.follows("zero_bubble"), np.minimum(stage, self.num_micro_batches - 1), 0)

    def mean_in_flight_between(self) -> Array:
        """Mean of `in_flight` over the stages between the first and the last; 0 where there are none.

        With j = p - 1 - i: sum over j = 1 .. p - 2 of min(s j + a, c) = s J (J + 1) / 2 + a J + (p - 2 - J) c, J the
        stages below the cap.
        """
        slope, offset, cap = self._in_flight_terms()
        between = np.maximum(self.num_stages - 2, 0)
        below = np.where(slope == 0, between, np.clip((cap - offset) // np.maximum(slope, 1), 0, between))
        total = slope * below * (below + 1) / 2 + offset * below + (between - below) * cap
        return np.where(between > 0, total / np.maximum(between, 1) / self.virtual_stages, 0.0)


def layout(plans: Plan | Plans, num_devices: int, devices_per_node: int) -> Layout:
    """Return what the formulas take of one plan, or of many; what divides nowhere has one data-parallel rank."""
    many = Plans.of([plans]) if isinstance(plans, Plan) else plans
    dp = np.maximum(many.data_parallel(num_devices), 1)
    return Layout(**many.arrays, dp=dp, devices_per_node=devices_per_node)


def balanced(plan: Layout, shape: Shape) -> Layout:
    """Return a plan whose trainer divides the layers, whatever the plan says of them.

    As nanotron does (src/nanotron/models/base.py, `build_model`): the cost of a layer is its weights, 4 q h + 3 f h,
    that of the vocabulary projection V h, and stage i ends with the first layer at which the cost so far exceeds
    (i + 1) / p of the whole. What lies between the first and the last stage counts as divided equally.

    >>> from estimator.work.shape import load_shape
    >>> plan = balanced(layout(Plan(num_stages=4, num_micro_batches=8), 4, 4), load_shape("meta-llama/Meta-Llama-3-8B"))
    >>> [float(layers.item()) for layers in plan.stage_layers(32)]
    [9.0, 8.5, 6.0]
    """
    layer = (4 * shape.q_size + 3 * shape.ffn_size) * shape.hidden_size
    total = shape.num_layers * layer + shape.vocab_size * shape.hidden_size
    stages = plan.num_stages
    before_last = np.ceil(total * (stages - 1) / (stages * layer))
    last = np.clip(shape.num_layers - before_last, 0, None)
    first = np.where(stages == 2, shape.num_layers - last, np.ceil(total / (stages * layer)))
    first = np.minimum(first, shape.num_layers - last)
    return replace(
        plan,
        first_layers=np.where(stages > 1, first, 0),
        last_layers=np.where(stages > 1, last, 0),
    )
