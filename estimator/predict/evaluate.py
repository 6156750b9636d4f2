"""Plans of any number at once: memory, time, what the log will print, wall time and cost, with their uncertainty."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.formulas.counts import model_flop
from estimator.formulas.failures import Endurance
from estimator.formulas.inputs import step_inputs
from estimator.formulas.launch import logged_tokens_per_s, paces
from estimator.formulas.machine import Machine
from estimator.formulas.memory import host_bytes
from estimator.formulas.wall import SECONDS_PER_HOUR, Wall, energy_kwh, wall
from estimator.predict.interval import Range
from estimator.predict.prediction import Prediction, predict
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


class Evaluation(NamedTuple):
    """Plans as predicted, and what else is asked of them, as arrays of shape (plans,)."""

    plans: Plans
    workload: Workload
    machine: Machine
    stack: Stack
    prediction: Prediction
    device_bytes: Array
    """Of the fullest device."""
    memory_parts: dict[str, Array]
    host_bytes: Array
    """Of a node's host."""
    logged_tokens_per_s: Array
    reasons: list[str]
    """Why each plan breaks a rule of the layout; "" where none does. Memory is not among them."""

    def row(self, i: int, prices: tuple[float, float, float] | None, num_compiled: int = 1) -> PlanEstimate:
        """Return what plan i needs, and how fast it is.

        Args:
            i: the plan.
            prices: median, least and greatest [USD per device and hour]; None where none is known.
            num_compiled: plans that the stack compiles before it trains.
        """
        found, machine, workload = self.prediction, self.machine, self.workload
        step_s = self._range(found.step.seconds, found.step_log_sd, i)
        device_bytes = self._range(self.device_bytes, found.memory_log_sd, i).no_less_than(found.certain_bytes[i])
        breakdown = {name: float(part[i]) for name, part in found.step.breakdown.items()}
        device_s = step_s.value - breakdown["host"]
        fast_s, slow_s = self._paces(i, device_s)
        duration = Wall(*map(float, wall(step_s.value, workload.num_steps, self.stack.startup, num_compiled)))
        training_s = step_s.times(workload.num_steps - 1)
        before = float(duration.startup_s + duration.first_step_s)
        wall_s = Range(*(before + later for later in training_s))
        flop = float(model_flop(workload.tokens_per_step, workload.seq_len, workload.shape))
        return PlanEstimate(
            plan=self.plans[i],
            data_parallel=int(self.plans.data_parallel(machine.num_devices)[i]),
            is_illegal=bool(self.reasons[i]),
            reason=self.reasons[i]
            or over_memory(device_bytes.value, found.usable_bytes, float(self.host_bytes[i]), machine),
            memory=PlanMemory(
                per_device_bytes=device_bytes,
                total_bytes=self._range(found.total_bytes, found.memory_log_sd, i).no_less_than(
                    found.certain_total_bytes[i]
                ),
                usable_bytes_per_device=found.usable_bytes,
                breakdown_bytes={name: float(part[i]) for name, part in self.memory_parts.items()},
            ),
            excess_bytes=device_bytes.value - found.usable_bytes,
            is_risky=device_bytes.high > found.usable_bytes,
            step_s=step_s,
            step_breakdown=breakdown,
            device_s=device_s,
            fast_step_s=fast_s,
            slow_step_s=slow_s,
            tokens_per_s=step_s.inverse(workload.tokens_per_step),
            logged_tokens_per_s=self._range(self.logged_tokens_per_s, self.logged_log_sd, i),
            flop_per_device_s=flop / machine.num_devices / step_s.value,
            wall=duration,
            training_s=training_s,
            wall_s=wall_s,
            usd=_cost(wall_s, prices, machine.num_devices) if prices else None,
            kwh=float(energy_kwh(wall_s.value, machine.num_devices, machine.accelerator)),
        )

    @property
    def logged_log_sd(self) -> Array:
        """Standard deviation of the logarithm of what the log will print."""
        found = self.prediction
        return found.launch_log_sd if self.stack.window.times == "launch" else found.step_log_sd

    def _range(self, medians: Array, log_sds: Array, i: int) -> Range:
        return Range.of(float(medians[i]), log_sds[i], self.prediction.degrees_of_freedom)

    def _paces(self, i: int, device_s: float) -> tuple[float, float]:
        """Return the seconds of a step at the host's fast and at its slow pace."""
        if not self.stack.habits.single_controller:
            step_s = float(self.prediction.step.seconds[i])
            return step_s, step_s
        fast, slow = paces(float(self.prediction.step.launch_s[i]), self.stack.window)
        return device_s + float(fast), device_s + float(slow)


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


def _cost(wall_s: Range, prices: tuple[float, float, float], num_devices: int) -> Range:
    hours = wall_s.times(num_devices / SECONDS_PER_HOUR)
    return Range(*(each * price for each, price in zip(hours, prices, strict=True)))


def host_memory(machine: Machine) -> float:
    """Bytes that a node's host has for optimizers; 0 where it is not known."""
    return machine.node.host.memory_bytes if machine.node.host else 0.0


def plan_reasons(plans: Plans, workload: Workload, machine: Machine, stack: Stack) -> list[str]:
    """Return why each plan cannot run, by the rules of the layout and of the trainer; "" where it can."""
    found = reasons(plans, workload, machine.num_devices, Trainer(stack.habits.balances_stages))
    if stack.habits.updates_in_backward:
        for i in np.flatnonzero(np.broadcast_to(plans.num_micro_batches > 1, plans.shape)):
            told = f"num_micro_batches={plans[int(i)].num_micro_batches}: an optimizer in the backward pass adds up no"
            found[i] = found[i] or f"{told} gradients; use num_micro_batches=1"
    if stack.trainer == TRAINER:
        for i in np.flatnonzero(~are_trainable(plans, workload.shape)):
            found[i] = found[i] or untrainable_reason(plans[int(i)], workload.shape)
    return found


def evaluate(plans: Plans, workload: Workload, machine: Machine, stack: Stack, *, intervals: bool = True) -> Evaluation:
    """Evaluate plans at once: time, memory, what the log will print, and the uncertainty of each.

    Args:
        plans: fields of shape (plans,).
        workload: the work.
        machine: devices, links and network.
        stack: the software.
        intervals: without, every spread is 0, and it takes a fortieth of the time.
    """
    inputs = step_inputs(plans, workload, machine, stack.habits)
    found = predict(inputs, stack, intervals=intervals)
    return Evaluation(
        plans=plans,
        workload=workload,
        machine=machine,
        stack=stack,
        prediction=found,
        device_bytes=found.memory.peak_bytes,
        memory_parts=found.memory.peak,
        host_bytes=host_bytes(inputs, stack.efficiencies(workload.shape.family, machine.accelerator.id)),
        logged_tokens_per_s=logged_tokens_per_s(
            workload.tokens_per_step, found.step.seconds, found.step.launch_s, stack.window
        ),
        reasons=plan_reasons(plans, workload, machine, stack),
    )
