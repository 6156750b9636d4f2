"""Write `reports/validation/cases.md`: what people ran, what happened, and what `estimate` says: `make cases`."""

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from estimator import estimate
from estimator.predict.evaluate import PlanEstimate
from estimator.predict.interval import Range
from estimator.search.planner import Estimate
from hardware.units import GIB

FOLDER = Path(__file__).parent
REPORT = FOLDER.parents[1] / "validation" / "cases.md"

HEAD = """# What people ran, and what is said of it

Written by `make cases`: {number} cases of issue threads and benchmark pages
([cases.toml](../measured/cases/cases.toml), each with its source, and what was assumed where it is silent). None was
used in a fit but those marked *seen*, whose source has rows in the fit of the stack that answers; they are left out of
the sums. *Was said* is what the build of 2026-11-24 answered.

{sums}

| what was run | measured | said | was said | |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Case:
    """What was run, and what is said of it."""

    told: Mapping[str, Any]
    answer: Estimate
    plan: PlanEstimate | None
    """The plan as it was run: the best of those that are like it, or the first where none fits; None without any."""

    @property
    def is_seen(self) -> bool:
        """Whether the stack that answers was fitted to rows of the same source."""
        return self.answer.stack.name in self.told.get("seen", ())

    @property
    def quantities(self) -> Iterable[tuple[str, float, Range, str]]:
        """Yield the name of each quantity that was measured, what was measured and predicted, and the unit."""
        if self.plan is None:
            return
        if "gib" in self.told:
            yield "memory", float(self.told["gib"]), in_gib(self.plan), "GiB"
        if "seconds" in self.told:
            yield "seconds", float(self.told["seconds"]), self.plan.step_s, "s"
        if "tokens_per_s" in self.told:
            tokens = self.told["ask"]["seq_len"] * self.told["ask"]["batch"] / self.told["ask"]["devices"]
            yield "seconds", tokens / self.told["tokens_per_s"], self.plan.step_s, "s"

    @property
    def call(self) -> str:
        """What the answer says of such plans: one fits, may not fit, or none does."""
        best = self.answer.best
        return "does not fit" if best is None else "may not fit" if best.is_risky else "fits"


def in_gib(plan: PlanEstimate) -> Range:
    """Return what a device holds, GiB."""
    return Range(*(value / GIB for value in plan.memory.per_device_bytes))


def cases() -> list[Case]:
    """Return the cases, each answered."""
    found = []
    for told in tomllib.loads((FOLDER / "cases.toml").read_text(encoding="utf-8"))["case"]:
        ask = dict(told["ask"])
        if ask["model"].endswith(".json"):
            ask["model"] = str(FOLDER / ask["model"])
        answer = estimate(**ask)
        found.append(Case(told, answer, answer.best or next(iter(answer.plans), None)))
    return found


def row_of(case: Case) -> str:
    """Return a case as a row of the report."""
    told, parts, said = case.told, [], []
    if not told.get("fits", True):
        parts.append("out of memory")
        said.append(f"{case.call}, {memory_text(case)}")
    for _, measured, predicted, unit in case.quantities:
        parts.append(f"{measured:.3g} {unit}")
        low, middle, high = (f"{value:.3g}" for value in (predicted.low, predicted.value, predicted.high))
        mark = "" if predicted.low <= measured <= predicted.high else ", **outside**"
        said.append(f"{middle} ({low} to {high}) {unit}{mark}")
    by = f"{case.answer.stack.name}{', seen' if case.is_seen else ''}"
    what = f"{told['ran']} ({told['source']})" + (f"; assumed: {told['assumed']}" if "assumed" in told else "")
    return f"| {what} | {', '.join(parts)} | {'; '.join(said)} | {told['before']} | {by} |"


def memory_text(case: Case) -> str:
    """Return what the plan nearest to a fit is said to hold."""
    if case.plan is None:
        return "no plan of the kind"
    held = in_gib(case.plan)
    return f"{held.value:.3g} ({held.low:.3g} to {held.high:.3g}) GiB"


def sums_of(found: list[Case]) -> str:
    """Return errors and coverage of what was not seen, and how runs that were out of memory are called."""
    full = [case for case in found if not case.told.get("fits", True)]
    calls = Counter(case.call for case in full)
    lines = [
        f"* Of {len(full)} that ran out of memory, " + ", ".join(f"{n}: {name}" for name, n in calls.items()) + "."
    ]
    for name in ("memory", "seconds"):
        told = [(m, p) for case in found if not case.is_seen for kind, m, p, _ in case.quantities if kind == name]
        off = np.array([abs(p.value / m - 1) for m, p in told])
        inside = sum(p.low <= m <= p.high for m, p in told)
        lines.append(
            f"* {name}: {len(told)} not seen, {np.median(off):.0%} off at the median, {inside} in the interval."
        )
    return "\n".join(lines)


def main() -> None:
    """Write the report."""
    found = cases()
    rows = "\n".join(row_of(case) for case in found)
    REPORT.write_text(HEAD.format(number=len(found), sums=sums_of(found)) + rows + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
