"""The step in closed form: what its parts take, from `counts`, `compute`, `collectives` and `host`, and their sum."""

from typing import NamedTuple

import numpy as np

from estimator.collectives import data_parallel_seconds, stage_transfer_seconds, tensor_parallel_seconds
from estimator.compute import Rates, attention_passes, matmul_passes, sustained_rates
from estimator.counts import (
    LOSS_TRAFFIC_BYTES,
    Array,
    Num,
    head_matmul,
    layer_matmuls,
    layer_traffic,
    stage_parameters,
)
from estimator.host import issue_seconds
from estimator.machine import Machine
from estimator.memory import Layout, sharded_bytes
from estimator.shape import Shape
from estimator.stack import Efficiencies, Habits


def layer_seconds(
    shape: Shape, seq_len: Num, plan: Layout, machine: Machine, habits: Habits, rates: Rates
) -> dict[str, Array]:
    """Seconds of one layer's forward and backward pass of one micro-batch on one device, by kind of op."""
    tokens = np.asarray(plan.rows) * float(seq_len)
    passes = [matmul_passes(tokens, m, plan.tp, rates) for m in layer_matmuls(shape)]
    repeated = sum(forward for forward, _ in (passes if shape.repeats_last_product else passes[:-1]))
    fused = habits.fuses_attention(shape)
    forward, backward = attention_passes(tokens, seq_len, shape, plan.tp, rates, fused=fused)
    traffic = layer_traffic(shape, habits.activation_bytes)
    per_rank = tokens / plan.tp / rates.bytes_per_s
    message = tokens * shape.hidden_size * habits.activation_bytes
    reduced = tensor_parallel_seconds(message, plan, machine)
    return {
        "matmul": np.asarray(sum(f + b for f, b in passes) + plan.repeats_layer * repeated),
        "attention": forward * (1 + plan.repeats_attention(fused=fused)) + backward,
        "elementwise": per_rank * (traffic.forward * (1 + plan.repeats_layer) + traffic.backward),
        "tensor_parallel": reduced * (4 + plan.repeats_layer * (2 if shape.repeats_last_product else 1)),
    }


def end_seconds(shape: Shape, seq_len: Num, plan: Layout, habits: Habits, rates: Rates) -> tuple[Array, Array, Array]:
    """Seconds per micro-batch of the embedding, of the vocabulary projection, and of the loss, on one device."""
    tokens = np.asarray(plan.rows) * float(seq_len)
    embedding = 4.0 * habits.activation_bytes * shape.hidden_size * tokens / plan.tp / rates.bytes_per_s
    forward, backward = matmul_passes(tokens, head_matmul(shape), plan.tp, rates)
    loss = LOSS_TRAFFIC_BYTES * tokens * shape.vocab_size / plan.tp / rates.bytes_per_s
    return embedding, forward + backward, loss


def pipeline_seconds(first: Num, middle: Num, last: Num, stages: Num, micro_batches: Num) -> Array:
    """Seconds of all micro-batches through the pipeline, given those of one on each kind of stage.

    sum_i t_i + (m - 1) max_i t_i, t_i forward and backward of stage i: for equal stages (m + p - 1) t, with GPipe and
    with 1F1B alike (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1). With one stage, `last` is not counted.

    >>> float(pipeline_seconds(1.0, 1.0, 1.0, stages=4, micro_batches=8))
    11.0
    """
    stages = np.asarray(stages)
    alone = stages == 1
    total = np.where(alone, first, first + last + np.maximum(stages - 2, 0) * middle)
    slowest = np.where(alone, first, np.maximum(np.maximum(first, last), np.where(stages > 2, middle, 0.0)))
    return np.asarray(total + (np.asarray(micro_batches) - 1) * slowest)


class Step(NamedTuple):
    """One optimizer step: seconds by purpose, which add up, and how long the host issues work for it."""

    breakdown: dict[str, Array]
    """Mean seconds of a device, by purpose; `pipeline_bubble` is its wait for other stages."""
    issue_s: Array
    """Mean seconds that the host takes to issue the step's work."""

    @property
    def seconds(self) -> Array:
        """Seconds of a step."""
        return np.asarray(sum(self.breakdown.values()))


def plan_step(
    shape: Shape,
    seq_len: Num,
    plan: Layout,
    machine: Machine,
    habits: Habits,
    efficiencies: Efficiencies,
    steps_per_read: int = 1,
) -> Step:
    """Return the time of one step of a plan, or of many.

    Args:
        shape: the model.
        seq_len: tokens per row.
        plan: degrees and counts, shape () or (plans,).
        machine: devices, links and network.
        habits: how the stack works.
        efficiencies: numbers, or arrays of shape (samples, 1) that broadcast against the plans.
        steps_per_read: the loop reads the loss, and so waits for the devices, once in so many steps.
    """
    rates = sustained_rates(machine.accelerator, efficiencies)
    stages, micro_batches = np.asarray(plan.stages), np.asarray(plan.micro_batches)
    layers = shape.num_layers / stages
    per_layer = layer_seconds(shape, seq_len, plan, machine, habits, rates)
    embedding, head, loss = end_seconds(shape, seq_len, plan, habits, rates)
    params = _stage_params(shape, plan)
    gradient_pass = 3.0 * habits.gradient_bytes * params * (micro_batches > 1) / rates.bytes_per_s

    middle = layers * sum(per_layer.values()) + gradient_pass
    alone = stages == 1
    ends = head + loss
    work = pipeline_seconds(middle + embedding + alone * ends, middle, middle + ends, stages, micro_batches)
    per_device, exposed = micro_batches / stages, efficiencies.exposed_communication
    busy = {name: per_device * shape.num_layers * seconds for name, seconds in per_layer.items()}
    busy["matmul"] = busy["matmul"] + per_device * head
    busy["elementwise"] = busy["elementwise"] + per_device * (embedding + loss + stages * gradient_pass)
    device = busy | {
        "pipeline_bubble": np.maximum(work - sum(busy.values()), 0.0),  # never less, but for rounding
        "stage_transfer": exposed * stage_transfer_seconds(shape, seq_len, plan, machine, habits),
        "data_parallel": exposed * data_parallel_seconds(params, plan, machine, habits),
        "optimizer": _optimizer(params, plan, habits, rates),
    }
    device = {name: np.asarray(seconds * efficiencies.family_factor) for name, seconds in device.items()}
    issue = issue_seconds(shape, plan, habits, efficiencies)
    total = np.asarray(sum(device.values()))
    hidden = np.maximum(issue - total, 0.0)
    # a single controller issues before the devices run; only until the next read of the loss does it run ahead
    host = (issue + (steps_per_read - 1) * hidden) / steps_per_read if habits.single_controller else hidden
    host, issue, _ = np.broadcast_arrays(host, issue, total)
    return Step({**device, "host": host}, issue)


def _stage_params(shape: Shape, plan: Layout) -> Array:
    """Parameters per tensor-parallel rank of the stage that holds most."""
    stages = np.asarray(plan.stages)
    layers = shape.num_layers / stages
    alone = stages == 1
    first, last = stage_parameters(shape, layers, True, alone), stage_parameters(shape, layers, alone, True)
    return np.maximum(first, last) / plan.tp


def _optimizer(params: Num, plan: Layout, habits: Habits, rates: Rates) -> Array:
    """Seconds of a rank's update: gradient read; master weights and state read and written; compute copy written."""
    moved = habits.gradient_bytes + 2 * (habits.master_bytes + habits.optimizer_bytes) + habits.weight_bytes
    is_sharded = np.asarray(plan.zero_stage) >= 1
    return np.asarray(sharded_bytes(params, moved, plan.dp, is_sharded) / rates.bytes_per_s)
