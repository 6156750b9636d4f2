"""What an answer rests on: runs like it, runs around it, runs beside it, or none on such a device."""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.formulas.inputs import step_inputs
from estimator.formulas.machine import Machine
from estimator.predict.residual import FEATURES, features
from estimator.stack.stack import Stack
from estimator.work.plan import Plan, Plans
from estimator.work.workload import Workload

BASES = ("measured here", "interpolated", "extrapolated", "never measured")
"""From the surest on."""

NEAR = 1.0
"""How far apart runs are alike, in all features together: a doubling of one.

assumed: half the batch or twice the devices is the same software in the same regime
"""

SLACK = 0.5
"""How far beyond all measured runs a feature still counts as between them: half a doubling.  # assumed: likewise"""

MOST_NAMED = 3
"""Devices that are named of those that were measured."""

DEVICE = [name for name, _ in FEATURES].index("peak rate of the device")


class Basis(NamedTuple):
    """What an answer rests on, one of `BASES`, and why."""

    kind: str
    why: str

    def __str__(self) -> str:
        """Return both."""
        return f"{self.kind}: {self.why}"


def basis(plan: Plan, workload: Workload, machine: Machine, stack: Stack) -> Basis:
    """Return what the prediction of a plan rests on.

    The rule, over the timed runs that the stack was fitted to: "never measured" where none ran on the accelerator, or
    the stack was fitted to none; "extrapolated" where none of them was of the model's kind (dense, or experts), in the
    precision, with or without adapters, or a feature of the plan (`residual.FEATURES`) lies more than half a doubling
    beyond all of theirs; "measured here" where one of them is within a doubling in all features together;
    "interpolated" else.
    """
    device, shape, precision = machine.accelerator.id, workload.shape, stack.habits.matmul_precision
    kinds = [kind for kind in stack.measured if kind.accelerator == device]
    if not kinds:
        others = dict.fromkeys(kind.accelerator for kind in stack.measured)
        return Basis("never measured", f"no run of stack {stack.name} was on {device}; {_only(tuple(others))}")
    like = [kind for kind in kinds if kind.is_like(shape, precision)]
    if not like:
        return Basis("extrapolated", f"of stack {stack.name} there were {kinds[0]}, none of this kind")
    at = features(step_inputs(Plans.of([plan]), workload, machine, stack.habits))[0]
    places = np.array(stack.measured_places)
    there = places[np.isclose(places[:, DEVICE], at[DEVICE], atol=1e-3)]
    beyond = _beyond(at, there) if len(there) else []
    if beyond:
        return Basis("extrapolated", f"{', '.join(beyond)}; there were {like[0]}")
    nearest = np.sqrt(((there - at) ** 2).sum(axis=1)).min() if len(there) else np.inf
    if nearest <= NEAR:
        return Basis("measured here", f"like one of {like[0]}")
    return Basis("interpolated", f"between {like[0]}")


def _only(others: tuple[str, ...]) -> str:
    if not others:
        return "it was fitted to none"
    more = f" and {len(others) - MOST_NAMED} others" if len(others) > MOST_NAMED else ""
    return f"they were on {', '.join(others[:MOST_NAMED])}{more}"


def _beyond(at: Array, places: Array) -> list[str]:
    """Return the features that lie beyond all of a place's, and where the others are."""
    found = []
    for (name, unit), value, least, most in zip(FEATURES, at, places.min(axis=0), places.max(axis=0), strict=True):
        if not least - SLACK * unit <= value <= most + SLACK * unit:
            side = "more" if value > most else "less"
            found.append(name.removesuffix(", or not").removesuffix(", or none") if "," in name else f"{side} {name}")
    return found
