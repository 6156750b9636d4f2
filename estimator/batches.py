"""Measured runs that one call of the formulas predicts together: of one model, recipe, source and kind of machine."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from estimator.case import Case
from estimator.counts import Array
from estimator.layout import Layout, on_machine
from estimator.machine import Fabric, Machine
from estimator.memory import Memory, plan_memory
from estimator.plan import Plans
from estimator.shape import Shape
from estimator.stack import Efficiencies, Habits
from estimator.step import Step, plan_step


class Batch(NamedTuple):
    """Runs that differ in their plans, and in what was measured of their machine's collectives."""

    rows: Array
    """Places of the runs among all, shape (runs,)."""
    case: Case
    """The first of them."""
    shape: Shape
    """With the adapters of their recipe."""
    machine: Machine
    habits: Habits
    plan: Layout

    @property
    def labels(self) -> tuple[str, str, str]:
        """Model family, accelerator and source, each of which may have a factor."""
        return self.shape.family, self.machine.accelerator.id, self.case.source

    def predict(self, efficiencies: Efficiencies) -> tuple[Step, Memory]:
        """Return the step and the memory, arrays that broadcast to (samples, runs)."""
        arguments = (self.shape, self.case.seq_len, self.plan)
        step = plan_step(*arguments, self.machine, self.habits, efficiencies)
        return step, plan_memory(*arguments, self.habits, efficiencies)


def batched(cases: Sequence[Case], habits: Habits) -> list[Batch]:
    """Return the runs as batches, under a stack's habits as each recipe changes them."""
    groups: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, case in enumerate(cases):
        machine = case.machine
        kind = (machine.accelerator.id, machine.node.id, machine.num_devices, machine.num_nodes, machine.fabric is None)
        groups[(case.shape, case.recipe, case.source, case.seq_len, *kind)].append(i)
    return [_batch(rows, cases, habits) for rows in groups.values()]


def _batch(rows: list[int], cases: Sequence[Case], habits: Habits) -> Batch:
    case = cases[rows[0]]
    shape, own = case.recipe.shape(case.shape), case.recipe.habits(habits, case.shape)
    machine, fabrics = case.machine, [f for i in rows if (f := cases[i].machine.fabric)]
    if fabrics:
        machine = machine._replace(fabric=Fabric(*(np.array(column) for column in zip(*fabrics, strict=True))))
    plan = on_machine(Plans.of([cases[i].plan for i in rows]), machine, shape, own)
    return Batch(np.array(rows), case, shape, machine, own, plan)
