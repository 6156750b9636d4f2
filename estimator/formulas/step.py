"""The step in closed form: what its parts take, from `counts`, `compute`, `collectives` and `launch`, and their sum."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num, total
from estimator.formulas.activations import chunks_loss
from estimator.formulas.attention import attention_passes
from estimator.formulas.collectives import (
    context_parallel_seconds,
    data_parallel_seconds,
    expert_parallel_seconds,
    stage_transfer_seconds,
    tensor_parallel_seconds,
)
from estimator.formulas.compute import Passes, Rates, matmul_passes, merge_passes, sustained_rates
from estimator.formulas.counts import adapted, head_matmul, layer_matmuls
from estimator.formulas.fused_loss import fused_loss_traffic_bytes
from estimator.formulas.inputs import StepInputs
from estimator.formulas.launch import launch_seconds, stage_launch_seconds
from estimator.formulas.layout import KindLayers, Layout, StageLayers
from estimator.formulas.offload import LINK_EFFICIENCY, waiting_seconds
from estimator.formulas.optimizers import orthogonalization_seconds
from estimator.formulas.stages import RankParameters, Stage, fullest_rank, rank_parameters
from estimator.formulas.traffic import (
    KERNEL_S,
    KERNELS,
    chunked_loss_traffic_bytes,
    executed_traffic,
    loss_traffic_bytes,
)
from estimator.stack.efficiencies import Efficiencies

HOST_MEMORY_EFFICIENCY = 0.5
"""Part of its memory's bandwidth that a host's Adam reaches.  # assumed: a streaming kernel over four arrays"""

UPDATE_EFFICIENCY = 0.8
"""Rate of the optimizer's kernels over that of large passes over activations.

measured: fused AdamW at 2.76 TB/s in 16 bits and 3.19 in 32, norms at 2.3 and 3.3, where large passes reach 3.4 to 3.6
on an H200 (reports/measured/h200/other_ops.jsonl)
"""


class Layer(NamedTuple):
    """Seconds of one layer for one micro-batch on one device, by kind of op."""

    usual: dict[str, Array]
    """Forward and backward."""
    repeated: dict[str, Array]
    """What recomputation repeats, of a layer that it concerns."""
    weight_gradient: Array
    """The part of the usual that no other stage waits for."""


def layer_passes(inputs: StepInputs, rates: Rates) -> list[Passes]:
    """Return the seconds of a layer's products for one micro-batch: those of adapters, then the layer's own in order.

    A frozen matrix has no gradient of its weights, unless an adapter's product is added to it: that has.
    """
    shape, plan, tokens = inputs.shape, inputs.plan, inputs.tokens
    modules = adapted(shape)
    merged = {matmul.name for one in modules if one.is_merged for matmul in one.matrices}
    adapters = [matmul_passes(tokens, m, plan, rates) for one in modules if not one.is_merged for m in one.adapter]
    merges = [merge_passes(one, plan, rates) for one in modules if one.is_merged]
    own = [(m, matmul_passes(tokens, m, plan, rates)) for m in layer_matmuls(shape)]
    is_frozen = shape.lora_rank > 0
    return [*merges, *adapters, *(p.frozen() if is_frozen and m.name not in merged else p for m, p in own)]


def layer_seconds(inputs: StepInputs, efficiencies: Efficiencies, rates: Rates) -> Layer:
    """Return the seconds of one layer, of the only kind of `inputs.shape`, for one micro-batch.

    A context-parallel ring hides behind attention, but for the exposed part of it, and for what is longer.
    """
    shape, plan = inputs.shape, inputs.plan
    exposed, full = efficiencies.exposed_communication, plan.recomputes("full")
    between = full | (plan.recomputes("selective") & inputs.habits.selective_keeps_products)
    passes = layer_passes(inputs, rates)
    repeated = sum(p.forward for p in (passes if shape.repeats_last_product else passes[:-1]))
    forward, backward = attention_passes(inputs, rates)
    elementwise, elementwise_again = elementwise_seconds(inputs, rates)
    all_reduce_s = tensor_parallel_seconds(inputs.passed_bytes, plan, inputs.machine, efficiencies.hop_s)
    reduced = efficiencies.tensor_exposure * all_reduce_s
    ring = context_parallel_seconds(inputs)
    experts = expert_parallel_seconds(inputs) if shape.num_experts else np.zeros(())
    usual = {
        "matmul": np.asarray(sum(sum(p) for p in passes)),
        "attention": forward + backward,
        "elementwise": elementwise,
        "tensor_parallel": 2.0 * shape.num_blocks * reduced,
        "context_parallel": np.maximum(exposed * ring, ring - (forward + backward)),
        "expert_parallel": 2.0 * experts,
    }
    again = {
        "matmul": full * repeated,
        "attention": inputs.repeats_attention * forward,
        "elementwise": between * elementwise_again,
        "tensor_parallel": full * reduced * (shape.num_blocks - (not shape.repeats_last_product)),
        "context_parallel": full * (exposed / 3.0 * ring),
        "expert_parallel": full * experts,
    }
    return Layer(usual, again, np.asarray(sum(p.weight_gradient for p in passes)))


class KindLayer(NamedTuple):
    """The seconds of a layer of one kind, and how many of it the stages have."""

    layer: Layer
    counts: KindLayers


def layers_seconds(inputs: StepInputs, efficiencies: Efficiencies, rates: Rates) -> list[KindLayer]:
    """Return the seconds of one layer of each kind for one micro-batch, and where the layers are."""
    return [
        KindLayer(layer_seconds(inputs._replace(shape=counts.kind), efficiencies, rates), counts)
        for counts in inputs.plan.kind_layers(inputs.shape)
    ]


def elementwise_seconds(inputs: StepInputs, rates: Rates) -> tuple[Array, Array]:
    """Seconds of a layer's ops beside its products: forward and backward, and those of a repeated forward pass.

    Quantized weights are also turned into 16 bits in each of the two passes: read, and written.
    """
    shape, _, plan, _, habits = inputs
    whole, inside = executed_traffic(shape, habits)
    per_byte, starts = inputs.tokens / rates.bytes_per_s, KERNELS[habits.execution]
    both = per_byte * (sum(whole) / plan.sequence_ways + sum(inside) / plan.tp) + KERNEL_S * sum(starts)
    forward = per_byte * (whole.forward / plan.sequence_ways + inside.forward / plan.tp) + KERNEL_S * starts.forward
    if shape.lora_rank and habits.frozen_weight_bytes is not None:
        unpacked_bytes = sum(rank_parameters(shape, plan, Stage((1,)))) * (habits.frozen_weight_bytes + 2.0)
        both = both + 2.0 * (unpacked_bytes / rates.bytes_per_s)
        forward = forward + unpacked_bytes / rates.bytes_per_s
    return both, forward


class Ends(NamedTuple):
    """Seconds per micro-batch of what the first and the last stage do beside their layers."""

    embedding: Array
    head: Array
    loss: Array
    reduced: Array
    """An all-reduce over the tensor-parallel ranks, one at either end."""


def end_seconds(inputs: StepInputs, efficiencies: Efficiencies, rates: Rates) -> Ends:
    """Return the seconds per micro-batch of the embedding, of the vocabulary projection, and of the loss."""
    shape, _, plan, machine, habits = inputs
    tokens = inputs.tokens
    embedding = 4.0 * habits.activation_bytes * shape.hidden_size * tokens / plan.tp / rates.bytes_per_s
    usual = rates._replace(weights_flop_per_s=rates.flop_per_s, precision=rates.usual_precision)
    passes = matmul_passes(tokens, head_matmul(shape), plan, usual)
    head = sum(passes.frozen() if shape.lora_rank else passes)
    moved: Num = loss_traffic_bytes(habits)
    if habits.fused_loss:
        moved = np.where(chunks_loss(plan), fused_loss_traffic_bytes(habits.activation_bytes), moved)
    elif habits.chunked_logits:
        moved = np.where(chunks_loss(plan), chunked_loss_traffic_bytes(habits), moved)
    loss = moved * tokens * shape.vocab_size / plan.tp / rates.bytes_per_s
    reduced = tensor_parallel_seconds(inputs.passed_bytes, plan, machine, efficiencies.hop_s)
    return Ends(embedding, np.asarray(head), loss, reduced)


def pipeline_seconds(stage: StageLayers, plan: Layout, weight_gradient: Num = 0.0) -> Array:
    """Seconds of all micro-batches through the pipeline, given those of one on each kind of stage.

    m max_i t_i + c (sum_i t_i - max_i t_i), t_i forward and backward of stage i, exact for equal stages, where it is
    (m + c (p - 1)) t. The share c of the others that fills and drains the pipeline: GPipe and 1F1B 1 (Narayanan et al.
    2021, arXiv:2104.04473, section 2.2.1), interleaved 1/v (section 2.2.2), zero bubble (f + b - w) / t, w the weight
    gradient, `weight_gradient` of t (Qi et al. 2023, arXiv:2401.10241, Table 2, ZB-H1). Of uneven stages a schedule
    simulated pass by pass takes no longer, interleaved at most a tenth longer.
    """
    total, slowest = plan.over_stages(stage), plan.most_of_stages(stage)
    zero_bubble = np.maximum(1.0 - 2.0 * np.asarray(weight_gradient), 0.0)
    fills = np.where(plan.follows("zero_bubble"), zero_bubble, 1.0 / plan.virtual_stages)
    return np.asarray(plan.num_micro_batches * slowest + fills * (total - slowest))


def gradient_pass_seconds(inputs: StepInputs, trained: RankParameters, rates: Rates) -> Array:
    """Seconds per micro-batch of adding its gradients to those of the ones before, on the rank with most of them."""
    plan, habits = inputs.plan, inputs.habits
    passes = 2.0 if habits.fuses_accumulation else 3.0  # the sum read and written; apart, the new gradient read too
    return np.asarray(passes * habits.gradient_bytes * sum(trained) * (plan.num_micro_batches > 1) / rates.bytes_per_s)


def effective(efficiencies: Efficiencies, inputs: StepInputs) -> Efficiencies:
    """Return efficiencies as they hold on the device, and of a stack that may run no collective beside computation.

    Then all of their seconds are exposed; what took longer than its seconds still does.
    """
    efficiencies = efficiencies.on(inputs.machine.accelerator)
    if inputs.habits.overlaps_communication:
        return efficiencies
    sharded = np.asarray(efficiencies.exposed_communication) * efficiencies.sharded_exposure
    return efficiencies._replace(
        exposed_communication=1.0,
        tensor_exposure=np.maximum(efficiencies.tensor_exposure, 1.0),
        sharded_exposure=np.maximum(sharded, 1.0),
        message_exposure=np.maximum(efficiencies.message_exposure, 1.0),
    )


class StepTime(NamedTuple):
    """One optimizer step: seconds by purpose, which add up, and how long the host launches work for it."""

    breakdown: dict[str, Array]
    """Mean seconds of a device, by purpose; `pipeline_bubble` is its wait for other stages."""
    launch_s: Array
    """Mean seconds that the host takes to launch the step's work."""

    @property
    def seconds(self) -> Array:
        """Seconds of a step."""
        return total(self.breakdown.values())


class DeviceTime(NamedTuple):
    """Seconds of a device in a step."""

    breakdown: dict[str, Array]
    """By purpose, adding up; `pipeline_bubble` is its wait for other stages."""
    stage: StageLayers
    """Of one micro-batch on each kind of stage."""
    pipeline: Array
    """Of all micro-batches through the pipeline."""
    weight_gradient: Array
    """Part of those that no other stage waits for."""


def device_time(inputs: StepInputs, efficiencies: Efficiencies) -> DeviceTime:
    """Return the seconds of a device in a step, whatever its host takes."""
    shape, _, plan, machine, habits = inputs
    rates = sustained_rates(machine.accelerator, efficiencies, habits.matmul_precision)
    layers, ends = layers_seconds(inputs, efficiencies, rates), end_seconds(inputs, efficiencies, rates)
    trained = fullest_rank(shape, plan, trained=True)
    gradient_pass = gradient_pass_seconds(inputs, trained, rates)
    both = [(sum(layer.usual.values()), sum(layer.repeated.values()), counts) for layer, counts in layers]
    opening, closing = ends.embedding + ends.reduced, ends.head + ends.loss + ends.reduced
    first, middle, last = (
        sum(counts.layers[i] * usual + counts.repeated[i] * again for usual, again, counts in both) + gradient_pass
        for i in range(3)
    )
    stage = StageLayers(first + opening + (plan.num_stages == 1) * closing, middle, last + closing)
    weight_gradient = weight_gradient_share(layers)
    pipeline = pipeline_seconds(stage, plan, weight_gradient)
    busy = busy_seconds(inputs, layers, ends, gradient_pass)
    exposed = efficiencies.exposed_communication
    sharded = np.where(plan.zero_stage > 0, efficiencies.sharded_exposure, 1.0)
    breakdown = busy | {
        "pipeline_bubble": np.maximum(pipeline - sum(busy.values()), 0.0),  # never less, but for rounding
        "stage_transfer": exposed * stage_transfer_seconds(inputs),
        "data_parallel": exposed * sharded * data_parallel_seconds(inputs, efficiencies.message_exposure),
        **update_seconds(inputs, trained, rates),
    }
    if habits.offloads_activations:
        breakdown["offload"] = breakdown["offload"] + waiting_seconds(inputs, efficiencies, total(busy.values()))
    return DeviceTime(breakdown, stage, pipeline, weight_gradient)


def plan_step(inputs: StepInputs, efficiencies: Efficiencies, steps_per_read: int = 1) -> StepTime:
    """Return the time of one step of a plan, or of many.

    A single controller launches a step before the devices run it. Where each device has its host, a stage takes for a
    micro-batch as long as the slower of both.

    Args:
        inputs: plans, a model, a machine and habits.
        efficiencies: numbers, or arrays of shape (samples, 1) that broadcast against the plans.
        steps_per_read: the loop reads the loss, and so waits for the devices, once in so many steps.
    """
    plan, habits = inputs.plan, inputs.habits
    efficiencies = effective(efficiencies, inputs)
    factor, device = efficiencies.family_factor, device_time(inputs, efficiencies)
    breakdown = {name: np.asarray(seconds * factor) for name, seconds in device.breakdown.items()}
    launched = stage_launch_seconds(inputs, efficiencies)
    launch = launch_seconds(inputs, efficiencies, launched)
    if habits.single_controller:
        # it launches before the devices run; only until the next read of the loss does it run ahead
        host = launch
        if steps_per_read > 1:
            hidden = np.maximum(launch - total(breakdown.values()), 0.0)
            host = (launch + (steps_per_read - 1) * hidden) / steps_per_read
    else:
        waits = host_waits(device, factor, launched, plan, efficiencies.host_fill)
        host = np.maximum(waits, 0.0) + efficiencies.launch_s_per_step
    return StepTime({**breakdown, "host": np.asarray(host)}, launch)


def host_waits(device: DeviceTime, factor: Num, launched: StageLayers, plan: Layout, fill: Num) -> Array:
    """Seconds that a step takes longer where a stage takes for a micro-batch as long as the slower of host and device.

    Full of micro-batches, a pipeline waits for its slowest host at each of them. While it fills and drains a host has
    nothing to wait for but data, and may launch ahead of them: of those waits `fill` counts, 1 where it never does.
    """
    stages = StageLayers(*(np.asarray(factor * seconds) for seconds in device.stage))
    slower = StageLayers(*map(np.maximum, stages, launched))
    whole = pipeline_seconds(slower, plan, device.weight_gradient) - factor * device.pipeline
    steady = plan.num_micro_batches * (plan.most_of_stages(slower) - plan.most_of_stages(stages))
    return np.asarray(steady + fill * (whole - steady))


def weight_gradient_share(layers: Sequence[KindLayer]) -> Array:
    """Part of the layers' seconds that no other stage waits for."""
    num_layers = sum(counts.kind.num_layers for _, counts in layers)
    parts = [(counts.kind.num_layers / num_layers, layer) for layer, counts in layers]
    gradient = sum(part * layer.weight_gradient for part, layer in parts)
    both = ((part, sum(layer.usual.values()) + sum(layer.repeated.values())) for part, layer in parts)
    return np.asarray(gradient / sum(part * seconds for part, seconds in both))


def busy_seconds(inputs: StepInputs, layers: Sequence[KindLayer], ends: Ends, gradient_pass: Num) -> dict[str, Array]:
    """Mean seconds of a device in a step's micro-batches, by purpose, waits for other stages not among them."""
    plan = inputs.plan
    per_device = plan.num_micro_batches / plan.num_stages
    repeated = [plan.over_stages(counts.repeated) for _, counts in layers]
    busy = {
        name: per_device
        * sum(
            counts.kind.num_layers * layer.usual[name] + again * layer.repeated[name]
            for (layer, counts), again in zip(layers, repeated, strict=True)
        )
        for name in layers[0].layer.usual
    }
    busy["matmul"] = busy["matmul"] + per_device * ends.head
    at_ends = ends.embedding + ends.loss + plan.num_stages * gradient_pass
    busy["elementwise"] = busy["elementwise"] + per_device * at_ends
    busy["tensor_parallel"] = busy["tensor_parallel"] + per_device * 2.0 * ends.reduced
    return busy


def update_seconds(inputs: StepInputs, trained: RankParameters, rates: Rates) -> dict[str, Array]:
    """Seconds of a rank's update: gradients read, and once before for their norm; the rest read and written.

    That is master weights and state, and the compute copy, which is only written where there are master weights.
    Offloaded, the host does it with its own memory, and gradients and compute copy travel between (Ren et al. 2021,
    arXiv:2101.06840, section 4).
    """
    _, _, plan, machine, habits = inputs
    weights = habits.weight_bytes * (1 if habits.master_bytes else 2) + 2 * habits.master_bytes
    reads = 1 if habits.updates_in_backward else 2  # then there is no norm of all gradients
    moved = reads * habits.gradient_bytes + weights + 2 * habits.optimizer_bytes
    is_sharded, offload = plan.zero_stage >= 1, plan.offload_optimizer
    updated = trained.bytes_of(moved, plan, is_sharded)
    on_device, host = updated / (UPDATE_EFFICIENCY * rates.bytes_per_s), machine.node.host
    if habits.orthogonalizes:
        on_device = on_device + orthogonalization_seconds(inputs, rates)
    if host is None:
        return {"optimizer": np.asarray(on_device)}
    on_host = updated / (HOST_MEMORY_EFFICIENCY * host.bytes_per_s / machine.devices_per_node)
    travels = trained.bytes_of(habits.gradient_bytes + habits.weight_bytes, plan, is_sharded)
    link = LINK_EFFICIENCY * host.link_bytes_per_s
    return {"optimizer": np.where(offload, on_host, on_device), "offload": offload * travels / link}
