"""Several answers beside one another as one page of HTML: of flavors, of stacks, or of any questions with names."""

from collections.abc import Mapping
from html import escape

from estimator.report import pictures
from estimator.report.html import Section, figure, filtered_table, page
from estimator.report.pictures import Cells
from estimator.report.text import number
from estimator.search.choice import no_plan_reason
from estimator.search.planner import Estimate
from hardware.units import MIB

COLUMNS = (
    "devices", "MiB", "of usable, %", "s per step", "tokens/s", "minutes", "low", "high", "USD", "basis",
    "plan, or why there is none",
)  # fmt: skip


def comparison_page(answers: Mapping[str, Estimate], what: str, chosen: str, command: str = "") -> str:
    """Return the page of several answers beside one another.

    Args:
        answers: an estimate each, by name.
        what: the answers are of: "flavors", "stacks" or "questions".
        chosen: the name of the one that is best by what was asked for; "" for none.
        command: what makes the page again.

    Raises:
        ValueError: the library that draws is not installed.
    """
    offers = tuple(answers.values())
    sections = [Section("answers", f"The best plan of all {len(answers)} {what}", _answers(answers, what, chosen))]
    if what == "flavors" and any(one.best and one.best.usd for one in offers):
        sections.append(figure("frontier", "Minutes against USD", pictures.frontier(offers, chosen)))
    if any(one.best for one in offers):
        held, steps, minutes = pictures.beside(answers)
        sections += [
            figure("wall", "Minutes beside minutes", minutes),
            figure("memory", "Memory beside memory", held),
            figure("step", "Step beside step", steps),
        ]
    return page(_title(answers, what), _sentence(answers, what, chosen), sections, command)


def _title(answers: Mapping[str, Estimate], what: str) -> str:
    first, *_ = answers.values()
    if what == "stacks":
        return f"{first.workload.shape.name} on {first.flavor.id}: {len(answers)} stacks"
    if what == "flavors":
        return f"{first.workload.shape.name} on {len(answers)} flavors"
    return f"{len(answers)} answers beside one another"


def _sentence(answers: Mapping[str, Estimate], what: str, chosen: str) -> str:
    first, *_ = answers.values()
    work = first.workload
    asked = f"{work.num_steps:,} steps of {work.global_batch:,} x {work.seq_len:,} tokens, {len(answers)} {what}."
    if what == "questions":
        asked = "The first is what was asked; the others differ from it by what they are named after."
    best = answers[chosen].best if chosen else None
    told = "<strong>No plan fits, or keeps the limits.</strong>"
    if best:
        minutes = best.wall_s.times(1 / 60)
        cost = f" and <strong>{number(best.usd.value)} USD</strong>" if best.usd else ""
        word = "The least time takes" if what == "questions" else "Chosen is"
        told = (
            f"{word} <strong>{escape(chosen)}</strong>: "
            f"<strong>{number(minutes.value)} minutes</strong>{cost}, with 90 % certainty {number(minutes.low)} to "
            f"{number(minutes.high)} minutes."
        )
    return f'<p class="lead">{asked} {told}</p>'


def _answers(answers: Mapping[str, Estimate], what: str, chosen: str) -> str:
    kinds = ["best" if name == chosen else "" if one.best else "no" for name, one in answers.items()]
    rows = [_row(name, one) for name, one in answers.items()]
    words = (what.removesuffix("s"), *COLUMNS)
    return filtered_table("answers", f"The {what}", words, rows, kinds, such_as="zero3, measured, ...")


def _row(name: str, one: Estimate) -> Cells:
    best, basis = one.best, one.basis.kind if one.basis else ""
    if best is None:
        return (name, one.flavor.num_devices, *(float("nan"),) * 8, basis, no_plan_reason(one))
    held, minutes = best.memory.per_device_bytes.value, best.wall_s.times(1 / 60)
    usd = best.usd.value if best.usd else float("nan")
    numbers = (held / MIB, 100 * held / one.usable_bytes, best.step_s.value, best.tokens_per_s.value, *minutes, usd)
    return (name, one.flavor.num_devices, *numbers, basis, best.plan.brief(best.data_parallel))
