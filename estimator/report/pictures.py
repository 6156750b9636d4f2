"""The pictures of an answer: what each shows in words, its chart, and its numbers as a table."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from estimator.formulas.schedule import KINDS
from estimator.predict.evaluate import PlanEstimate
from estimator.predict.interval import Range
from estimator.predict.timeline import StepTimeline, stage_memory, step_timeline
from estimator.report import charts, frontier_chart
from estimator.report.sensitivity import moves
from estimator.report.text import MEMORY_NAMES, STEP_NAMES, number
from estimator.search.choice import frontier_marks
from estimator.search.planner import Estimate
from hardware.units import MIB

ENDS = ("", "_low", "_high")
"""Of the columns of a value and its interval."""


Cells = tuple[str | float, ...]


class Picture(NamedTuple):
    """A chart with what it says, and the numbers that it shows."""

    spec: charts.Spec
    caption: str
    header: tuple[str, ...]
    rows: tuple[Cells, ...]


def memory(answer: Estimate) -> Picture:
    """Return the memory of each stage's devices by purpose, against what is usable and what there is."""
    best = answer.best
    assert best is not None
    stages = stage_memory(best.plan, answer.workload, answer.machine, answer.stack)
    rows = {f"stage {i}": charts.in_mib(parts, MEMORY_NAMES) for i, parts in enumerate(stages)}
    if len(rows) == 1:
        rows = {"every device": rows.popitem()[1]}
    usable, there = answer.usable_bytes / MIB, answer.machine.accelerator.hbm_bytes / MIB
    lines = {f"usable {usable:,.0f}": usable, f"capacity {there:,.0f}": there}
    held = best.memory.per_device_bytes.times(1 / MIB)
    caption = (
        f"The fullest device holds {held.value:,.0f} MiB (90 %: {held.low:,.0f} to {held.high:,.0f}) of the "
        f"{usable:,.0f} that a plan may fill; the device has {there:,.0f}."
    )
    names = sorted({name for parts in rows.values() for name, value in parts.items() if value})
    return Picture(
        charts.stacked(f"Memory of a device by stage and purpose. {caption}", rows, "MiB per device", lines),
        caption,
        ("stage", *names, "MiB in all"),
        tuple((row, *(parts.get(name, 0.0) for name in names), sum(parts.values())) for row, parts in rows.items()),
    )


def step(answer: Estimate) -> Picture:
    """Return where the seconds of a step go."""
    best = answer.best
    assert best is not None
    parts = {STEP_NAMES[name]: seconds for name, seconds in best.step_breakdown.items() if seconds}
    whole = best.step_s.value
    most = sorted(parts, key=lambda name: -parts[name])[:2]
    told = " and ".join(f"{parts[name] / whole:.0%} {name}" for name in most)
    caption = (
        f"A step takes {number(whole)} s (90 %: {number(best.step_s.low)} to {number(best.step_s.high)}): {told}. "
        f"What is hidden behind other work is not counted twice."
    )
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return Picture(
        charts.bars(f"Where the time of a step goes. {caption}", parts, "seconds per step"),
        caption,
        ("purpose", "s per step", "share, %"),
        tuple((name, seconds, 100 * seconds / whole) for name, seconds in ordered),
    )


def schedule(answer: Estimate) -> Picture:
    """Return the passes of each stage in time; of very many, those that begin first.

    Raises:
        ValueError: there are too many to be laid out.
    """
    best = answer.best
    assert best is not None
    found = step_timeline(best.plan, answer.workload, answer.machine, answer.stack)
    passes, stages, until_s = _passes(found), best.plan.num_stages, found.seconds
    drawn, cut = passes[: charts.MOST_PASSES], ""
    if len(drawn) < len(passes):
        until_s = float(passes[len(drawn)]["start"])
        cut = f" The first {len(drawn):,} of {len(passes):,} passes are drawn; --trace writes all."
    launch = f" The first {number(found.before_s)} s are the launch of the work." if found.before_s else ""
    caption = (
        f"{len(passes):,} passes on {stages} stage{'s' * (stages != 1)}, schedule {best.plan.schedule}; a gap is a "
        f"stage that waits.{launch} After the last pass come collectives and the optimizer, to "
        f"{number(found.seconds)} s.{cut}"
    )
    totals: dict[tuple[int, str], list[float]] = {}
    for row in sorted(passes, key=lambda row: row["stage"]):
        totals.setdefault((row["stage"], row["kind"]), []).append(row["end"] - row["start"])
    about, shown = f"The schedule of the pipeline. {caption}", [*drawn, *_around_passes(found, stages)]
    return Picture(
        charts.schedule(about, shown, stages, until_s),
        caption,
        ("stage", "kind", "passes", "s in all"),
        tuple((*key, len(seconds), sum(seconds)) for key, seconds in totals.items()),
    )


def _passes(found: StepTimeline) -> list[charts.Row]:
    """Return all passes, those that begin first before the others."""
    passes: list[charts.Row] = [
        {
            "stage": i,
            "kind": KINDS[int(kind)],
            "micro_batch": int(batch),
            "start": found.before_s + start,
            "end": found.before_s + end,
        }
        for i, own in enumerate(found.pipeline.passes)
        for kind, _, batch, start, end in zip(*(column.tolist() for column in own), strict=True)
    ]
    return sorted(passes, key=lambda row: (row["start"], row["stage"]))


def _around_passes(found: StepTimeline, num_stages: int) -> list[charts.Row]:
    """Return what comes before the first pass and after the last, on each stage."""
    around = [("launch of the work", 0.0, found.before_s)] if found.before_s else []
    ends, after_s = found.before_s + found.pipeline.seconds, [s for s in found.after.values() if s > 0]
    around += [("collectives, optimizer", ends, ends + sum(after_s))] if after_s else []
    return [
        {"stage": i, "kind": kind, "micro_batch": "all", "start": start, "end": end}
        for kind, start, end in around
        for i in range(num_stages)
    ]


def tornado(answer: Estimate) -> Picture:
    """Return how the wall time goes with each assumption."""
    best = answer.best
    assert best is not None
    found, minutes = moves(answer), best.wall_s.value / 60
    caption = (
        f"Each assumption of stack {answer.stack.name} alone, moved by one standard error of its fit; all else stays, "
        f"at {number(minutes)} min. The errors of a fit are correlated, so that the effects do not add up."
    )
    rows = [{"name": move.name, "less": move.less_s / 60, "more": move.more_s / 60} for move in found]
    return Picture(
        charts.tornado(f"How the wall time goes with each assumption. {caption}", rows, minutes, "minutes in all"),
        caption,
        ("assumption", "one standard error, %", "minutes, lower", "minutes, higher"),
        tuple((move.name, 100 * move.log_sd, move.less_s / 60, move.more_s / 60) for move in found),
    )


def frontier(offers: tuple[Estimate, ...], own: str = "") -> Picture:
    """Return minutes against USD of each flavor's best plan, of those whose price is known.

    Args:
        offers: an answer a flavor.
        own: the flavor that was asked for.
    """
    marks = frontier_marks(offers)
    rows = [_offer(one, one.best, one.best.usd) for one in offers if one.best and one.best.usd]
    for row in rows:
        row |= {"frontier": row["name"] in marks, "own": row["name"] == own}
    spaces = ", ".join(sorted({one.space for one in offers if one.flavor.id != own}))
    beside_it = f"; the diamond is {own} with the plan above" if own in {row["name"] for row in rows} else ""
    without = sum(one.best is None or one.best.usd is None for one in offers)
    caption = (
        f"The best plan of each flavor (space {spaces}), with 90 % intervals{beside_it}. No flavor beats one on "
        f"the line in both minutes and USD. Left out, without a plan that fits or a known price: {without} of "
        f"{len(offers)}."
    )
    rows.sort(key=lambda row: row["minutes"])
    return Picture(
        frontier_chart.frontier(f"Minutes against USD. {caption}", rows),
        caption,
        ("flavor", "on the frontier", "minutes", "low", "high", "USD", "low", "high"),
        tuple(
            (
                row["name"],
                ", ".join(marks[row["name"]]) or "yes" if row["frontier"] else "",
                *(row[f"{of}{end}"] for of in ("minutes", "usd") for end in ENDS),
            )
            for row in rows
        ),
    )


def _offer(answer: Estimate, best: PlanEstimate, usd: Range) -> charts.Row:
    """Return a flavor's best plan as a row of the chart."""
    minutes = best.wall_s.times(1 / 60)
    brief = best.plan.brief(best.data_parallel)
    row = {"name": answer.flavor.id, "told": f"{number(minutes.value)} min, {number(usd.value)} USD; {brief}"}
    ends = {
        f"{name}{end}": value
        for name, of in (("minutes", minutes), ("usd", usd))
        for end, value in zip(ENDS, of, strict=True)
    }
    return row | ends


def beside(answers: Mapping[str, Estimate]) -> tuple[Picture, Picture, Picture]:
    """Return the memory, the step and the minutes of several answers' best plans beside one another."""
    fitting = {name: one.best for name, one in answers.items() if one.best}
    held = {name: charts.in_mib(best.memory.breakdown_bytes, MEMORY_NAMES) for name, best in fitting.items()}
    steps = {
        name: {STEP_NAMES[part]: seconds for part, seconds in best.step_breakdown.items()}
        for name, best in fitting.items()
    }
    minutes = {name: best.wall_s.times(1 / 60) for name, best in fitting.items()}
    caption = (
        "From start to end, with the 90 % interval of each. Answers by one stack share part of their error, so that "
        "which of them is faster is surer than intervals that overlap say."
    )
    return (
        _beside("Memory of the fullest device by purpose.", held, "MiB per device"),
        _beside("Where the time of a step goes.", steps, "seconds per step"),
        Picture(
            charts.intervals(caption, minutes, "minutes from start to end"),
            caption,
            ("name", "minutes", "low", "high"),
            tuple((name, *told) for name, told in minutes.items()),
        ),
    )


def _beside(caption: str, rows: dict[str, dict[str, float]], title: str) -> Picture:
    names = sorted({name for parts in rows.values() for name, value in parts.items() if value})
    cells = tuple((row, *(parts.get(name, 0.0) for name in names), sum(parts.values())) for row, parts in rows.items())
    return Picture(charts.stacked(caption, rows, title), caption, ("name", *names, "in all"), cells)


OF_ONE: dict[str, Callable[[Estimate], Picture]] = {"memory": memory, "step": step, "schedule": schedule}
"""Pictures of the best plan on one flavor."""

PICTURES = (*OF_ONE, "frontier")
