"""The tables of `estimate --diff`."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from estimator.report.text import MEMORY_NAMES, STEP_NAMES, number
from estimator.search.difference import Difference, Pair

HEADLINE_NAMES = {
    "device_mib": "fullest device, MiB",
    "total_mib": "all devices, MiB",
    "step_s": "step, s",
    "tokens_per_s": "tokens/s",
    "total_minutes": "start to end, min",
    "energy_kwh": "energy, kWh",
    "usd": "cost, USD",
}


def print_difference(console: Console, found: Difference, names: tuple[str, str]) -> None:
    """Print what differs of question and plan, then memory and step, term by term, largest change first."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", *names):
        table.add_column(name, overflow="fold")
    for name, (first, second) in {
        **found.question,
        **{f"plan.{n}": v for n, v in found.plan.items() if n != "text"},
    }.items():
        table.add_row(name, str(first), str(second))
    if not table.rows:
        table.add_row("nothing of the question or the plan differs", "", "")
    console.print(table)
    for name, reason in zip(names, found.reasons, strict=True):
        if reason:
            console.print(f"{name}: not possible: {reason}")
    console.print()
    for title, words, terms in (
        ("", HEADLINE_NAMES, found.headline),
        ("memory of the fullest device, MiB", MEMORY_NAMES, found.memory_mib),
        ("step, s", STEP_NAMES, found.step_s),
    ):
        _print_terms(console, title, words, terms, names)


def _print_terms(
    console: Console, title: str, words: Mapping[str, str], terms: Mapping[str, Pair], names: tuple[str, str]
) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(title, min_width=34)
    for name in (*names, "change", ""):
        table.add_column(name, justify="right", overflow="fold", max_width=40)
    for name, pair in terms.items():
        if pair.first or pair.second:
            share = f"{pair.change / pair.first:+.1%}" if pair.first > 0 else ""
            change = f"{'-' if pair.change < 0 else '+'}{number(abs(pair.change))}"
            table.add_row(words.get(name, name), number(pair.first), number(pair.second), change, share)
    console.print(table)
    console.print()
