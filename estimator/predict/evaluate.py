"""Plans of any number at once: memory, time, what the log will print, wall time and cost, with their uncertainty."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.formulas.counts import model_flop
from estimator.formulas.failures import Endurance
from estimator.formulas.launch import logged_tokens_per_s, paces
from estimator.formulas.layout import on_machine
from estimator.formulas.machine import Machine
from estimator.formulas.memory import Memory, host_bytes, plan_memory, total_bytes
from estimator.formulas.step import StepTime, plan_step
from estimator.formulas.wall import SECONDS_PER_HOUR, Wall, energy_kwh, wall
from estimator.predict.interval import Range, log_sd, moved, spreads
from estimator.predict.residual import corrected, features
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.fit import interval_ratio
from estimator.stack.stack import Stack
from estimator.work.plan import Plan, Plans
from estimator.work.rules import Trainer, reasons
from estimator.work.trainer_limits import TRAINER, are_trainable, untrainable_reason
from estimator.work.workload import Workload
from hardware.units import MIB


class PlanMemory(NamedTuple):
    """What a plan holds in the memory of the devices."""

    per_device_bytes: Range
    """Of the fullest device."""
    total_bytes: Range
    """Of all devices."""
    usable_bytes_per_device: float
    breakdown_bytes: dict[str, float]
    """Of the fullest device, by purpose."""

    def __repr__(self) -> str:
        """Return it in MiB, the breakdown left out."""
        each, whole, usable = self.per_device_bytes, self.total_bytes, self.usable_bytes_per_device
        return f"{each.times(1 / MIB)} MiB per device of {usable / MIB:,.0f} usable, {whole.times(1 / MIB)} in all"


@dataclass(frozen=True, slots=True)
class PlanEstimate:
    """What one plan needs, and how fast it is."""

    plan: Plan
    data_parallel: int
    is_illegal: bool
    """The plan breaks a rule of the layout, whatever it needs."""
    reason: str
    """Why the plan is not possible; "" where it is."""
    memory: PlanMemory
    step_s: Range
    step_breakdown: dict[str, float]
    device_s: float
    """Seconds of a step without the host's."""
    fast_step_s: float
    """Seconds of a step in which the host launches at its fast pace."""
    slow_step_s: float
    tokens_per_s: Range
    """Tokens of a step, padding included, over its seconds."""
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
    endurance: Endurance | None = None
    """How the run fares with failures, where that was asked for; then wall time, cost and energy count them."""

    @property
    def possible(self) -> bool:
        """Whether the plan divides evenly and fits."""
        return not self.reason

    def __repr__(self) -> str:
        """Return the plan and its headline numbers, a line each, or why it is not possible."""
        cost = f"{self.usd} USD, " if self.usd else ""
        numbers = (
            f"  step    {self.step_s} s, {self.tokens_per_s} tokens/s",
            f"  memory  {self.memory}",
            f"  wall    {self.wall_s.times(1 / 60)} min, {cost}{self.kwh:#.3g} kWh",
        )
        lines = [str(self.plan), *([f"  not possible: {self.reason}"] if self.reason else [])]
        return "\n".join([*lines, *(() if self.is_illegal else numbers)])


def usable_bytes(machine: Machine, stack: Stack) -> float:
    """Bytes per device that a plan may fill."""
    return machine.accelerator.hbm_bytes * stack.usable_memory_fraction


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Every quantity of many plans, as arrays of shape (plans,), and their log standard deviations."""

    plans: Plans
    workload: Workload
    machine: Machine
    stack: Stack
    num_compiled: int
    """Plans that the stack compiles before it trains."""
    step: StepTime
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

        def ranged(values: Array, sd: Array) -> Range:
            ratio = float(interval_ratio(sd[i], dof))
            return Range(float(values[i]), float(values[i]) / ratio, float(values[i]) * ratio)

        step_s = ranged(self.step.seconds, self.step_log_sd)
        device_bytes = ranged(self.memory.peak_bytes, self.memory_log_sd)
        breakdown = {name: float(part[i]) for name, part in self.step.breakdown.items()}
        device_s = step_s.value - breakdown["host"]
        launch = paces(float(self.step.launch_s[i]), stack.window)
        if stack.habits.single_controller:
            fast_s, slow_s = (device_s + float(seconds) for seconds in launch)
        else:
            fast_s = slow_s = step_s.value
        duration = Wall(*map(float, wall(step_s.value, workload.num_steps, stack.startup, self.num_compiled)))
        before = float(duration.startup_s + duration.first_step_s)
        training_s = step_s.times(workload.num_steps - 1)
        wall_s = Range(*(before + later for later in training_s))
        hours = wall_s.times(machine.num_devices / SECONDS_PER_HOUR)
        flop = float(model_flop(workload.tokens_per_step, workload.seq_len, workload.shape))
        return PlanEstimate(
            plan=self.plans[i],
            data_parallel=int(self.plans.data_parallel(machine.num_devices)[i]),
            is_illegal=bool(self.reasons[i]),
            reason=self.reasons[i]
            or over_memory(device_bytes.value, usable_bytes(machine, stack), float(self.host_bytes[i]), machine),
            memory=PlanMemory(
                per_device_bytes=device_bytes,
                total_bytes=ranged(self.total_bytes, self.memory_log_sd),
                usable_bytes_per_device=usable_bytes(machine, stack),
                breakdown_bytes={name: float(part[i]) for name, part in self.memory_parts.items()},
            ),
            excess_bytes=device_bytes.value - usable_bytes(machine, stack),
            is_risky=device_bytes.high > usable_bytes(machine, stack),
            step_s=step_s,
            step_breakdown=breakdown,
            device_s=device_s,
            fast_step_s=fast_s,
            slow_step_s=slow_s,
            tokens_per_s=step_s.inverse(workload.tokens_per_step),
            logged_tokens_per_s=ranged(self.logged_tokens_per_s, self.logged_log_sd),
            flop_per_device_s=flop / machine.num_devices / step_s.value,
            wall=duration,
            training_s=training_s,
            wall_s=wall_s,
            usd=Range(*(h * p for h, p in zip(hours, prices, strict=True))) if prices else None,
            kwh=float(energy_kwh(wall_s.value, machine.num_devices, machine.accelerator)),
        )


def over_memory(used: float, usable: float, host_used: float, machine: Machine) -> str:
    """Return why a plan does not fit in so many bytes of a device and those of its node's host; "" where it does."""
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


def predict(
    plans: Plans, workload: Workload, machine: Machine, stack: Stack, efficiencies: Efficiencies
) -> tuple[StepTime, Memory]:
    """Return the step and the memory of plans, fields of any shapes that broadcast; by the formulas alone."""
    where = on_machine(plans, machine, workload.shape, stack.habits)
    step = plan_step(workload.shape, workload.seq_len, where, machine, stack.habits, efficiencies)
    return step, plan_memory(workload.shape, workload.seq_len, where, stack.habits, efficiencies)


def plan_reasons(plans: Plans, workload: Workload, machine: Machine, stack: Stack) -> list[str]:
    """Return why each plan cannot run, by the rules of the layout and of the trainer; "" where it can."""
    found = reasons(plans, workload, machine.num_devices, Trainer(stack.habits.balances_stages))
    if stack.trainer == TRAINER:
        for i in np.flatnonzero(~are_trainable(plans, workload.shape)):
            found[i] = found[i] or untrainable_reason(plans[int(i)], workload.shape)
    return found


def evaluate(
    plans: Plans, workload: Workload, machine: Machine, stack: Stack, num_compiled: int = 1, *, intervals: bool = True
) -> Evaluation:
    """Evaluate plans at once: time, memory, what the log will print, and the uncertainty of each.

    Args:
        plans: fields of shape (plans,).
        workload: the work.
        machine: devices, links and network.
        stack: the software.
        num_compiled: plans that the stack compiles before it trains.
        intervals: without, every spread is 0, and it takes a fortieth of the time.
    """
    fit, family = stack.fit, workload.shape.family
    where = on_machine(plans, machine, workload.shape, stack.habits)
    device = machine.accelerator.id
    efficiencies = stack.efficiencies(family, device)
    in_8_bits = stack.habits.matmul_precision == "fp8"
    places = features(workload.shape, workload.seq_len, where, machine, in_8_bits=in_8_bits)
    step, memory = corrected(*predict(plans, workload, machine, stack, efficiencies), fit, places)
    shape, count = workload.shape, len(plans)
    step_log_sd = memory_log_sd = launch_log_sd = np.zeros(count)
    if intervals:
        after = moved(efficiencies, (*stack.priors, "family_factor"), stack.directions(family, device))
        moved_both = predict(plans, workload, machine, stack, after)
        step_log_sd, memory_log_sd = spreads(step, moved_both, fit, places, device, fit.source_log_sd)
        launch_log_sd = log_sd(moved_both[0].launch_s, fit.launch_log_sd)

    def each(values: Array) -> Array:
        return np.broadcast_to(values, (count,))

    return Evaluation(
        plans=plans,
        workload=workload,
        machine=machine,
        stack=stack,
        num_compiled=num_compiled,
        step=StepTime({name: each(part) for name, part in step.breakdown.items()}, each(step.launch_s)),
        memory=memory,
        memory_parts={name: each(part) for name, part in memory.peak.items()},
        total_bytes=each(total_bytes(shape, workload.seq_len, where, stack.habits, efficiencies)),
        host_bytes=each(host_bytes(shape, where, stack.habits)),
        logged_tokens_per_s=logged_tokens_per_s(workload.tokens_per_step, step.seconds, step.launch_s, stack.window),
        step_log_sd=step_log_sd,
        logged_log_sd=launch_log_sd if stack.window.times == "launch" else step_log_sd,
        memory_log_sd=memory_log_sd,
        reasons=tuple(plan_reasons(plans, workload, machine, stack)),
    )
