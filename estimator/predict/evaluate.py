"""Plans of any number at once: memory, time, what the log will print, wall time and cost, with their uncertainty."""

from dataclasses import dataclass
from typing import NamedTuple

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
from estimator.work.trainer_limits import TRAINER, untrainable_reason
from estimator.work.workload import Workload
from hardware.units import MIB


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
    """Seconds of a step in which the host launches at its fast pace."""
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
    endurance: Endurance | None = None
    """How the run fares with failures, where that was asked for; then wall time, cost and energy count them."""

    @property
    def possible(self) -> bool:
        """Whether the plan divides evenly and fits."""
        return not self.reason


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
        device_bytes = self._range(self.device_bytes, found.memory_log_sd, i)
        launch_log_sd = found.launch_log_sd if self.stack.window.times == "launch" else found.step_log_sd
        breakdown = {name: float(part[i]) for name, part in found.step.breakdown.items()}
        device_s = step_s.value - breakdown["host"]
        fast_s, slow_s = self._paces(i, device_s)
        duration = wall(step_s.value, workload.num_steps, self.stack.startup, num_compiled)
        training_s = step_s.times(workload.num_steps - 1)
        wall_s = Range(*(duration.startup_s + duration.first_step_s + later for later in training_s))
        flop = float(model_flop(workload.tokens_per_step, workload.seq_len, workload.shape))
        return PlanEstimate(
            plan=self.plans[i],
            data_parallel=int(self.plans.data_parallel(machine.num_devices)[i]),
            is_illegal=bool(self.reasons[i]),
            reason=self.reasons[i] or self._over(i),
            device_bytes=device_bytes,
            excess_bytes=device_bytes.value - found.usable_bytes,
            is_risky=device_bytes.high > found.usable_bytes,
            total_bytes=self._range(found.total_bytes, found.memory_log_sd, i),
            memory_breakdown={name: float(part[i]) for name, part in self.memory_parts.items()},
            step_s=step_s,
            step_breakdown=breakdown,
            device_s=device_s,
            fast_step_s=fast_s,
            slow_step_s=slow_s,
            logged_tokens_per_s=self._range(self.logged_tokens_per_s, launch_log_sd, i),
            flop_per_device_s=flop / machine.num_devices / step_s.value,
            wall=duration,
            training_s=training_s,
            wall_s=wall_s,
            usd=_cost(wall_s, prices, machine.num_devices) if prices else None,
            kwh=energy_kwh(wall_s.value, machine.num_devices, machine.accelerator),
        )

    def _range(self, medians: Array, log_sds: Array, i: int) -> Range:
        return Range.of(float(medians[i]), log_sds[i], self.prediction.degrees_of_freedom)

    def _paces(self, i: int, device_s: float) -> tuple[float, float]:
        """Return the seconds of a step at the host's fast and at its slow pace."""
        if not self.stack.habits.single_controller:
            step_s = float(self.prediction.step.seconds[i])
            return step_s, step_s
        fast, slow = paces(float(self.prediction.step.launch_s[i]), self.stack.window)
        return device_s + float(fast), device_s + float(slow)

    def _over(self, i: int) -> str:
        """Return which memory a plan overfills, "" where none."""
        used, usable = float(self.device_bytes[i]), self.prediction.usable_bytes
        if used > usable:
            return (
                f"needs {used / MIB:,.0f} MiB per device, {(used - usable) / MIB:,.0f} MiB more than the usable "
                f"{usable / MIB:,.0f}"
            )
        used, most = float(self.host_bytes[i]), host_memory(self.machine)
        return f"needs {used / MIB:,.0f} MiB of each node's host, which has {most / MIB:,.0f}" if used > most else ""


def _cost(wall_s: Range, prices: tuple[float, float, float], num_devices: int) -> Range:
    hours = wall_s.times(num_devices / SECONDS_PER_HOUR)
    return Range(*(each * price for each, price in zip(hours, prices, strict=True)))


def host_memory(machine: Machine) -> float:
    """Bytes that a node's host has for optimizers; 0 where it is not known."""
    return machine.node.host.memory_bytes if machine.node.host else 0.0


def _reasons(plans: Plans, workload: Workload, machine: Machine, stack: Stack) -> list[str]:
    """Return why each plan cannot run, by the rules of the layout and of the trainer; "" where it can."""
    found = reasons(plans, workload, machine.num_devices, Trainer(stack.habits.balances_stages))
    if stack.trainer != TRAINER:
        return found
    return [reason or untrainable_reason(plans[i], workload.shape) for i, reason in enumerate(found)]


def evaluate(plans: Plans, workload: Workload, machine: Machine, stack: Stack) -> Evaluation:
    """Evaluate plans at once: time, memory, what the log will print, and the uncertainty of each.

    Args:
        plans: fields of shape (plans,).
        workload: the work.
        machine: devices, links and network.
        stack: the software.
    """
    inputs = step_inputs(plans, workload, machine, stack.habits)
    found = predict(inputs, stack)
    return Evaluation(
        plans=plans,
        workload=workload,
        machine=machine,
        stack=stack,
        prediction=found,
        device_bytes=found.memory.peak_bytes,
        memory_parts=found.memory.peak,
        host_bytes=host_bytes(inputs),
        logged_tokens_per_s=logged_tokens_per_s(
            workload.tokens_per_step, found.step.seconds, found.step.launch_s, stack.window
        ),
        reasons=_reasons(plans, workload, machine, stack),
    )
