"""All plans of a space: evaluated at once, tested against memory, ranked by the time of a step."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from estimator.counts import Array, Num, model_flop, num_parameters
from estimator.host import logged_tokens_per_s, paces
from estimator.layout import on_machine
from estimator.machine import Machine
from estimator.memory import Memory, host_bytes, plan_memory, total_bytes
from estimator.plan import Plan, Plans
from estimator.rules import reasons
from estimator.run import SECONDS_PER_HOUR, Wall, energy_kwh, price_range, wall
from estimator.spaces import full_space, moai_space
from estimator.stack import PARAMETERS, Efficiencies, Stack, interval_ratio
from estimator.step import Step, plan_step
from estimator.workload import Workload
from hardware.catalog import Catalog
from hardware.models import Flavor, Price
from hardware.units import MIB

SPACES = ("moai", "full")
MEMORY_RATIO = PARAMETERS.index("memory_ratio")


class Range(NamedTuple):
    """A value with its 90 % interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Range":
        """Return the range of a quantity in proportion to this one."""
        return Range(self.value * factor, self.low * factor, self.high * factor)

    def inverse(self, numerator: float) -> "Range":
        """Return the range of `numerator` over this quantity."""
        return Range(numerator / self.value, numerator / self.high, numerator / self.low)


@dataclass(frozen=True, slots=True)
class PlanEstimate:
    """What one plan needs, and how fast it is."""

    plan: Plan
    data_parallel: int
    is_illegal: bool
    """The plan breaks a rule of the layout, whatever it needs."""
    reason: str
    """Why the plan is not possible; "" where it is."""
    device_bytes: Range
    total_bytes: Range
    memory_breakdown: dict[str, float]
    """Bytes of the fullest device, by purpose."""
    step_s: Range
    step_breakdown: dict[str, float]
    device_s: float
    """Seconds of a step without the host's."""
    fast_step_s: float
    """Seconds of a step in which the host issues at its fast pace."""
    slow_step_s: float
    logged_tokens_per_s: Range
    flop_per_device_s: float
    """Model FLOP per device and second."""
    wall: Wall
    training_s: Range
    """From the end of the first step to that of the last, as the platform's pages state training time."""
    wall_s: Range
    """From the start of the program to the end of the last step."""
    usd: Range | None
    kwh: float

    excess_bytes: float
    """Bytes of the fullest device beyond the usable; negative where there is room."""

    is_risky: bool
    """The interval of its memory reaches beyond the usable."""

    @property
    def possible(self) -> bool:
        """Whether the plan divides evenly and fits."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class Estimate:
    """The plans of one space on one flavor, best first."""

    workload: Workload
    flavor: Flavor
    machine: Machine
    stack: Stack
    space: str
    usable_bytes: float
    """Bytes per device that a plan may fill."""
    num_candidates: int
    """Plans of the space."""
    num_possible: int
    """Those of them that divide evenly and fit."""
    plans: tuple[PlanEstimate, ...]
    """Plans in order, of a large space only the best."""
    prices: tuple[Price, ...]
    """Latest prices of the accelerator, which the cost is taken from."""
    search_s: float

    @property
    def best(self) -> PlanEstimate | None:
        """The plan that the stack would choose, if any fits."""
        return self.plans[0] if self.plans and self.plans[0].possible else None

    @property
    def fastest(self) -> PlanEstimate | None:
        """The plan that fits with the shortest step, which need not be the one that the stack would choose."""
        return min((p for p in self.plans if p.possible), key=lambda p: p.step_s.value, default=None)

    @property
    def num_params(self) -> int:
        """Parameters of the model."""
        return num_parameters(self.workload.shape)

    @property
    def nearest_miss(self) -> PlanEstimate | None:
        """The plan that divides evenly and comes nearest to fitting, where none fits."""
        legal = (plan for plan in self.plans if not plan.is_illegal)
        return min(legal, key=lambda plan: plan.device_bytes.value, default=None)


def search(
    workload: Workload, flavor: Flavor, stack: Stack, catalog: Catalog, plan: Plan | None = None, space: str = "moai"
) -> Estimate:
    """Estimate the plans of a space on a flavor, or one given plan, and rank them.

    Possible plans come first: of the platform's space by the seconds that the stack's planner compares, of the full
    space by those of the step, those whose interval of memory fits before those that may not; then plans that do not
    fit, by memory; then those that cannot run. Of the full space only the best are kept.
    """
    started = time.perf_counter()
    machine = Machine.of(catalog, flavor)
    searches_all = space == "full" and plan is None
    if searches_all:
        swept = sweep(full_space(workload, machine, stack.habits), workload, machine, stack)
        plans, num_candidates, num_possible = Plans.of(swept.best), swept.num_plans, swept.num_possible
    else:
        plans = moai_space(flavor, workload.global_batch) if plan is None else Plans.of([plan])
        num_candidates, num_possible = len(plans), None
    table = evaluate(plans, workload, machine, stack, num_compiled=1 if searches_all else len(plans))
    prices = catalog.latest_prices(machine.accelerator.id)
    found = [table.row(i, price_range(prices)) for i in range(len(plans))]
    by_device = stack.habits.ranks_by == "device" and not searches_all
    found.sort(key=lambda p: _rank(p, by_device=by_device, prefers_safe=searches_all))
    return Estimate(
        workload=workload,
        flavor=flavor,
        machine=machine,
        stack=stack,
        space=space,
        usable_bytes=usable_bytes(machine, stack),
        num_candidates=num_candidates,
        num_possible=sum(p.possible for p in found) if num_possible is None else num_possible,
        plans=tuple(found),
        prices=prices,
        search_s=time.perf_counter() - started,
    )


def _rank(plan: PlanEstimate, *, by_device: bool, prefers_safe: bool) -> tuple[float, float, float]:
    if plan.possible:
        return 0.0, float(prefers_safe and plan.is_risky), plan.device_s if by_device else plan.step_s.value
    return 1.0 + plan.is_illegal, 0.0, plan.device_bytes.value


def usable_bytes(machine: Machine, stack: Stack) -> float:
    """Bytes per device that a plan may fill."""
    return machine.accelerator.hbm_bytes * stack.habits.usable_memory_fraction


@dataclass(frozen=True, slots=True)
class Table:
    """Every quantity of many plans, as arrays of shape (plans,), and their log standard deviations."""

    plans: Plans
    workload: Workload
    machine: Machine
    stack: Stack
    num_compiled: int
    """Plans that the stack compiles before it trains."""
    step: Step
    memory: Memory
    memory_parts: dict[str, Array]
    total_bytes: Array
    host_bytes: Array
    logged_tokens_per_s: Array
    step_log_sd: Array
    logged_log_sd: Array
    memory_log_sd: Array
    reasons: tuple[str, ...]
    """Why each plan breaks a rule of the layout; "" where none does. Memory is not among them."""

    def row(self, i: int, prices: tuple[float, float, float] | None) -> PlanEstimate:
        """Return plan i, with what a run of it costs at median, least and greatest price [USD per device and hour]."""
        workload, machine, stack = self.workload, self.machine, self.stack
        dof = stack.fit.degrees_of_freedom

        def ranged(values: Array, log_sd: Array) -> Range:
            ratio = float(interval_ratio(log_sd[i], dof))
            return Range(float(values[i]), float(values[i]) / ratio, float(values[i]) * ratio)

        step_s = ranged(self.step.seconds, self.step_log_sd)
        device_bytes = ranged(self.memory.peak_bytes, self.memory_log_sd)
        breakdown = {name: float(part[i]) for name, part in self.step.breakdown.items()}
        device_s = step_s.value - breakdown["host"]
        issue = paces(float(self.step.issue_s[i]), stack.window)
        waits = stack.habits.single_controller  # the devices for the host; else both work at once
        fast_s, slow_s = (device_s + float(s) if waits else max(device_s, float(s)) for s in issue)
        duration = wall(step_s.value, workload.num_steps, stack.startup, self.num_compiled)
        before = duration.startup_s + duration.first_step_s
        training_s = step_s.times(workload.num_steps - 1)
        wall_s = Range(*(before + later for later in training_s))
        hours = wall_s.times(machine.num_devices / SECONDS_PER_HOUR)
        flop = float(model_flop(workload.tokens_per_step, workload.seq_len, workload.shape))
        return PlanEstimate(
            plan=self.plans[i],
            data_parallel=int(self.plans.data_parallel(machine.num_devices)[i]),
            is_illegal=bool(self.reasons[i]),
            reason=self.reasons[i]
            or _over(device_bytes.value, usable_bytes(machine, stack), float(self.host_bytes[i]), machine),
            device_bytes=device_bytes,
            excess_bytes=device_bytes.value - usable_bytes(machine, stack),
            is_risky=device_bytes.high > usable_bytes(machine, stack),
            total_bytes=ranged(self.total_bytes, self.memory_log_sd),
            memory_breakdown={name: float(part[i]) for name, part in self.memory_parts.items()},
            step_s=step_s,
            step_breakdown=breakdown,
            device_s=device_s,
            fast_step_s=fast_s,
            slow_step_s=slow_s,
            logged_tokens_per_s=ranged(self.logged_tokens_per_s, self.logged_log_sd),
            flop_per_device_s=flop / machine.num_devices / step_s.value,
            wall=duration,
            training_s=training_s,
            wall_s=wall_s,
            usd=Range(*(h * p for h, p in zip(hours, prices, strict=True))) if prices else None,
            kwh=energy_kwh(wall_s.value, machine.num_devices, machine.accelerator),
        )


def _over(used: float, usable: float, host_used: float, machine: Machine) -> str:
    if used > usable:
        return (
            f"needs {used / MIB:,.0f} MiB per device, {(used - usable) / MIB:,.0f} MiB more than the usable "
            f"{usable / MIB:,.0f}"
        )
    most = host_memory(machine)
    if host_used > most:
        return f"needs {host_used / MIB:,.0f} MiB of each node's host, which has {most / MIB:,.0f}"
    return ""


def host_memory(machine: Machine) -> float:
    """Bytes that a node's host has for optimizers; 0 where it is not known."""
    return machine.node.host.memory_bytes if machine.node.host else 0.0


def _predict(
    plans: Plans, workload: Workload, machine: Machine, stack: Stack, efficiencies: Efficiencies
) -> tuple[Step, Memory]:
    where = on_machine(plans, machine)
    step = plan_step(workload.shape, workload.seq_len, where, machine, stack.habits, efficiencies)
    return step, plan_memory(workload.shape, workload.seq_len, where, stack.habits, efficiencies.memory_ratio)


def _moved(efficiencies: Efficiencies, directions: Array) -> Efficiencies:
    """Return the parameters after each 1-sigma move forward, then after each backward, as arrays (moves, 1)."""
    both = np.exp(np.concatenate([directions, -directions]))[:, :, None]
    return Efficiencies(*(value * both[:, i] for i, value in enumerate(efficiencies)))


def _log_sd(moved: Array, residual: Num) -> Array:
    """Return the log standard deviation of each plan's quantity, from its values after the moves and a residual."""
    forward, backward = np.split(np.log(moved), 2)
    return np.asarray(np.sqrt((((forward - backward) / 2) ** 2).sum(axis=0) + np.asarray(residual) ** 2))


def evaluate(plans: Plans, workload: Workload, machine: Machine, stack: Stack, num_compiled: int = 1) -> Table:
    """Evaluate plans at once: time, memory, what the log will print, and the uncertainty of each.

    Args:
        plans: fields of shape (plans,).
        workload: the work.
        machine: devices, links and network.
        stack: the software.
        num_compiled: plans that the stack compiles before it trains.
    """
    fit, family, where = stack.fit, workload.shape.family, on_machine(plans, machine)
    efficiencies = stack.efficiencies(family)
    step, memory = _predict(plans, workload, machine, stack, efficiencies)
    moved_step, moved_memory = _predict(plans, workload, machine, stack, _moved(efficiencies, stack.directions(family)))
    new_device = 0.0 if machine.accelerator.id == fit.accelerator else fit.device_log_sd
    device_share = 1 - step.breakdown["host"] / step.seconds
    step_log_sd = _log_sd(moved_step.seconds, np.hypot(fit.step_log_sd, new_device * device_share))
    issue_log_sd = _log_sd(moved_step.issue_s, fit.issue_log_sd)
    memory_log_sd = _log_sd(moved_memory.peak_bytes, fit.memory_log_sd)
    shape, count = workload.shape, len(plans)

    def each(values: Array) -> Array:
        return np.broadcast_to(values, (count,))

    return Table(
        plans=plans,
        workload=workload,
        machine=machine,
        stack=stack,
        num_compiled=num_compiled,
        step=Step({name: each(part) for name, part in step.breakdown.items()}, each(step.issue_s)),
        memory=memory,
        memory_parts={name: each(part) for name, part in memory.peak.items()},
        total_bytes=each(total_bytes(shape, workload.seq_len, where, stack.habits, efficiencies.memory_ratio)),
        host_bytes=each(host_bytes(shape, where, stack.habits)),
        logged_tokens_per_s=logged_tokens_per_s(workload.tokens_per_step, step.seconds, step.issue_s, stack.window),
        step_log_sd=step_log_sd,
        logged_log_sd=issue_log_sd if stack.window.times == "issue" else step_log_sd,
        memory_log_sd=memory_log_sd,
        reasons=tuple(reasons(plans, workload, machine.num_devices)),
    )


KEPT = 32
"""Plans of a large space that are kept: the best that are safe, and as many that are risky."""


class Sweep(NamedTuple):
    """What a pass over a whole space leaves."""

    num_plans: int
    num_possible: int
    best: list[Plan]
    """The fastest plans that fit, those whose interval of memory fits first; the nearest miss where none does."""


def sweep(blocks: Iterable[Plans], workload: Workload, machine: Machine, stack: Stack, kept: int = KEPT) -> Sweep:
    """Evaluate blocks of legal plans, one at a time, and keep the best; memory is bounded by the largest block."""
    efficiencies, usable = stack.efficiencies(workload.shape.family), usable_bytes(machine, stack)
    safe, risky, missed = _Best(kept), _Best(kept), _Best(1)
    num_plans = num_possible = 0
    # memory is in proportion to its ratio, so that its interval is as wide for every plan
    log_sd = np.hypot(stack.fit.covariance[MEMORY_RATIO][MEMORY_RATIO] ** 0.5, stack.fit.memory_log_sd)
    high = float(interval_ratio(log_sd, stack.fit.degrees_of_freedom))
    for plans in blocks:
        step, memory = _predict(plans, workload, machine, stack, efficiencies)
        used = np.broadcast_to(memory.peak_bytes, plans.shape)
        fits = used <= usable
        if machine.node.host:
            fits &= host_bytes(workload.shape, on_machine(plans, machine), stack.habits) <= host_memory(machine)
        seconds, is_safe = np.broadcast_to(step.seconds, plans.shape), used * high <= usable
        safe.offer(plans, np.where(fits & is_safe, seconds, np.inf))
        risky.offer(plans, np.where(fits & ~is_safe, seconds, np.inf))
        missed.offer(plans, np.where(fits, np.inf, used))
        num_plans, num_possible = num_plans + len(plans), num_possible + int(fits.sum())
    best = [*safe.plans, *risky.plans]
    return Sweep(num_plans, num_possible, best or missed.plans)


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
