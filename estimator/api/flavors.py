"""One question on several flavors: which is chosen, what each costs in minutes and USD, and why none will do."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from estimator.predict.evaluate import PlanEstimate
from estimator.predict.interval import Range
from estimator.search.choice import Limits, choose, frontier_marks, no_plan_reason, worth
from estimator.search.planner import Estimate, search
from hardware.catalog import Catalog
from hardware.errors import unknown_name
from hardware.models import MOST_DEVICES, Flavor

if TYPE_CHECKING:
    import pandas as pd

MOST_DOUBLINGS = 6
"""Of the devices, or halvings of the rows, that are tried where nothing fits."""

LEAST_TOKENS = 64
"""Of a row, below which none is proposed."""

RANGES = ("step_s", "tokens_per_s", "total_minutes", "usd")
"""Columns that have the ends of their 90 % intervals beside them, `_low` and `_high`; nan where nothing is known."""

COLUMNS = (
    "flavor",
    "stack",
    "basis",
    "accelerator",
    "num_devices",
    "num_nodes",
    *(f"{name}{end}" for name in RANGES for end in ("", "_low", "_high")),
    "kwh",
    "possible",
    "risky",
    "frontier",
    "marks",
    "chosen",
    "plan",
    "missed",
    "reason",
)


@dataclass(frozen=True, slots=True)
class Estimates:
    """The estimates of one question on several flavors, in the order of the catalog, or as they were named."""

    estimates: tuple[Estimate, ...]
    objective: str
    limits: Limits

    @property
    def chosen(self) -> Estimate | None:
        """The estimate whose best plan keeps the limits and is best by the objective, if any does."""
        return choose(self.estimates, self.objective, self.limits)

    @property
    def best(self) -> PlanEstimate | None:
        """The best plan of the flavor that is chosen."""
        chosen = self.chosen
        return chosen.best if chosen else None

    @property
    def frontier(self) -> dict[str, tuple[str, ...]]:
        """The flavors that no other beats in both minutes and USD, and which is fastest, cheapest, and the knee."""
        return frontier_marks(self.estimates)

    @property
    def problem(self) -> str:
        """Why no flavor is chosen, in one line; "" where one is."""
        if self.chosen:
            return ""
        fitting = [(one.flavor.id, one.best) for one in self.estimates if one.best]
        if fitting:
            objective = "time" if self.limits.deadline_s else "cost"
            name, nearest = min(fitting, key=lambda item: worth(item[1], objective))
            return f"no flavor keeps the limits; on {name} the best plan {self.limits.missed_by(nearest)}"
        least = min(self.estimates, key=lambda e: e.nearest_miss.excess_bytes if e.nearest_miss else math.inf)
        return f"no plan fits any flavor; the nearest is on {least.flavor.id}: {no_plan_reason(least)}"

    def __iter__(self) -> Iterator[Estimate]:
        """Yield the estimate of each flavor."""
        return iter(self.estimates)

    def __len__(self) -> int:
        """Return the number of flavors."""
        return len(self.estimates)

    def __getitem__(self, flavor: str) -> Estimate:
        """Return the estimate of a flavor by its name.

        Raises:
            ValueError: it is not among them.
        """
        by_id = {one.flavor.id: one for one in self.estimates}
        aliases = {alias: one.flavor.id for one in self.estimates for alias in one.flavor.aliases}
        wanted = {name.casefold(): name for name in (*by_id, *aliases)}.get(flavor.casefold())
        if wanted is None:
            raise ValueError(unknown_name("flavor", flavor, by_id, aliases))
        return by_id[aliases.get(wanted, wanted)]

    def __repr__(self) -> str:
        """Return what is chosen, and what else of the frontier has a name; or why nothing is."""
        first, count = self.estimates[0], sum(one.best is not None for one in self.estimates)
        stacks = sorted({one.stack.name for one in self.estimates})
        how = f"stack {first.stack.name}, space {first.space}" if len(stacks) == 1 else f"stacks {', '.join(stacks)}"
        lines = [f"{first.workload.shape.name} on {len(self)} flavors, {how}: plans fit {count} of them"]
        lines += [] if self.chosen else [self.problem]
        words = {self.chosen.flavor.id: [f"least {self.objective}"]} if self.chosen else {}
        for name, marks in self.frontier.items():
            words[name] = [*words.get(name, []), *marks]
        return "\n".join([*lines, *(_line(", ".join(of), self[name]) for name, of in words.items() if of)])

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return str(self.to_frame().to_html(max_rows=60, notebook=True))

    def to_frame(self) -> "pd.DataFrame":
        """Return a row a flavor, its best plan: minutes from start to end, USD, and whether it is on the frontier.

        The columns are `COLUMNS`; `marks` are "fastest", "cheapest" and "knee", `missed` says which limit is missed,
        `reason` why no plan fits.
        """
        import pandas as pd  # noqa: PLC0415 - slow to import, and only a frame needs it

        frontier, chosen = self.frontier, self.chosen
        rows = [_row(one, frontier.get(one.flavor.id), is_chosen=one is chosen) for one in self.estimates]
        return pd.DataFrame(rows, columns=list(COLUMNS))


def _line(what: str, found: Estimate) -> str:
    best = found.best
    assert best is not None
    cost = f", {best.usd} USD" if best.usd else ""
    return f"  {what}: {found.flavor.id}, {best.wall_s.times(1 / 60)} min{cost}"


def _row(found: Estimate, marks: Sequence[str] | None, *, is_chosen: bool) -> dict[str, Any]:
    best, machine, rests_on = found.best, found.machine, found.basis
    nothing = Range(np.nan, np.nan, np.nan)
    ranges = dict.fromkeys(RANGES, nothing)
    if best:
        minutes = best.wall_s.times(1 / 60)
        ranges = dict(zip(RANGES, (best.step_s, best.tokens_per_s, minutes, best.usd or nothing), strict=True))
    row: dict[str, Any] = {
        "flavor": found.flavor.id,
        "stack": found.stack.name,
        "basis": rests_on.kind if rests_on else "",
        "accelerator": machine.accelerator.id,
        "num_devices": machine.num_devices,
        "num_nodes": machine.num_nodes,
        "kwh": best.kwh if best else np.nan,
        "possible": best is not None,
        "risky": best is not None and best.is_risky,
        "frontier": marks is not None,
        "marks": ", ".join(marks or ()),
        "chosen": is_chosen,
        "plan": str(best.plan) if best else "",
        "missed": found.missed,
        "reason": "" if best else no_plan_reason(found),
    }
    for name, value in ranges.items():
        row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return row


def why_nothing_fits(found: Estimate, catalog: Catalog) -> str:
    """Return the line that says how far the nearest plan is from fitting, and on how many devices one fits."""
    accelerator, flavor = found.machine.accelerator.id, found.flavor

    def fits(where: Flavor) -> bool:
        return search(found.workload, where, found.stack, catalog, space=found.space).best is not None

    if fits(flavor):
        mend = "another plan fits; leave out --plan to see it"
    elif larger := next(filter(fits, _larger(flavor, accelerator, catalog)), None):
        named = larger.id in {one.id for one in catalog.flavors}
        mend = f"the smallest flavor that fits is {larger.id}" if named else f"{larger.num_devices} devices of it fit"
    else:
        shorter = found.nearest_miss and fits_shorter(found, catalog)
        mend = f"no flavor of {accelerator} fits" + (f"; rows of {shorter} tokens would" if shorter else "")
    return f"no plan fits {flavor.id}: {no_plan_reason(found)}; {mend}"


def _larger(flavor: Flavor, accelerator: str, catalog: Catalog) -> Iterator[Flavor]:
    """Yield the flavors of an accelerator with more devices, smaller ones first; where none is, 2, 4, 8, ... times."""
    same = sorted(
        (one for one in catalog.flavors if catalog.node(one.node).accelerator == accelerator),
        key=lambda one: one.num_devices,
    )
    larger = [one for one in same if one.num_devices > flavor.num_devices]
    yield from larger
    if not larger and flavor.menu_index is None:
        counts = (flavor.num_devices * 2**i for i in range(1, MOST_DOUBLINGS + 1))
        yield from (catalog.flavor_of(accelerator, count) for count in counts if count <= MOST_DEVICES)


def fits_shorter(found: Estimate, catalog: Catalog) -> int | None:
    """Return the most tokens of a row, a half, a quarter and so on of those asked for, with which a plan fits."""
    lengths: Iterator[int] = (found.workload.seq_len // 2**i for i in range(1, MOST_DOUBLINGS + 1))
    for seq_len in lengths:
        if seq_len >= LEAST_TOKENS:
            work = replace(found.workload, seq_len=seq_len, padding=None)
            if search(work, found.flavor, found.stack, catalog, space=found.space).best:
                return seq_len
    return None
