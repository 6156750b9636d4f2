"""Activations that wait for their backward pass in the host's memory."""

import numpy as np

from estimator.arrays import Array
from estimator.formulas.activations import activation_bytes
from estimator.formulas.inputs import StepInputs
from estimator.formulas.stages import Stage, stages_of
from estimator.stack.efficiencies import Efficiencies

LINK_EFFICIENCY = 0.82
"""Part of PCIe's rate that large copies reach.

measured: 26.3 of 32 GB/s between an A100 and its host (Azure AI-benchmarking-guide, ND_A100_v4_results.md).
"""


def offloaded_bytes(inputs: StepInputs, efficiencies: Efficiencies, stage: Stage) -> Array:
    """Bytes of a stage's kept activations that lie in the host's memory; 0 where none are sent there."""
    if not inputs.habits.offloads_activations:
        return np.zeros(())
    staying = inputs._replace(habits=inputs.habits.model_copy(update={"offloads_activations": False}))
    all_kept, _ = activation_bytes(staying, efficiencies, stage)
    return np.asarray(all_kept - activation_bytes(inputs, efficiencies, stage)[0])


def most_offloaded_bytes(inputs: StepInputs, efficiencies: Efficiencies) -> Array:
    """Return those of the stage that has most of them."""
    plan = inputs.plan
    first, between, last = stages_of(inputs.shape, plan)
    stages = first.at(plan, 0), between.at(plan, 1), last.at(plan, plan.num_stages - 1)
    each = [offloaded_bytes(inputs, efficiencies, stage) for stage in stages]
    return np.asarray(np.maximum(np.maximum(each[0], (plan.num_stages > 2) * each[1]), each[2]))


def waiting_seconds(inputs: StepInputs, efficiencies: Efficiencies, busy_s: Array) -> Array:
    """Seconds that a step takes longer where activations travel longer than the device is busy.

    To the host in the forward pass and back in the backward pass, beside the computation of a device, `busy_s` in all
    of a step's micro-batches.
    """
    host, plan = inputs.machine.node.host, inputs.plan
    if host is None or not inputs.habits.offloads_activations:
        return np.zeros(())
    first, _, last = (offloaded_bytes(inputs, efficiencies, stage) for stage in stages_of(inputs.shape, plan))
    travel_s = 2.0 * np.maximum(first, last) / (LINK_EFFICIENCY * host.link_bytes_per_s)
    return np.asarray(np.maximum(plan.num_micro_batches * travel_s - busy_s, 0.0))
