"""What a stack makes of plans: medians of seconds and bytes, how sure they are, and how likely the plans fit."""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.formulas.inputs import StepInputs
from estimator.formulas.machine import Machine
from estimator.formulas.memory import Memory, certain_total_bytes, plan_memory, total_bytes
from estimator.formulas.step import StepTime, plan_step
from estimator.predict.interval import further_log_sd, log_sd, moved
from estimator.predict.residual import corrected, features, residual_log_sd
from estimator.stack.fit import Fit
from estimator.stack.stack import Stack
from estimator.work.shape import Shape

UNMEASURED_LOG_SD = 0.2
"""Further spread of a model whose layers are of kinds that no measured run had.  # assumed: twice that of a new device

Latent attention, recurrent states, gated attention: counted, but no stack was fitted to runs of such models.
"""


class Prediction(NamedTuple):
    """Of plans, each of shape (plans,): medians, and standard deviations of their logarithms."""

    step: StepTime
    memory: Memory
    """Of a device."""
    total_bytes: Array
    """Of all devices together."""
    certain_bytes: Array
    """Of the fullest device, what follows from the plan alone; nothing predicted lies below."""
    certain_total_bytes: Array
    step_log_sd: Array
    launch_log_sd: Array
    memory_log_sd: Array
    usable_bytes: float
    """Bytes per device that a plan may fill."""
    degrees_of_freedom: int
    """Of the Student's t that the logarithms follow."""

    @property
    def fits_probability(self) -> Array:
        """How likely a plan's memory is to fit."""
        from scipy.special import stdtr  # noqa: PLC0415 - slow to import

        margin = np.log(self.usable_bytes / self.memory.peak_bytes) / self.memory_log_sd
        may_fit = self.certain_bytes <= self.usable_bytes
        return np.asarray(np.where(may_fit, stdtr(self.degrees_of_freedom, margin), 0.0))


def usable_bytes(machine: Machine, stack: Stack) -> float:
    """Bytes per device that a plan may fill."""
    return machine.accelerator.hbm_bytes * stack.usable_memory_fraction


def predict(
    inputs: StepInputs, stack: Stack, source: str = "", steps_per_read: int = 1, *, intervals: bool = True
) -> Prediction:
    """Predict plans by the formulas at a stack's parameters and by what its fit learned beside.

    The spread is that of the parameters, each moved by its own, and that of what they leave unexplained; wider on a
    device that the stack never ran on, and for a source of runs that was never measured.

    Args:
        inputs: plans of shape (plans,), and what they run on.
        stack: the software, as fitted.
        source: whose measurements are predicted; "" for none that is known.
        steps_per_read: steps between two reads of the loss, as `plan_step` takes them.
        intervals: without, every spread is 0.
    """
    fit, device = stack.fit, inputs.machine.accelerator.id
    labels = (inputs.shape.family, device, source)
    efficiencies, places = stack.efficiencies(*labels), features(inputs)
    step, memory = plan_step(inputs, efficiencies, steps_per_read), plan_memory(inputs, efficiencies)
    step, memory = corrected(step, memory, fit, places)
    certain = certain_total_bytes(inputs, efficiencies)
    held = np.maximum(memory.factor * total_bytes(inputs, efficiencies), certain)

    def each(values: Array) -> Array:
        return np.broadcast_to(values, (len(places),))

    none = np.zeros(len(places))
    step_log_sd, launch_log_sd, memory_log_sd = (
        _spreads(inputs, stack, labels, step, places, steps_per_read) if intervals else (none, none, none)
    )
    return Prediction(
        step=StepTime({name: each(part) for name, part in step.breakdown.items()}, each(step.launch_s)),
        memory=memory,
        total_bytes=each(held),
        certain_bytes=each(memory.certain_bytes),
        certain_total_bytes=each(certain),
        step_log_sd=each(step_log_sd),
        launch_log_sd=each(launch_log_sd),
        memory_log_sd=each(memory_log_sd),
        usable_bytes=usable_bytes(inputs.machine, stack),
        degrees_of_freedom=fit.degrees_of_freedom,
    )


def _spreads(
    inputs: StepInputs, stack: Stack, labels: tuple[str, str, str], step: StepTime, places: Array, steps_per_read: int
) -> tuple[Array, Array, Array]:
    """Return the standard deviations of the logarithms of seconds per step, seconds of launching, and bytes."""
    fit, (_, device, source) = stack.fit, labels
    after = moved(stack.efficiencies(*labels), *_moves(stack, labels))
    moved_step, moved_memory = plan_step(inputs, after, steps_per_read), plan_memory(inputs, after)
    unknown = 0.0 if device in fit.accelerators else fit.device_log_sd
    device_share = 1 - step.breakdown["host"] / step.seconds
    far, far_bytes = further_log_sds(inputs.machine, inputs.shape, fit, source)
    known = residual_log_sd(fit.step_residual, fit.step_log_sd, places)
    left = np.hypot(np.hypot(known, inputs.machine.drift_log_sd), far)
    left_bytes = np.hypot(residual_log_sd(fit.memory_residual, fit.memory_log_sd, places), far_bytes)
    unmeasured = UNMEASURED_LOG_SD * any(kind.mixer is not None for kind in inputs.shape.kinds)
    return (
        log_sd(moved_step.seconds, np.hypot(left, np.hypot(unknown, unmeasured) * device_share)),
        log_sd(moved_step.launch_s, fit.launch_log_sd),
        log_sd(moved_memory.peak_bytes, np.hypot(left_bytes, unmeasured)),
    )


def _moves(stack: Stack, labels: tuple[str, str, str]) -> tuple[tuple[str, ...], Array]:
    """Return what is moved, and the independent moves, shape (moves, names): of a loss too, where nobody says whose."""
    names, moves = (*stack.priors, "family_factor"), stack.directions(*labels)
    if not stack.habits.loss_log_sd or labels[-1] in stack.fit.sources:
        return names, moves
    moves = np.pad(moves, ((0, 1), (0, 1)))
    moves[-1, -1] = stack.habits.loss_log_sd
    return (*names, "loss_ratio"), moves


def further_log_sds(machine: Machine, shape: Shape, fit: Fit, source: str) -> tuple[float, float]:
    """Return the further spreads of seconds per step and of bytes beyond the runs that a stack was fitted to."""
    if fit.reach is None:
        return 0.0, 0.0
    num_nodes, size = machine.num_nodes, shape.hidden_size
    beyond = fit.reach.beyond(num_nodes, size, knows_source=source in fit.sources)
    return further_log_sd(fit.reach.step_log_sd, beyond), further_log_sd(fit.reach.memory_log_sd, beyond)
