"""What a user reads of microbenchmarks beside their predictions, on a terminal."""

from collections import Counter
from typing import Any

from rich.console import Console

from estimator.report.text import number, plain_table


def print_microbench(console: Console, document: dict[str, Any]) -> None:
    """Print how far predictions are off, the priors that this implies beside the stacks', and what was left."""
    console.print("predicted at the catalog's best rates, over measured seconds, less one")
    table = plain_table("device", "kind", "timed", "rows", "median |error|", "p90", "bias", "shape alone")
    for group in document["groups"]:
        errors = [f"{group[name]:.1%}" for name in ("median_error", "p90_error")]
        rest = [f"{group['bias']:+.1%}", f"{group['shape_error']:.1%}"]
        table.add_row(group["device"], group["kind"], group["setting"], str(group["num_rows"]), *errors, *rest)
    console.print(table)
    console.print("\npriors that they imply, and those of the stacks: median (log sd)")
    table = plain_table("", *(prior["parameter"] for prior in document["priors"]))
    table.add_row("implied", *map(_prior, document["priors"]))
    for stack in dict.fromkeys(name for prior in document["priors"] for name in prior["stacks"]):
        cells = [prior["stacks"].get(stack) for prior in document["priors"]]
        table.add_row(stack, *(_prior(cell) if cell else "-" for cell in cells))
    console.print(table)
    for prior in document["priors"]:
        middle = f"median of {prior['num_rows']} rows of {prior['setting']} from {prior['num_groups']}"
        console.print(f"{prior['parameter']}: {middle}; spread of {prior['num_compared']} devices and sources")
    reasons = Counter(skipped["why"].split(":")[0] for skipped in document["skipped"])
    for skipped in document["skipped"]:
        console.print(f"skipped: {skipped['name']}: {skipped['why']}", style="dim", highlight=False)
    told = ", ".join(f"{count} by their {column}" for column, count in reasons.most_common())
    console.print(
        f"\n{len(document['rows'])} rows predicted, {len(document['skipped'])} skipped{told and f' ({told})'}"
    )


def _prior(prior: dict[str, Any]) -> str:
    return f"{number(prior['median'])} ({number(prior['log_sd'])})"
