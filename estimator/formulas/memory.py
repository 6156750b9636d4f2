"""Bytes that a device holds, by purpose and by pipeline stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num, total
from estimator.formulas import fully_sharded, sharded_pipeline
from estimator.formulas.activations import activation_bytes, loss_bytes, workspace_bytes
from estimator.formulas.counts import layer_matmuls
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import StageLayers
from estimator.formulas.offload import most_offloaded_bytes
from estimator.formulas.optimizers import end_state_bytes, largest_tensor, optimizer_state_bytes
from estimator.formulas.stages import Stage, fullest_rank, largest_layer, rank_parameters, stages_of
from estimator.stack.efficiencies import Efficiencies


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
    gradients = trained.bytes_of(habits.gradient_bytes, plan, shards_gradients)
    if habits.updates_in_backward:
        gradients = largest_tensor(shape, plan, stage) * habits.gradient_bytes
    return {
        "weights": weights,
        "master_weights": on_device * trained.bytes_of(habits.master_bytes, plan, zero >= 1),
        "optimizer": on_device * optimizer_state_bytes(inputs, stage) * (not habits.pages_optimizer),
        "gradients": gradients,
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
    logits = np.asarray(stage.has_head) * loss_bytes(inputs, stage.held) * efficiencies.loss_ratio
    state = state_bytes(inputs, stage)
    come_late = (inputs.plan.num_micro_batches == 1) & (not habits.keeps_gradients) & (not habits.updates_in_backward)
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
        "workspace": workspace_bytes(inputs, efficiencies, stage.held) + unpacked_bytes(inputs),
    }
    return StageBytes((parts,), {}, total(state.values()))


def unpacked_bytes(inputs: StepInputs) -> Array:
    """Bytes of a quantized matrix as it is turned into the precision of products, of the largest; 0 without.

    One at a time, forward and backward (bitsandbytes 0.50, autograd/_functions.py, `MatMul4Bit`, `MatMul8bitLt`).
    """
    shape, plan, habits = inputs.shape, inputs.plan, inputs.habits
    if not shape.lora_rank or habits.frozen_weight_bytes is None:
        return np.zeros(())
    each = [
        m.in_size * m.out_size * m.num_copies / (plan.ep if m.num_copies > 1 else 1)
        for kind in shape.kinds
        for m in layer_matmuls(kind)
    ]
    return np.asarray(np.maximum.reduce(np.broadcast_arrays(*each)) * habits.weight_bytes / plan.tp)


def _fully_sharded_bytes(inputs: StepInputs, efficiencies: Efficiencies, stage: Stage) -> StageBytes:
    """Return the same of a trainer whose parameters are sharded as FSDP2 does: of the fullest of a step's moments."""
    habits, how = inputs.habits, fully_sharded.sharding_of(inputs)
    params = fully_sharded.units_of(inputs, stage).all
    kept_weights = params * (0.0 if habits.master_bytes else habits.weight_bytes) / how.ranks
    master_weights = params * habits.master_bytes / how.ranks
    optimizer = state_bytes(inputs, stage)["optimizer"]
    certain = total((master_weights, kept_weights, optimizer, how.gradient * params / how.ranks))
    always = {
        "weights": kept_weights,
        "master_weights": master_weights,
        "optimizer": optimizer,
        "communication_buffers": sharded_pipeline.between_stages(inputs, stage).buffers,
        "attention_workspace": np.zeros(()),
        "workspace": workspace_bytes(inputs, efficiencies, stage.held),
    }
    return StageBytes(sharded_pipeline.moments_of(inputs, efficiencies, stage), always, certain)


class Memory(NamedTuple):
    """Memory of a plan's stages, in bytes per device, and the stack's corrections of it."""

    first: StageBytes
    between: StageBytes
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
        return np.maximum(self.held(self.first), np.maximum(self.held(self.between), self.held(self.last)))

    @property
    def first_bytes(self) -> Array:
        """Bytes of a device of the first stage."""
        return self.held(self.first)

    @property
    def certain_bytes(self) -> Array:
        """Bytes of the stage with most of what is certain."""
        return np.maximum(self.first.certain, np.maximum(self.between.certain, self.last.certain))

    @property
    def peak(self) -> dict[str, Array]:
        """Bytes of the fullest device, by purpose; `correction` is what the fit adds."""
        first, between, last = self.held(self.first), self.held(self.between), self.held(self.last)
        is_first, is_between = (first >= last) & (first >= between), between >= last
        peak = {
            name: np.where(is_first, part, np.where(is_between, self.between.parts[name], self.last.parts[name]))
            for name, part in self.first.parts.items()
        }
        peak["correction"] = np.asarray(self.peak_bytes - sum(peak.values()))
        return peak


def plan_memory(inputs: StepInputs, efficiencies: Efficiencies) -> Memory:
    """Memory of the stages that can be the fullest.

    The first stage holds the embedding and the most micro-batches in flight, the last one the logits; of those between,
    equal in layers, the second holds the most, or the second last, where the most weight gradients are put off.
    """
    plan, efficiencies = inputs.plan, efficiencies.on(inputs.machine.accelerator)
    first, between, last = stages_of(inputs.shape, plan)
    fullest = np.where(plan.follows("zero_bubble"), np.maximum(plan.num_stages - 2, 1), 1)
    return Memory(
        first=stage_bytes(inputs, efficiencies, first.at(plan, 0)),
        between=stage_bytes(inputs, efficiencies, between.at(plan, fullest)).only_where(plan.num_stages > 2),
        last=stage_bytes(inputs, efficiencies, last.at(plan, plan.num_stages - 1)),
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
    first, between, last = stages_of(inputs.shape, plan)
    mean = between.at(plan, (plan.num_stages - 1) / 2)._replace(held=plan.mean_in_flight_between())
    stages = first.at(plan, 0), mean, last.at(plan, plan.num_stages - 1)
    held = (each(stage_bytes(inputs, efficiencies, stage)) for stage in stages)
    return np.asarray(plan.over_stages(StageLayers(*held)) * plan.replicas * plan.tp)


def host_bytes(inputs: StepInputs, efficiencies: Efficiencies) -> Array:
    """Bytes that the host of a node holds for its devices: of their optimizers where they are offloaded, activations.

    Where state is paged, what all of it would take there; 0 where the host is not known.
    """
    shape, _, plan, machine, habits = inputs
    fullest, is_sharded = fullest_rank(shape, plan, trained=True), plan.zero_stage >= 1
    state = fullest.bytes_of(habits.master_bytes + habits.optimizer_bytes, plan, is_sharded)
    if habits.end_optimizer_bytes is not None:
        state = state + np.maximum.reduce([end_state_bytes(inputs, stage) for stage in stages_of(shape, plan)])
    held = plan.offload_optimizer * state
    if habits.pages_optimizer and machine.node.host is not None:
        held = np.maximum(held, fullest.bytes_of(habits.optimizer_bytes, plan, is_sharded))
    if habits.offloads_activations:
        held = held + most_offloaded_bytes(inputs, efficiencies)
    return held * plan.devices_per_node
