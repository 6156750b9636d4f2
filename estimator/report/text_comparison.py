"""What a user reads on a terminal of answers beside one another."""

from collections.abc import Mapping

from rich.console import Console

from estimator.report.text import number, plain_table
from estimator.search.choice import no_plan_reason
from estimator.search.planner import Estimate
from hardware.units import MIB


def print_comparison(console: Console, answers: Mapping[str, Estimate]) -> None:
    """Print one line per answer: its best plan with intervals, and how its minutes and USD go from the first's."""
    first = next(iter(answers.values()))
    console.print(
        f"{first.workload.shape.name} on {first.flavor.id}, {first.workload.num_steps:,} steps of "
        f"{first.workload.global_batch:,} x {first.workload.seq_len:,} tokens, and beside it"
    )
    columns = ("question", "MiB >", "step s >", "tokens/s >", "min >", "90 %", "is >", "USD >", "is >", "plan", "basis")
    table = plain_table(*columns)
    for place in (0, -2, -1):
        table.columns[place].no_wrap = False
    for name, one in answers.items():
        best = one.best
        if best is None:
            continue
        minutes, base = best.wall_s.times(1 / 60), first.best
        table.add_row(
            name,
            number(best.memory.per_device_bytes.value / MIB),
            number(best.step_s.value),
            number(best.tokens_per_s.value),
            number(minutes.value),
            f"{number(minutes.low)} to {number(minutes.high)}",
            _change(best.wall_s.value, base.wall_s.value) if base and one is not first else "",
            number(best.usd.value) if best.usd else "-",
            _change(best.usd.value, base.usd.value) if base and base.usd and best.usd and one is not first else "",
            best.plan.brief(best.data_parallel),
            f"{one.basis.kind if one.basis else ''}, {one.stack.name}",
        )
    console.print(table)
    console.print("min: from start to end; is: against the first; plan: degrees, micro-batches x rows", style="dim")
    for name, one in answers.items():
        if one.best is None:
            console.print(f"no plan for {name}: {no_plan_reason(one)}", style="dim")


def _change(value: float, first: float) -> str:
    """Return how a quantity goes from the first's.

    >>> _change(30.0, 40.0), _change(100.0, 40.0)
    ('-25 %', '2.5 x')
    """
    ratio = value / first
    return f"{ratio:.2g} x" if ratio >= 2 else f"{100 * (ratio - 1):+.0f} %"
