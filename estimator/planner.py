"""All plans of a space: evaluated at once, tested against memory, ranked by the time of a step."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from estimator.counts import Array, Num, model_flop, num_parameters
from estimator.host import logged_tokens_per_s, paces
from estimator.machine import Machine
from estimator.memory import Memory, layout, plan_memory
from estimator.plan import Plan, Plans, moai_space, reasons
from estimator.run import SECONDS_PER_HOUR, Wall, energy_kwh, price_range, wall
from estimator.stack import Efficiencies, Stack, interval_ratio
from estimator.step import Step, plan_step
from estimator.workload import Workload
from hardware.catalog import Catalog
from hardware.models import Flavor, Price
from hardware.units import MIB

SPACES = ("moai",)


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
    plans: tuple[PlanEstimate, ...]
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
    def num_possible(self) -> int:
        """How many plans divide evenly and fit."""
        return sum(plan.possible for plan in self.plans)

    @property
    def num_params(self) -> int:
        """Parameters of the model."""
        return num_parameters(self.workload.shape)

    @property
    def nearest_miss(self) -> PlanEstimate | None:
        """The plan that divides evenly and comes nearest to fitting, where none fits."""
        legal = (plan for plan in self.plans if not plan.is_illegal)
        return min(legal, key=lambda plan: plan.device_bytes.value, default=None)


def search(workload: Workload, flavor: Flavor, stack: Stack, catalog: Catalog, plan: Plan | None = None) -> Estimate:
    """Estimate every candidate of the platform's space on a flavor, or one given plan, and rank them.

    Possible plans come first, by the seconds that the stack's planner compares; then those that do not fit, by memory;
    then those that cannot run.
    """
    started = time.perf_counter()
    machine = Machine.of(catalog, flavor)
    plans = moai_space(flavor, workload.global_batch) if plan is None else Plans.of([plan])
    table = evaluate(plans, workload, machine, stack)
    prices = catalog.latest_prices(machine.accelerator.id)
    found = [table.row(i, price_range(prices)) for i in range(len(plans))]
    by_device = stack.habits.ranks_by == "device"
    found.sort(
        key=lambda p: (
            (0.0, p.device_s if by_device else p.step_s.value)
            if p.possible
            else (1.0 + p.is_illegal, p.device_bytes.value)
        )
    )
    return Estimate(
        workload=workload,
        flavor=flavor,
        machine=machine,
        stack=stack,
        space="moai",
        usable_bytes=usable_bytes(machine, stack),
        num_candidates=len(plans),
        plans=tuple(found),
        prices=prices,
        search_s=time.perf_counter() - started,
    )


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
    step: Step
    memory: Memory
    logged_tokens_per_s: Array
    step_log_sd: Array
    logged_log_sd: Array
    device_bytes_log_sd: Array
    total_bytes_log_sd: Array
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
        device_bytes = ranged(self.memory.peak_bytes, self.device_bytes_log_sd)
        breakdown = {name: float(part[i]) for name, part in self.step.breakdown.items()}
        device_s = step_s.value - breakdown["host"]
        issue = paces(float(self.step.issue_s[i]), stack.window)
        waits = stack.habits.single_controller  # the devices for the host; else both work at once
        fast_s, slow_s = (device_s + float(s) if waits else max(device_s, float(s)) for s in issue)
        duration = wall(step_s.value, workload.num_steps, stack.startup, len(self.plans))
        before = duration.startup_s + duration.first_step_s
        training_s = step_s.times(workload.num_steps - 1)
        wall_s = Range(*(before + later for later in training_s))
        hours = wall_s.times(machine.num_devices / SECONDS_PER_HOUR)
        flop = float(model_flop(workload.tokens_per_step, workload.seq_len, workload.shape))
        return PlanEstimate(
            plan=self.plans[i],
            data_parallel=int(self.plans.data_parallel(machine.num_devices)[i]),
            is_illegal=bool(self.reasons[i]),
            reason=self.reasons[i] or _over(device_bytes.value, usable_bytes(machine, stack)),
            device_bytes=device_bytes,
            excess_bytes=device_bytes.value - usable_bytes(machine, stack),
            total_bytes=ranged(self.memory.total_bytes, self.total_bytes_log_sd),
            memory_breakdown={name: float(part[i]) for name, part in self.memory.peak.items()},
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


def _over(used: float, usable: float) -> str:
    if used <= usable:
        return ""
    return (
        f"needs {used / MIB:,.0f} MiB per device, {(used - usable) / MIB:,.0f} MiB more than the usable "
        f"{usable / MIB:,.0f}"
    )


def _predict(
    plans: Plans, workload: Workload, machine: Machine, stack: Stack, efficiencies: Efficiencies
) -> tuple[Step, Memory]:
    where = layout(plans, machine.num_devices)
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


def evaluate(plans: Plans, workload: Workload, machine: Machine, stack: Stack) -> Table:
    """Evaluate plans at once: time, memory, what the log will print, and the uncertainty of each."""
    fit, family = stack.fit, workload.shape.family
    efficiencies = stack.efficiencies(family)
    step, memory = _predict(plans, workload, machine, stack, efficiencies)
    moved_step, moved_memory = _predict(plans, workload, machine, stack, _moved(efficiencies, stack.directions(family)))
    new_device = 0.0 if machine.accelerator.id == fit.accelerator else fit.device_log_sd
    device_share = 1 - step.breakdown["host"] / step.seconds
    step_log_sd = _log_sd(moved_step.seconds, np.hypot(fit.step_log_sd, new_device * device_share))
    issue_log_sd = _log_sd(moved_step.issue_s, fit.issue_log_sd)
    return Table(
        plans=plans,
        workload=workload,
        machine=machine,
        stack=stack,
        step=step,
        memory=memory,
        logged_tokens_per_s=logged_tokens_per_s(workload.tokens_per_step, step.seconds, step.issue_s, stack.window),
        step_log_sd=step_log_sd,
        logged_log_sd=issue_log_sd if stack.window.times == "issue" else step_log_sd,
        device_bytes_log_sd=_log_sd(moved_memory.peak_bytes, fit.memory_log_sd),
        total_bytes_log_sd=_log_sd(moved_memory.total_bytes, fit.memory_log_sd),
        reasons=tuple(reasons(plans, workload, machine.num_devices)),
    )
