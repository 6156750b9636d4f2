"""A pass over a whole space of plans: what is legal is evaluated block by block, and the best are kept."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.formulas.inputs import step_inputs
from estimator.formulas.machine import Machine
from estimator.formulas.memory import host_bytes, plan_memory
from estimator.formulas.step import plan_step
from estimator.predict.evaluate import host_memory
from estimator.predict.prediction import usable_bytes
from estimator.stack.fit import interval_ratio
from estimator.stack.stack import Stack
from estimator.work.plan import Plan, Plans
from estimator.work.trainer_limits import TRAINER, are_trainable
from estimator.work.workload import Workload

KEPT = 32
"""Plans of a large space that are kept: the best that are safe, and as many that are risky."""


class Sweep(NamedTuple):
    """What a pass over a whole space leaves."""

    num_plans: int
    num_possible: int
    num_faster: int
    """Plans that fit and are faster than asked for."""
    best: list[Plan]
    """The fastest plans that fit, those whose interval of memory fits first; the nearest miss where none does."""


def sweep(
    blocks: Iterable[Plans],
    workload: Workload,
    machine: Machine,
    stack: Stack,
    *,
    kept: int = KEPT,
    faster_than: float = 0.0,
) -> Sweep:
    """Evaluate blocks of legal plans, one at a time, and keep the best; memory is bounded by the largest block.

    By the formulas alone: what a stack learned beside (`residual`) takes a thousand times as long.

    Args:
        blocks: fields of any shapes that broadcast.
        workload: the work.
        machine: devices, links and network.
        stack: the software.
        kept: plans to keep.
        faster_than: seconds per step; how many plans that fit take less is counted.
    """
    efficiencies = stack.efficiencies(workload.shape.family, machine.accelerator.id)
    usable, high = usable_bytes(machine, stack), _memory_high(stack)
    safe, risky, missed = _Best(kept), _Best(kept), _Best(1)
    num_plans = num_possible = num_faster = 0
    for plans in blocks:
        able = are_trainable(plans, workload.shape) if stack.trainer == TRAINER else np.True_
        inputs = step_inputs(plans, workload, machine, stack.habits)
        step_s = plan_step(inputs, efficiencies).seconds
        used = np.broadcast_to(plan_memory(inputs, efficiencies).peak_bytes, plans.shape)
        fits = able & (used <= usable)
        if machine.node.host:
            fits &= host_bytes(inputs) <= host_memory(machine)
        seconds, is_safe = np.broadcast_to(step_s, plans.shape), used * high <= usable
        safe.offer(plans, np.where(fits & is_safe, seconds, np.inf))
        risky.offer(plans, np.where(fits & ~is_safe, seconds, np.inf))
        missed.offer(plans, np.where(able & ~fits, used, np.inf))
        num_plans += int(np.broadcast_to(able, plans.shape).sum())
        num_possible += int(fits.sum())
        num_faster += int((fits & (seconds < faster_than)).sum())
    best = [*safe.plans, *risky.plans]
    return Sweep(num_plans, num_possible, num_faster, best or missed.plans)


def _memory_high(stack: Stack) -> float:
    """Return the upper end of memory's interval over its median.

    One for all, of plans held out: those kept are evaluated with their own.
    """
    ratio = stack.fit.names.index("memory_ratio")
    log_sd = np.hypot(stack.fit.covariance[ratio][ratio] ** 0.5, stack.fit.memory_log_sd)
    return float(interval_ratio(log_sd, stack.fit.degrees_of_freedom))


class _Best:
    """The plans of least value among all that were offered, in order."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.found: list[tuple[float, int, Plan]] = []
        self.num_offered = 0

    def offer(self, plans: Plans, values: Array) -> None:
        """Take in the plans of a block; those of infinite value do not count."""
        flat = values.ravel()
        worst = self.found[-1][0] if len(self.found) == self.kept else np.inf
        better = np.flatnonzero(flat < worst)
        if len(better) > self.kept:
            better = better[np.argpartition(flat[better], self.kept - 1)[: self.kept]]
        self.found += [(float(flat[i]), self.num_offered + int(i), plans[int(i)]) for i in better]
        self.found = sorted(self.found, key=lambda item: item[:2])[: self.kept]
        self.num_offered += flat.size

    @property
    def plans(self) -> list[Plan]:
        """The plans."""
        return [plan for _, _, plan in self.found]
