"""One step of one plan in time: every pass on every stage, what travels, what comes after, and the memory meanwhile."""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.formulas.inputs import StepInputs, step_inputs
from estimator.formulas.machine import Machine
from estimator.formulas.memory import Memory, stage_bytes
from estimator.formulas.passes import StagePasses, stage_passes
from estimator.formulas.schedule import BACKWARD, FORWARD, WEIGHT_GRADIENT, Timeline, pass_orders, timeline
from estimator.formulas.stages import stage_at
from estimator.predict.prediction import predict
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.stack import Stack
from estimator.work.plan import Plan
from estimator.work.workload import Workload

AFTER = ("data_parallel", "optimizer", "offload", "unexplained")
"""Purposes of a step's breakdown that come after its last pass, as far as they are not hidden behind it."""


MOST_LAID_OUT = 200_000
"""Passes of a schedule that are laid out in time; as many take a second."""


class StepTimeline(NamedTuple):
    """A step from its begin, in seconds."""

    plan: Plan
    before_s: float
    """Seconds in which a single controller launches the step, before the devices run it."""
    passes: StagePasses
    """Seconds of one micro-batch on each stage."""
    pipeline: Timeline
    """From the first pass on."""
    after: dict[str, float]
    """Seconds by purpose from the last pass on; `unexplained` may be negative: it is what runs like it took less."""
    peak_bytes: Array
    """Of a device of each stage, shape (stages,)."""
    chunk_bytes: Array
    """Of them for each chunk of a micro-batch that waits for its backward pass, shape (stages,)."""
    passed_bytes: float
    """What a device hands to its peer of the next stage, or back, for each chunk."""

    @property
    def seconds(self) -> float:
        """From the begin of a step to that of the next."""
        return self.before_s + self.pipeline.seconds + sum(self.after.values())

    def held_bytes(self, stage: int) -> tuple[Array, Array]:
        """Return when the memory of a stage's devices changes, and its bytes from then on; first before any pass."""
        moments, chunks = self.pipeline.held(stage)
        chunks = np.concatenate([[0], chunks])
        held = self.peak_bytes[stage] - (chunks.max() - chunks) * self.chunk_bytes[stage]
        return np.concatenate([[0.0], moments]), held


def _refuse_too_many_passes(plan: Plan) -> None:
    count = 2 * plan.num_stages * plan.num_micro_batches * plan.virtual_stages
    if count > MOST_LAID_OUT:
        raise ValueError(
            f"schedule: {count:,} passes are too many to be laid out; take a plan of {MOST_LAID_OUT:,} at most"
        )


def step_timeline(plan: Plan, workload: Workload, machine: Machine, stack: Stack) -> StepTimeline:
    """Return a step of a plan as events.

    What each pass takes adds up to what is predicted of the step, op by op. How long stages wait for each other, and
    for what travels between them, comes from the events; the closed form of a step states it without them.

    Args:
        plan: one that breaks no rule of the layout.
        workload: the work.
        machine: devices, links and network.
        stack: the software.

    Raises:
        ValueError: the plan has more passes than are laid out.
    """
    _refuse_too_many_passes(plan)
    inputs = step_inputs(plan, workload, machine, stack.habits)
    efficiencies = stack.efficiencies(workload.shape.family, machine.accelerator.id)
    found = predict(inputs, stack, intervals=False)
    passes = stage_passes(inputs, efficiencies)
    breakdown = {name: float(np.asarray(part).item()) for name, part in found.step.breakdown.items()}
    alone = stack.habits.single_controller
    after = {name: breakdown[name] for name in AFTER if breakdown.get(name)}
    if not alone:
        after["host"] = float(np.asarray(efficiencies.launch_s_per_step))
    peak_bytes, chunk_bytes = _stage_memory(inputs, efficiencies, found.memory)
    return StepTimeline(
        plan=plan,
        before_s=breakdown["host"] if alone else 0.0,
        passes=passes,
        pipeline=_pipeline(plan, passes),
        after=after,
        peak_bytes=peak_bytes,
        chunk_bytes=chunk_bytes,
        passed_bytes=float((inputs.passed_bytes / inputs.plan.tp).item()),
    )


def stage_memory(plan: Plan, workload: Workload, machine: Machine, stack: Stack) -> list[dict[str, float]]:
    """Return the bytes of a device of each pipeline stage at its fullest moment, by purpose.

    Those of a stage add up to what it is predicted to hold; `correction` is what the fit adds to those counted, and may
    be negative.

    Args:
        plan: one that breaks no rule of the layout.
        workload: the work.
        machine: devices, links and network.
        stack: the software.
    """
    inputs = step_inputs(plan, workload, machine, stack.habits)
    efficiencies = stack.efficiencies(workload.shape.family, machine.accelerator.id).on(machine.accelerator)
    memory = predict(inputs, stack, intervals=False).memory
    found = []
    for i in range(plan.num_stages):
        held = stage_bytes(inputs, efficiencies, stage_at(inputs, i))
        parts = {name: float(np.asarray(part).item()) for name, part in held.parts.items()}
        parts["correction"] = float(np.asarray(memory.held(held)).item()) - sum(parts.values())
        found.append(parts)
    return found


def _pipeline(plan: Plan, passes: StagePasses) -> Timeline:
    orders = pass_orders(plan.schedule, plan.num_stages, plan.num_micro_batches, plan.virtual_stages)
    stretch = 1.0 + passes.waits_for_host / passes.busy_s
    forward = np.asarray(sum(passes.forward.values()))
    later = passes.weight_gradient * (plan.schedule == "zero_bubble")
    seconds = {FORWARD: forward, BACKWARD: passes.busy_s - forward - later, WEIGHT_GRADIENT: later}
    each = {kind: stretch * of_kind / plan.virtual_stages for kind, of_kind in seconds.items()}
    return timeline(orders, each, passes.transfer_s)


def _stage_memory(inputs: StepInputs, efficiencies: Efficiencies, memory: Memory) -> tuple[Array, Array]:
    """Return bytes of a device of each stage at its fullest, and those of each chunk in flight."""
    peaks, chunks = [], []
    for i in range(int(inputs.plan.num_stages.item())):
        stage = stage_at(inputs, i)
        held = stage_bytes(inputs, efficiencies, stage)
        in_flight = stage.held * inputs.plan.virtual_stages
        peaks.append(float(np.asarray(memory.held(held)).item()))
        chunks.append(float((memory.factor * memory.ratio * held.parts["activations"] / in_flight).item()))
    return np.array(peaks), np.array(chunks)
