"""Measured runs that one call of the formulas predicts together: of one model, recipe, source and kind of machine."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.formulas.inputs import StepInputs, step_inputs
from estimator.formulas.machine import Fabric
from estimator.formulas.memory import Memory, plan_memory, stage_bytes, total_bytes
from estimator.formulas.stages import stages_of
from estimator.formulas.step import StepTime, plan_step
from estimator.predict.residual import features
from estimator.runs.measured import Run
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.habits import Habits
from estimator.work.plan import Plans


class Batch(NamedTuple):
    """Runs that differ in their plans, and in what was measured of their machine's collectives."""

    rows: Array
    """Places of the runs among all, shape (runs,)."""
    run: Run
    """The first of them."""
    inputs: StepInputs
    """Of all of them: the shape has the adapters of their recipe, the habits are as it changes them."""

    @property
    def labels(self) -> tuple[str, str, str]:
        """Model family, accelerator and source, each of which may have a factor."""
        return self.inputs.shape.family, self.inputs.machine.accelerator.id, self.run.source

    def step(self, efficiencies: Efficiencies) -> StepTime:
        """Return the time of a step, arrays that broadcast to (samples, runs)."""
        return plan_step(self.inputs, efficiencies, self.run.steps_per_read)

    def memory(self, efficiencies: Efficiencies) -> Memory:
        """Return what devices hold, arrays that broadcast to (samples, runs)."""
        return plan_memory(self.inputs, efficiencies)

    def places(self) -> Array:
        """Return where the runs lie for what the model leaves unexplained, shape (runs, features)."""
        return features(self.inputs)

    def read_bytes(self, memory: Memory) -> Array:
        """Return what was read of that, or would have been."""
        return memory.first_bytes if self.run.reads_first_stage else memory.peak_bytes

    def certain_bytes(self, memory: Memory) -> Array:
        """Return what of that follows from the plan alone."""
        return memory.first.certain if self.run.reads_first_stage else memory.certain_bytes

    def counted_bytes(self, stage: int, efficiencies: Efficiencies) -> Array:
        """Return what tensors hold at most on a device of a stage of the pipeline, as it is counted."""
        plan = self.inputs.plan
        first, between, last = stages_of(self.inputs.shape, plan)
        own = first if stage == 0 else last if stage == self.run.plan.num_stages - 1 else between
        held = stage_bytes(self.inputs, efficiencies, own.at(plan, stage))
        return np.asarray(held.of_state + held.of_work)

    def total_bytes(self, efficiencies: Efficiencies) -> Array:
        """Return what all devices hold together, an array that broadcasts to (samples, runs)."""
        return total_bytes(self.inputs, efficiencies)


def batched(runs: Sequence[Run], habits: Habits) -> list[Batch]:
    """Return the runs as batches, under a stack's habits as each recipe changes them."""
    groups: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        machine = run.machine
        kind = (machine.accelerator, machine.node, machine.num_devices, machine.num_nodes, machine.fabric is None)
        groups[(run.shape, run.recipe, run.source, run.seq_len, run.steps_per_read, *kind)].append(i)
    return [_batch(rows, runs, habits) for rows in groups.values()]


def _batch(rows: list[int], runs: Sequence[Run], habits: Habits) -> Batch:
    run = runs[rows[0]]
    work = replace(run.workload, shape=run.recipe.shape(run.shape))
    machine, fabrics = run.machine, [f for i in rows if (f := runs[i].machine.fabric)]
    if fabrics:
        machine = machine._replace(fabric=Fabric(*(np.array(column) for column in zip(*fabrics, strict=True))))
    plans = Plans.of(runs[i].plan for i in rows)
    return Batch(np.array(rows), run, step_inputs(plans, work, machine, run.recipe.habits(habits, run.shape)))
