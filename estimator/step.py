"""The step in closed form: what its parts take, from `counts`, `compute` and `collectives`, and their sum."""

from typing import NamedTuple, Self

import numpy as np

from estimator.collectives import all_reduce_seconds, gather_seconds, transfer_seconds
from estimator.compute import matmul_seconds, roofline_seconds, shape_efficiency
from estimator.counts import (
    LOSS_TRAFFIC_BYTES,
    MATERIALIZED_ATTENTION,
    Array,
    MatMul,
    Num,
    attention_backward_flop,
    attention_flop,
    head_matmul,
    layer_matmuls,
    layer_traffic,
    stage_parameters,
)
from estimator.memory import Layout
from estimator.plan import RECOMPUTATIONS
from estimator.shape import Shape
from estimator.stack import Efficiencies, Habits, Window
from hardware.catalog import Catalog
from hardware.models import Accelerator, Flavor, Node

FUSED_ATTENTION_RATE = {"forward": 0.48, "backward": 0.70}
"""Matrix rate of a fused attention kernel over that of large matrix products in the same training run.

measured: CK flash attention 262 forward and 386 backward TFLOP/s beside products of 490-610 (mean 550) on MI300X,
sequence 8192, head size 128 (AMD-AGI/TraceLens, Hyperloom llama70b_analysis).
"""

SELECTIVE_ISSUE = 1 / 9
"""Issue work of repeating attention, over a layer's forward and backward pass.  # assumed: a third of forward"""


class Machine(NamedTuple):
    """Devices and the nodes that carry them."""

    accelerator: Accelerator
    node: Node
    num_devices: int
    num_nodes: int

    @classmethod
    def of(cls, catalog: Catalog, flavor: Flavor) -> Self:
        """Return the devices of a flavor."""
        node = catalog.node(flavor.node)
        return cls(catalog.accelerator(node.accelerator), node, flavor.num_devices, flavor.num_nodes)


class Rates(NamedTuple):
    """What one device sustains under a stack."""

    flop_per_s: Num
    bytes_per_s: Num
    num_compute_units: int


def sustained_rates(accelerator: Accelerator, efficiencies: Efficiencies) -> Rates:
    """Return a device's sustained rates: peak, times the best measured share of it, times the stack's part of that."""
    best_flop_per_s = accelerator.bf16_flop_per_s * accelerator.matmul_efficiency.value
    best_bytes_per_s = accelerator.hbm_bytes_per_s * accelerator.hbm_efficiency.value
    return Rates(
        best_flop_per_s * efficiencies.matmul_efficiency,
        best_bytes_per_s * efficiencies.memory_efficiency,
        accelerator.num_compute_units,
    )


def _matmul_passes(tokens: Num, matmul: MatMul, tp: Num, rates: Rates) -> tuple[Array, Array]:
    """Seconds of a weight matrix's forward pass, and of its two backward passes, on one tensor-parallel rank."""
    inner = matmul.in_size / (1 if matmul.splits_output else np.asarray(tp))
    columns = matmul.out_size / (np.asarray(tp) if matmul.splits_output else 1)
    rows = np.asarray(tokens) * matmul.num_active / matmul.num_copies

    def seconds(m: Num, n: Num, k: Num) -> Array:
        rate = {"flop_per_s": rates.flop_per_s, "bytes_per_s": rates.bytes_per_s}
        return matmul.num_copies * matmul_seconds(m, n, k, num_compute_units=rates.num_compute_units, **rate)

    return seconds(rows, columns, inner), seconds(rows, inner, columns) + seconds(inner, columns, rows)


def _attention_passes(
    tokens: Num, seq_len: Num, shape: Shape, tp: Num, rates: Rates, *, fused: bool
) -> tuple[Array, Array]:
    """Seconds of one layer's attention, forward and backward, on one tensor-parallel rank.

    Fused, at the rate of fused kernels. Materialized, forward Q K^T and P V, backward dP, dV, dQ, dK as batched
    products of their shapes, and the passes over the scores between them.
    """
    forward_flop = attention_flop(tokens, seq_len, shape, causal=fused) / np.asarray(tp)
    if fused:
        backward_flop = attention_backward_flop(forward_flop, keeps_scores=False)
        rate = {name: share * np.asarray(rates.flop_per_s) for name, share in FUSED_ATTENTION_RATE.items()}
        return forward_flop / rate["forward"], backward_flop / rate["backward"]
    queries = np.asarray(tokens) * shape.num_heads / tp
    onto_scores = shape_efficiency(queries, seq_len, shape.head_dim, rates.num_compute_units)
    from_scores = shape_efficiency(queries, shape.head_dim, seq_len, rates.num_compute_units)
    product_s = forward_flop / 2 / rates.flop_per_s  # each of the two forward products, at the rate of large ones
    score_s = queries * seq_len / rates.bytes_per_s  # one byte of every score through memory
    forward = product_s * (1 / onto_scores + 1 / from_scores) + score_s * MATERIALIZED_ATTENTION.forward
    backward = product_s * (1 / onto_scores + 3 / from_scores) + score_s * MATERIALIZED_ATTENTION.backward
    return forward, backward


def layer_seconds(
    shape: Shape, seq_len: Num, plan: Layout, machine: Machine, habits: Habits, rates: Rates
) -> dict[str, Array]:
    """Seconds of one layer's forward and backward pass of one micro-batch on one device, by kind of op."""
    tokens = np.asarray(plan.rows) * float(seq_len)
    repeats_all = np.asarray(plan.recomputation) == RECOMPUTATIONS.index("full")
    repeats_attention = np.asarray(plan.recomputation) != RECOMPUTATIONS.index("none")
    passes = [_matmul_passes(tokens, m, plan.tp, rates) for m in layer_matmuls(shape)]
    repeated = sum(forward for forward, _ in (passes if shape.repeats_last_product else passes[:-1]))
    fused = habits.fuses_attention(shape)
    forward, backward = _attention_passes(tokens, seq_len, shape, plan.tp, rates, fused=fused)
    traffic = layer_traffic(shape, habits.activation_bytes)
    per_rank = tokens / plan.tp / rates.bytes_per_s
    message = tokens * shape.hidden_size * habits.activation_bytes
    reduced = _tensor_parallel_all_reduce(message, plan, machine)
    return {
        "matmul": np.asarray(sum(f + b for f, b in passes) + repeats_all * repeated),
        "attention": forward * (1 + repeats_attention) + backward,
        "elementwise": per_rank * (traffic.forward * (1 + repeats_all) + traffic.backward),
        "tensor_parallel": reduced * (4 + 2 * repeats_all),
    }


def _tensor_parallel_all_reduce(num_bytes: Num, plan: Layout, machine: Machine) -> Array:
    """Seconds of one all-reduce (or all-gather and reduce-scatter) over a tensor-parallel group."""
    per_node = -(-machine.num_devices // machine.num_nodes)
    nodes = np.ceil(np.asarray(plan.tp) / per_node)
    return all_reduce_seconds(num_bytes, np.ceil(plan.tp / nodes), nodes, machine.node)


def end_seconds(shape: Shape, seq_len: Num, plan: Layout, habits: Habits, rates: Rates) -> tuple[Array, Array, Array]:
    """Seconds per micro-batch of the embedding, of the vocabulary projection, and of the loss, on one device."""
    tokens = np.asarray(plan.rows) * float(seq_len)
    embedding = 4.0 * habits.activation_bytes * shape.hidden_size * tokens / plan.tp / rates.bytes_per_s
    forward, backward = _matmul_passes(tokens, head_matmul(shape), plan.tp, rates)
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
    per_device = micro_batches / stages
    busy = {name: per_device * shape.num_layers * seconds for name, seconds in per_layer.items()}
    busy["matmul"] = busy["matmul"] + per_device * head
    busy["elementwise"] = busy["elementwise"] + per_device * (embedding + loss + stages * gradient_pass)
    device = busy | {
        "pipeline_bubble": work - sum(busy.values()),
        "stage_transfer": _stage_transfers(shape, seq_len, plan, machine, habits) * efficiencies.exposed_communication,
        "data_parallel": _data_parallel(params, plan, machine, habits) * efficiencies.exposed_communication,
        "optimizer": _optimizer(params, plan, habits, rates),
    }
    device = {name: np.asarray(seconds * efficiencies.family_factor) for name, seconds in device.items()}
    issue = issue_seconds(shape, plan, habits, efficiencies)
    total = np.asarray(sum(device.values()))
    hidden = np.maximum(issue - total, 0.0)
    # a single controller issues before the devices run; only until the next read of the loss does it run ahead
    host = (issue + (steps_per_read - 1) * hidden) / steps_per_read if habits.single_controller else hidden
    return Step({**device, "host": np.asarray(host + 0.0 * total)}, np.asarray(issue + 0.0 * total))


def issue_seconds(shape: Shape, plan: Layout, habits: Habits, efficiencies: Efficiencies) -> Array:
    """Mean host seconds to issue a step: a + b * layers * micro-batches, a third more of b with full recomputation."""
    full = np.asarray(plan.recomputation) == RECOMPUTATIONS.index("full")
    selective = np.asarray(plan.recomputation) == RECOMPUTATIONS.index("selective")
    layers = shape.num_layers / (1 if habits.single_controller else np.asarray(plan.stages))
    passes = 1 + full / 3 + selective * SELECTIVE_ISSUE
    return np.asarray(
        efficiencies.issue_s_per_step + efficiencies.issue_s_per_layer * layers * plan.micro_batches * passes
    )


def _stage_params(shape: Shape, plan: Layout) -> Array:
    """Parameters per tensor-parallel rank of the stage that holds most."""
    stages = np.asarray(plan.stages)
    layers = shape.num_layers / stages
    alone = stages == 1
    first, last = stage_parameters(shape, layers, True, alone), stage_parameters(shape, layers, alone, True)
    return np.maximum(first, last) / plan.tp


def _stage_transfers(shape: Shape, seq_len: Num, plan: Layout, machine: Machine, habits: Habits) -> Array:
    """Seconds of sending activations forward and gradients back, for every slot of the pipeline."""
    stages = np.asarray(plan.stages)
    num_bytes = np.asarray(plan.rows) * float(seq_len) * shape.hidden_size * habits.activation_bytes / plan.tp
    per_node = -(-machine.num_devices // machine.num_nodes)
    crosses = machine.num_devices // stages >= per_node
    slots = np.where(stages > 1, np.asarray(plan.micro_batches) + stages - 2, 0)
    return np.asarray(2.0 * slots * transfer_seconds(num_bytes, crosses, machine.node))


def _data_parallel(params: Num, plan: Layout, machine: Machine, habits: Habits) -> Array:
    """Seconds of the collectives that keep data-parallel ranks alike, none of them hidden.

    ZeRO 0 reduces and gathers gradients; 1 and 2 reduce gradients and gather weights; 3 the same where the stack keeps
    gathered weights, else it gathers them for every forward and backward pass (Rajbhandari et al. 2020,
    arXiv:1910.02054, section 7).
    """
    per_node = -(-machine.num_devices // machine.num_nodes)
    dp, micro_batches, zero = np.asarray(plan.dp), np.asarray(plan.micro_batches), np.asarray(plan.zero_stage)
    nodes = np.minimum(dp, np.ceil(dp * plan.tp / per_node))
    members = np.ceil(dp / nodes)
    gradients = gather_seconds(params * habits.gradient_bytes, members, nodes, machine.node)
    weights = gather_seconds(params * habits.weight_bytes, members, nodes, machine.node)
    num_reductions = np.where((zero >= 2) & habits.reduces_every_micro_batch, micro_batches, 1)
    num_gathers = np.where((zero == 3) & (not habits.keeps_weights_gathered), 2 * micro_batches, 1)
    return np.where(zero == 0, 2.0 * gradients, num_reductions * gradients + num_gathers * weights)


def _optimizer(params: Num, plan: Layout, habits: Habits, rates: Rates) -> Array:
    """Seconds of a rank's update: gradient read; master weights and state read and written; compute copy written."""
    shard = params / np.where(np.asarray(plan.zero_stage) >= 1, plan.dp, 1)
    moved = habits.gradient_bytes + 2 * (habits.master_bytes + habits.optimizer_bytes) + habits.weight_bytes
    return roofline_seconds(0.0, rates.flop_per_s, shard * moved, rates.bytes_per_s)


class Paces(NamedTuple):
    """A step at the two paces of the host."""

    fast_issue_s: Array
    slow_issue_s: Array


def paces(issue_s: Num, window: Window) -> Paces:
    """Split mean issue seconds into those at the fast and at the slow pace.

    mean = fast (1 + f (r - 1)), f the fraction of slow steps and r slow over fast.
    """
    fast = np.asarray(issue_s) / (1 + window.slow_fraction * (window.slow_ratio - 1))
    return Paces(fast, fast * window.slow_ratio)


def logged_tokens_per_s(tokens: Num, step_s: Num, issue_s: Num, window: Window) -> Array:
    """Mean of the tokens per second that the stack's log prints: tokens over its timed window, step by step."""
    if window.times == "step":
        return np.asarray(tokens / step_s)
    pace = paces(issue_s, window)
    slow = window.slow_fraction
    return np.asarray(tokens * ((1 - slow) / pace.fast_issue_s + slow / pace.slow_issue_s))
