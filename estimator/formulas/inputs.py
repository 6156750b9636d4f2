"""What a step is predicted from, beside efficiencies: a model, the length of its sequences, plans, machine, habits."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.layout import Layout, balanced, layout
from estimator.formulas.machine import Machine
from estimator.stack.habits import Habits
from estimator.work.plan import Plan, Plans
from estimator.work.shape import Shape
from estimator.work.workload import Workload


class StepInputs(NamedTuple):
    """What the formulas of a step take; its efficiencies apart, as one step is predicted at many of them."""

    shape: Shape
    seq_len: Num
    """Tokens of a sequence."""
    plan: Layout
    """Of one plan, or of many."""
    machine: Machine
    habits: Habits
    """How the stack works, and what it keeps."""

    @property
    def tokens(self) -> Array:
        """Tokens of a micro-batch on one context-parallel rank."""
        return np.asarray(self.plan.batch_per_device, dtype=np.float64) * self.seq_len / self.plan.cp

    @property
    def passed_bytes(self) -> Array:
        """Bytes of what a layer passes on of those tokens."""
        return np.asarray(self.tokens * self.shape.hidden_size * self.habits.activation_bytes)

    @property
    def fuses_attention(self) -> bool:
        """Whether attention runs fused."""
        return self.habits.fuses_attention(self.shape)

    @property
    def repeats_attention(self) -> Array:
        """Whether the backward pass repeats attention: with the layer, or alone where there are scores to drop."""
        selective = (not self.fuses_attention) & self.plan.recomputes("selective")
        return self.plan.recomputes("full") | selective


def step_inputs(plans: Plan | Plans, workload: Workload, machine: Machine, habits: Habits) -> StepInputs:
    """Return what the formulas take of plans for a model on a machine under a stack's habits."""
    plan = layout(plans, machine.num_devices, machine.devices_per_node)
    if machine.fabric is not None:
        plan = replace(plan, stalls=machine.fabric.stalls)
    if habits.balances_stages:
        plan = balanced(plan, workload.shape)
    return StepInputs(workload.shape, workload.seq_len, plan, machine, habits)
