"""What to choose: an objective, limits, and how two plans differ in words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from estimator.predict.evaluate import PlanEstimate
from estimator.search.frontier import knee, pareto
from estimator.search.planner import Estimate
from estimator.search.spaces import nearest_batch
from hardware.errors import shown

OBJECTIVES = ("time", "cost", "energy")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(name: str, text: str) -> float:
    """Return the seconds of a duration such as `90s`, `30m`, `2.5h` or `3d`; `name` stands in the error.

    Raises:
        ValueError: it is none, or not positive.

    >>> parse_duration("deadline", "2.5h")
    9000.0
    """
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds < 1e12:
        raise ValueError(f"{name}: {shown(text)} is not a duration; write for example 30m, 2.5h or 3d")
    return seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may take from its start to its end, and cost; None where it does not matter."""

    deadline_s: float | None = None
    budget_usd: float | None = None

    def __post_init__(self) -> None:
        """Refuse a budget that buys nothing."""
        if self.budget_usd is not None and not 0 < self.budget_usd < 1e15:
            raise ValueError(f"budget: {shown(self.budget_usd)} is not a sum of money; give USD, for example 200")

    def missed_by(self, plan: PlanEstimate) -> str:
        """Return which limit a plan misses and by how much, "" where none."""
        if self.deadline_s is not None and plan.wall_s.value > self.deadline_s:
            over = (plan.wall_s.value - self.deadline_s) / 60
            return f"takes {plan.wall_s.value / 60:,.1f} min, {over:,.1f} min more than the deadline"
        if self.budget_usd is None:
            return ""
        if plan.usd is None:
            return "has no known price, so that no budget can be kept"
        if plan.usd.value > self.budget_usd:
            over = plan.usd.value - self.budget_usd
            return f"costs {plan.usd.value:,.2f} USD, {over:,.2f} USD more than the budget"
        return ""

    def may_miss(self, plan: PlanEstimate) -> bool:
        """Whether the upper end of a plan's interval misses a limit."""
        late = self.deadline_s is not None and plan.wall_s.high > self.deadline_s
        return late or (self.budget_usd is not None and plan.usd is not None and plan.usd.high > self.budget_usd)


def worth(plan: PlanEstimate, objective: str) -> float:
    """Return what an objective makes small: seconds from start to end, USD, or kWh."""
    if objective == "cost":
        return plan.usd.value if plan.usd else float("inf")
    return plan.kwh if objective == "energy" else plan.wall_s.value


def choose(estimates: Iterable[Estimate], objective: str, limits: Limits) -> Estimate | None:
    """Return the estimate whose best plan keeps the limits and is best by the objective.

    A plan whose memory may not fit comes after all that surely do, and one without a price last by cost.
    """
    kept = [e for e in estimates if e.best and not limits.missed_by(e.best)]
    return min(kept, key=lambda e: (e.best.is_risky, worth(e.best, objective)) if e.best else (True, 0.0), default=None)


def no_plan_reason(estimate: Estimate) -> str:
    """Return why no plan of a space is possible, in one line."""
    miss = estimate.nearest_miss
    if miss is not None:
        return f"the nearest, {miss.plan}, {miss.reason}"
    if estimate.plans:
        return estimate.plans[0].reason
    flavor, batch = estimate.flavor, estimate.workload.global_batch
    near = nearest_batch(flavor, batch, estimate.space)
    if estimate.space == "full":
        return f"no plan lays a batch of {batch} over its {flavor.num_devices} devices; use --batch {near}"
    mend = f"use --batch {near}, or --space full" if near else "use --space full"
    return f"no data-parallel degree of its {flavor.num_devices} devices divides a batch of {batch}; {mend}"


class Difference(NamedTuple):
    """How much more seconds a plan spends on a purpose than another."""

    purpose: str
    seconds: float


def differences(plan: PlanEstimate, other: PlanEstimate, share: float = 0.05) -> list[Difference]:
    """Return where a plan's step takes longer or shorter than another's, the largest first.

    Purposes that make up less than a share of the largest difference are left out.
    """
    found = [
        Difference(name, seconds - other.step_breakdown.get(name, 0.0)) for name, seconds in plan.step_breakdown.items()
    ]
    found.sort(key=lambda d: -abs(d.seconds))
    least = share * abs(found[0].seconds)
    return [d for d in found if abs(d.seconds) > max(least, 1e-9)]


def frontier_marks(estimates: Iterable[Estimate]) -> dict[str, tuple[str, ...]]:
    """Return the flavors whose best plan no other beats in both minutes and USD, and what each of them is.

    Marks: "fastest", "cheapest", and "knee", where more money buys little time and less money costs much.
    """
    priced = [(e.flavor.id, e.best.wall_s.value / 60, e.best.usd.value) for e in estimates if e.best and e.best.usd]
    if not priced:
        return {}
    names, minutes, usd = (np.array(column) for column in zip(*priced, strict=True))
    kept = pareto(minutes, usd)
    names, minutes, usd = names[kept], minutes[kept], usd[kept]
    places = {"fastest": int(np.argmin(minutes)), "cheapest": int(np.argmin(usd)), "knee": knee(minutes, usd)}
    return {str(name): tuple(mark for mark, at in places.items() if at == i) for i, name in enumerate(names)}
