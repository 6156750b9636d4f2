"""The host: how long it launches work for the devices, at which paces, and what its log prints of that."""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import StageLayers
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.stack import Window

FULL_LAUNCH = 1 / 3
"""Launch work of repeating a layer's forward pass, over its forward and backward pass.  # assumed: as the FLOP"""

SELECTIVE_LAUNCH = 1 / 9
"""Launch work of repeating attention, over a layer's forward and backward pass.  # assumed: a third of forward"""


COMPILED_LAUNCH = 0.3
"""Host seconds of a compiled layer over those of an eager one.

assumed: 42 launches for 110, and the compiled function's own checks; a compiled step was never measured where the host
was the slower
"""

TENSOR_PARALLEL_REDUCTIONS = 4
"""All-reduces, or pairs of all-gather and reduce-scatter, of a layer's forward and backward pass.

paper: Narayanan et al. 2021, arXiv:2104.04473, section 2.3
"""


def layer_launch_seconds(inputs: StepInputs, efficiencies: Efficiencies) -> tuple[Array, Array]:
    """Host seconds to launch one layer of one micro-batch, forward and backward, and what a repeated layer adds.

    The layer is of the only kind of `inputs.shape`.
    A mixture's layer has its experts' products to launch, of sizes that the host waits for. A layer split over
    tensor-parallel ranks has collectives to launch, which on a machine whose collectives stall wait
    for every rank; where the ranks lie on several nodes, each hop takes its time.
    """
    plan, split = inputs.plan, inputs.plan.tp > 1
    layer = (
        efficiencies.launch_s_per_layer * (COMPILED_LAUNCH if inputs.habits.execution == "compiled" else 1.0)
        + efficiencies.launch_s_per_split_layer * split
        + efficiencies.launch_s_per_stalled_rank * split * plan.stalls * plan.tp
        + efficiencies.launch_s_per_routed_layer * (inputs.shape.num_experts > 0)
        + TENSOR_PARALLEL_REDUCTIONS * plan.tensor_parallel_hops * efficiencies.hop_s
    )
    attention = inputs.repeats_attention * SELECTIVE_LAUNCH
    return np.asarray(layer), layer * np.where(plan.recomputes("full"), FULL_LAUNCH, attention)


def stage_launch_seconds(inputs: StepInputs, efficiencies: Efficiencies) -> StageLayers:
    """Host seconds to launch the layers of each kind of stage for one micro-batch."""
    each = [
        (*layer_launch_seconds(inputs._replace(shape=counts.kind), efficiencies), counts)
        for counts in inputs.plan.kind_layers(inputs.shape)
    ]
    return StageLayers(
        *(sum(counts.layers[i] * layer + counts.repeated[i] * again for layer, again, counts in each) for i in range(3))
    )


def launch_seconds(inputs: StepInputs, efficiencies: Efficiencies, stage: StageLayers) -> Array:
    """Mean host seconds to launch a step, given those of each kind of stage for one micro-batch.

    a + b * layers * micro-batches, a third more of b with full recomputation. A single controller launches the layers
    of all stages, else each host those of its own: the most of them counts.
    """
    plan = inputs.plan
    per_micro_batch = plan.over_stages(stage) if inputs.habits.single_controller else plan.most_of_stages(stage)
    return np.asarray(efficiencies.launch_s_per_step + plan.num_micro_batches * per_micro_batch)


class Paces(NamedTuple):
    """A step at the two paces of the host."""

    fast_launch_s: Array
    slow_launch_s: Array


def paces(launch_s: Num, window: Window) -> Paces:
    """Split mean launch seconds into those at the fast and at the slow pace.

    mean = fast (1 + f (r - 1)), f the fraction of slow steps and r slow over fast.
    """
    fast = np.asarray(launch_s) / (1 + window.slow_fraction * (window.slow_ratio - 1))
    return Paces(fast, fast * window.slow_ratio)


def logged_tokens_per_s(tokens: Num, step_s: Num, launch_s: Num, window: Window) -> Array:
    """Mean of the tokens per second that the stack's log prints: tokens over its timed window, step by step."""
    if window.times == "step":
        return np.asarray(tokens / step_s)
    pace = paces(launch_s, window)
    slow = window.slow_fraction
    return np.asarray(tokens * ((1 - slow) / pace.fast_launch_s + slow / pace.slow_launch_s))
