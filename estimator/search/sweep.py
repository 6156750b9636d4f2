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
from estimator.predict.prediction import further_log_sds, usable_bytes
from estimator.search.spaces import Block
from estimator.stack.fit import interval_ratio
from estimator.stack.stack import Stack
from estimator.work.plan import Plan, Plans
from estimator.work.shape import Shape
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
    blocks: Iterable[Block],
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
        blocks: as `full_space` yields them.
        workload: the work.
        machine: devices, links and network.
        stack: the software.
        kept: plans to keep.
        faster_than: seconds per step; how many plans that fit take less is counted.
    """
    efficiencies = stack.efficiencies(workload.shape.family, machine.accelerator.id)
    usable, high = usable_bytes(machine, stack), _memory_high(stack, machine, workload.shape)
    safe, risky, missed = _Best(kept), _Best(kept), _Best(1)
    num_plans = num_possible = num_faster = 0
    for plans, is_distinct in blocks:
        able = is_distinct & (are_trainable(plans, workload.shape) if stack.trainer == TRAINER else np.True_)
        inputs = step_inputs(plans, workload, machine, stack.habits)
        step_s = plan_step(inputs, efficiencies).seconds
        used = np.broadcast_to(plan_memory(inputs, efficiencies).peak_bytes, plans.shape)
        fits = able & (used <= usable)
        if machine.node.host:
            fits &= host_bytes(inputs, efficiencies) <= host_memory(machine)
        seconds, is_safe = np.broadcast_to(step_s, plans.shape), used * high <= usable
        safe.offer(plans, seconds, fits & is_safe)
        risky.offer(plans, seconds, fits & ~is_safe)
        num_plans += int(np.broadcast_to(able, plans.shape).sum())
        num_possible += int(fits.sum())
        if not num_possible:
            missed.offer(plans, used, np.broadcast_to(able, plans.shape))
        if faster_than:
            num_faster += int((fits & (seconds < faster_than)).sum())
    best = [*safe.plans, *risky.plans]
    return Sweep(num_plans, num_possible, num_faster, best or missed.plans)


def _memory_high(stack: Stack, machine: Machine, shape: Shape) -> float:
    """Return the upper end of memory's interval over its median.

    One for all, of plans held out, of a source that is not known: those kept are evaluated with their own.
    """
    ratio = stack.fit.names.index("memory_ratio")
    log_sd = np.hypot(stack.fit.covariance[ratio][ratio] ** 0.5, stack.fit.memory_log_sd)
    log_sd = np.hypot(log_sd, further_log_sds(machine, shape, stack.fit, "")[1])
    return float(interval_ratio(log_sd, stack.fit.degrees_of_freedom))


class _Best:
    """The plans of least value among all that were offered, in order."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.found: list[tuple[float, int, Plan]] = []
        self.num_offered = 0

    def offer(self, plans: Plans, values: Array, counts: Array) -> None:
        """Take in the plans of a block that count, each of its value."""
        worst = self.found[-1][0] if len(self.found) == self.kept else np.inf
        better = np.flatnonzero(counts & (values < worst))
        found = values[np.unravel_index(better, values.shape)]
        if len(better) > self.kept:
            best = np.argpartition(found, self.kept - 1)[: self.kept]
            better, found = better[best], found[best]
        each = zip(found.tolist(), (self.num_offered + better).tolist(), plans.each(better), strict=True)
        self.found = sorted([*self.found, *each], key=lambda item: item[:2])[: self.kept]
        self.num_offered += len(plans)

    @property
    def plans(self) -> list[Plan]:
        """The plans."""
        return [plan for _, _, plan in self.found]
