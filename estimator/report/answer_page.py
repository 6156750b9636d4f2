"""An answer as one page of HTML that needs no other file: in a sentence, in numbers, in pictures and in tables."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from estimator.predict.evaluate import PlanEstimate
from estimator.predict.interval import Range
from estimator.report import pictures
from estimator.report.assumptions import assumptions
from estimator.report.html import Section, figure, filtered_table, listed, page, table
from estimator.report.pictures import Cells
from estimator.report.text import number
from estimator.search.choice import no_plan_reason
from estimator.search.planner import Estimate, not_modelled
from hardware.units import MIB

MOST_PLANS = 200
"""Rows of the table of plans."""


def answer_page(answer: Estimate, elsewhere: Sequence[Estimate] = (), command: str = "", form: str = "") -> str:
    """Return the page of an answer on one flavor.

    Args:
        answer: of `estimate` on one flavor.
        elsewhere: answers to the same question on all flavors, for minutes against USD; without, that is left out.
        command: what makes the page again.
        form: HTML above the title.

    Raises:
        ValueError: the library that draws is not installed.
    """
    sections = [Section("plans", "The plans", _plans(answer))]
    if answer.best:
        sections += [
            figure("memory", "Memory by stage and purpose", pictures.memory(answer)),
            figure("step", "Where the time goes", pictures.step(answer)),
            _schedule(answer),
        ]
        offers = [answer, *(one for one in elsewhere if one.flavor.id != answer.flavor.id)]
        if elsewhere and any(one.best and one.best.usd for one in offers):
            drawn = pictures.frontier(tuple(offers), answer.flavor.id)
            sections.append(figure("frontier", "Minutes against USD", drawn))
        sections.append(figure("tornado", "What the wall time hangs on", pictures.tornado(answer)))
    sections.append(Section("assumptions", "Every assumption, with its evidence", _assumptions(answer)))
    sections.append(Section("left-out", "What is not modelled", listed(not_modelled(answer))))
    title = f"{answer.workload.shape.name} on {answer.flavor.id}"
    return page(title, _sentence(answer) + _numbers(answer), sections, command, form)


def _schedule(answer: Estimate) -> Section:
    """Return the schedule of a step; where it has too many passes, a line that says so."""
    title = "The schedule of a step"
    try:
        return figure("schedule", title, pictures.schedule(answer))
    except ValueError as error:
        return Section("schedule", title, f'<p class="soft">{escape(str(error))}</p>')


def _sentence(answer: Estimate) -> str:
    """Return the answer in one sentence, and what it rests on."""
    work, best, rests_on = answer.workload, answer.best, answer.basis
    what = (
        f"{escape(work.shape.name)} ({answer.num_params / 1e9:,.2f} billion parameters), {work.num_steps:,} steps of "
        f"{work.global_batch:,} x {work.seq_len:,} tokens on {answer.machine.num_devices} x "
        f"{escape(answer.machine.accelerator.name)}"
    )
    basis = f'<p class="soft">Stack {escape(answer.stack.name)}. ' + (
        f"The answer rests on: {escape(str(rests_on))}.</p>" if rests_on else "</p>"
    )
    if best is None:
        return f'<p class="lead">{what}: <strong>no plan fits</strong>; {escape(no_plan_reason(answer))}.</p>{basis}'
    minutes = best.wall_s.times(1 / 60)
    room = (answer.usable_bytes - best.memory.per_device_bytes.value) / MIB
    cost = f" and <strong>{number(best.usd.value)} USD</strong>" if best.usd else " (no price is known)"
    risk = ", though the interval of its memory reaches beyond" if best.is_risky else ""
    missed = f" The plan {escape(answer.missed)}." if answer.missed else ""
    return (
        f'<p class="lead">{what}, takes <strong>{number(minutes.value)} minutes</strong>{cost}, with 90 % certainty '
        f"{number(minutes.low)} to {number(minutes.high)} minutes; the plan fits with {room:,.0f} MiB of each device "
        f"to spare{risk}.{missed}</p>"
        f'<p class="soft">Plan <code>{escape(str(best.plan)).replace(",", ",<wbr>")}</code></p>{basis}'
    )


def _numbers(answer: Estimate) -> str:
    """Return the headline numbers with their intervals."""
    best = answer.best
    if best is None:
        return ""
    tiles = [
        ("from start to end", best.wall_s.times(1 / 60), "min"),
        *([("cost", best.usd, "USD")] if best.usd else []),
        ("a step", best.step_s, "s"),
        ("sustained", best.tokens_per_s, "tokens/s"),
        ("fullest device", best.memory.per_device_bytes.times(1 / MIB), "MiB"),
        ("all devices", best.memory.total_bytes.times(1 / MIB), "MiB"),
    ]
    shown = "".join(_tile(*tile) for tile in tiles)
    return f'<dl class="numbers">{shown}</dl><p class="soft">Below each number is its 90 % interval.</p>'


def _tile(name: str, told: Range, unit: str) -> str:
    return (
        f'<div><dt>{name}, {unit}</dt><dd><span class="value">{number(told.value)}</span><br>'
        f'<span class="interval">{number(told.low)} to {number(told.high)}</span></dd></div>'
    )


PLAN_COLUMNS: dict[str, Callable[[PlanEstimate], Any]] = {
    "stages": lambda found: found.plan.num_stages,
    "micro-batches": lambda found: found.plan.num_micro_batches,
    "rows": lambda found: found.plan.batch_per_device,
    "tp": lambda found: found.plan.tp,
    "cp": lambda found: found.plan.cp,
    "ep": lambda found: found.plan.ep,
    "dp": lambda found: found.data_parallel,
    "ZeRO": lambda found: found.plan.zero_stage,
    "schedule": lambda found: found.plan.schedule,
    "chunks": lambda found: found.plan.virtual_stages,
    "recomputation": lambda found: found.plan.recomputation,
}
"""What of a plan has a column of its own; `brief` has all of it."""

FOUND_COLUMNS = ("MiB", "of usable, %", "s per step", "tokens/s", "minutes", "USD")


def _plans(answer: Estimate) -> str:
    """Return the plans as a table that is sorted and filtered; what all have in common is told once, above it."""
    shown = answer.plans[:MOST_PLANS]
    kinds = ["best" if plan is answer.best else "" if plan.possible else "no" for plan in shown]
    values = {name: [of(plan) for plan in shown] for name, of in PLAN_COLUMNS.items()}
    common = {name: column[0] for name, column in values.items() if len(shown) > 1 and len(set(column)) == 1}
    columns = {name: column for name, column in values.items() if name not in common}
    told = (
        f"{answer.num_possible:,} of {answer.num_candidates:,} plans of space {answer.space} fit; "
        f"{'the best ' if len(shown) < answer.num_candidates else 'all '}{len(shown):,} are here, as the stack ranks "
        "them. MiB are those of the fullest device."
    )
    told += f" In all: {', '.join(f'{name} {value}' for name, value in common.items())}." if common else ""
    rows = [
        (i + 1, *(column[i] for column in columns.values()), *_found(plan, answer), _told(plan))
        for i, plan in enumerate(shown)
    ]
    header = ("rank", *columns, *FOUND_COLUMNS, "in brief, and why not possible")
    listing = filtered_table("plans", "The plans", header, rows, kinds, such_as="full, zero3, ...")
    return f'<p class="soft">{escape(told)}</p>{listing}'


def _found(plan: PlanEstimate, answer: Estimate) -> Cells:
    nan = float("nan")
    if plan.is_illegal:
        return (nan,) * len(FOUND_COLUMNS)
    held, usd = plan.memory.per_device_bytes.value, plan.usd.value if plan.usd else nan
    share = 100 * held / answer.usable_bytes
    return (held / MIB, share, plan.step_s.value, plan.tokens_per_s.value, plan.wall_s.value / 60, usd)


def _told(plan: PlanEstimate) -> str:
    risk = "its interval of memory reaches beyond the usable" if plan.possible and plan.is_risky else ""
    return "; ".join(words for words in (plan.plan.brief(plan.data_parallel), plan.reason or risk) if words)


def _assumptions(answer: Estimate) -> str:
    rows = [(name, f"{value} {unit}".strip(), kind, source) for name, value, unit, kind, source in assumptions(answer)]
    return table("assumptions", "Every assumption", ("assumption", "value", "evidence", "source"), rows)
