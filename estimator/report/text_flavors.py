"""What a user reads on a terminal of one question on several flavors, or with several stacks."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from estimator.report.text import number, plain_table
from estimator.search.choice import Limits, frontier_marks, no_plan_reason
from estimator.search.planner import Estimate
from estimator.stack.choice import Known
from estimator.stack.stack import load_premises
from hardware.units import MIB


def print_flavors(
    console: Console, estimates: Sequence[Estimate], objective: str, limits: Limits, chosen: Estimate | None
) -> None:
    """Print one line per flavor: its best plan, what it is on the frontier of time and cost, or why it has none."""
    workload = estimates[0].workload
    console.print(
        f"{workload.shape.name}, {workload.num_steps:,} steps of {workload.global_batch:,} x {workload.seq_len:,} "
        f"tokens, {_asked(estimates)}; the best plan of each flavor"
    )
    console.print(_flavors_table(estimates, limits, chosen))
    console.print("dev: devices; plan: degrees, micro-batches x rows; min: from start to end", style="dim")
    for estimate in estimates:
        if estimate.best is None:
            console.print(f"no plan on {estimate.flavor.id}: {no_plan_reason(estimate)}", style="dim")
    if chosen and chosen.best:
        best, usd = chosen.best, chosen.best.usd
        price = f", {number(usd.value)} USD ({number(usd.low)} to {number(usd.high)})" if usd else ""
        console.print(
            f"Least {objective}: {chosen.flavor.id}, {number(best.wall_s.value / 60)} min "
            f"({number(best.wall_s.low / 60)} to {number(best.wall_s.high / 60)}){price}"
        )


def _asked(estimates: Sequence[Estimate]) -> str:
    """Return the stack and the space, or that each flavor has its own."""
    first = estimates[0]
    if all(one.stack.name == first.stack.name and one.space == first.space for one in estimates):
        return f"stack {first.stack.name}, space {first.space}"
    return "each with the stack that was measured nearest to it"


def _flavors_table(estimates: Sequence[Estimate], limits: Limits, chosen: Estimate | None) -> Table:
    marks, each = frontier_marks(estimates), len({one.stack.name for one in estimates}) > 1
    columns = ("flavor", *(("stack",) if each else ()), "dev >", "usable >", "step s >", "tokens/s >", "min >", "USD >")
    table = plain_table(*columns, "kWh >", "plan", "basis", "")
    for column in (table.columns[-3], table.columns[-1]):
        column.no_wrap = False
    for estimate in estimates:
        best = estimate.best
        if best is None:
            continue
        at = marks.get(estimate.flavor.id)
        words = [*(("frontier", *at) if at is not None else ()), "risky" if best.is_risky else ""]
        words += ["over the limits" if limits.missed_by(best) else "may miss" if limits.may_miss(best) else ""]
        table.add_row(
            estimate.flavor.id,
            *((estimate.stack.name,) if each else ()),
            str(estimate.flavor.num_devices),
            f"{best.memory.per_device_bytes.value / estimate.usable_bytes:.0%}",
            number(best.step_s.value),
            number(best.tokens_per_s.value),
            number(best.wall_s.value / 60),
            number(best.usd.value) if best.usd else "-",
            number(best.kwh),
            best.plan.brief(best.data_parallel),
            _basis(estimate),
            ", ".join(word for word in words if word),
            style="bold" if estimate is chosen else None,
        )
    return table


def _basis(estimate: Estimate) -> str:
    found = estimate.basis
    return found.kind if found else ""


def print_stacks(console: Console, estimates: Sequence[Estimate]) -> None:
    """Print one line per stack on one flavor: its best plan, with intervals, and what that rests on."""
    first = estimates[0]
    console.print(
        f"{first.workload.shape.name} on {first.flavor.id}, {first.workload.num_steps:,} steps of "
        f"{first.workload.global_batch:,} x {first.workload.seq_len:,} tokens; the best plan of each stack, "
        f"the first of which answers where none is asked for"
    )
    table = plain_table("stack", "step s >", "90 %", "tokens/s >", "MiB >", "90 %", "min >", "plan", "basis")
    table.columns[-2].no_wrap = False
    for estimate in estimates:
        best = estimate.best
        if best is None:
            continue
        step, held = best.step_s, best.memory.per_device_bytes.times(1 / MIB)
        table.add_row(
            estimate.stack.name,
            number(step.value),
            f"{number(step.low)} to {number(step.high)}",
            number(best.tokens_per_s.value),
            number(held.value),
            f"{number(held.low)} to {number(held.high)}",
            number(best.wall_s.value / 60),
            best.plan.brief(best.data_parallel),
            _basis(estimate),
        )
    console.print(table)
    for estimate in estimates:
        if estimate.best is None:
            console.print(f"no plan with {estimate.stack.name}: {no_plan_reason(estimate)}", style="dim")


def print_known_stacks(console: Console, known: Sequence[Known]) -> None:
    """Print each built-in stack: what it is, and what it was measured on, those of most runs first."""
    for one in sorted(known, key=lambda one: -one.num_runs):
        sources = f"{one.num_sources} source{'s' * (one.num_sources != 1)}"
        console.print(f"{one.stack}: {load_premises(one.stack).about}", style="bold")
        console.print(f"  {one.num_runs:,} timed runs from {sources}")
        for kind in one.measured:
            least, most = kind.hidden_size
            size = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            console.print(f"  {kind}, hidden size {size}: {', '.join(kind.families)}", style="dim")
