"""What a person reads of a dry run: each rank's peak by purpose, and the fullest beside the estimate."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from estimator.predict.evaluate import PlanEstimate
from estimator.report.text import plain_table
from hardware.units import MIB
from trainer.look_ahead.dry_run import DryRun
from trainer.look_ahead.meter import PURPOSES

PURPOSE_NAMES = {
    "parameters": "parameters kept",
    "gathered_parameters": "parameters gathered",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "communication_buffers": "comm. buffers",
    "temporary": "temporary",
}

COMPARED = {
    "parameters": (("parameters", "gathered_parameters"), ("weights", "master_weights")),
    "gradients": (("gradients",), ("gradients",)),
    "optimizer state": (("optimizer",), ("optimizer",)),
    "activations, temporary": (
        ("activations", "temporary"),
        ("activations", "recomputed_layer", "attention_workspace", "logits", "workspace"),
    ),
    "comm. buffers": (("communication_buffers",), ("communication_buffers",)),
}
"""What of the peak, and what of the estimate, are about the same; the estimate's other parts are `OTHER`."""

OTHER = "fitted correction"


def print_dry_run(console: Console, found: Sequence[DryRun], estimate: PlanEstimate | None) -> None:
    """Print each rank's peak by purpose, then the fullest one's beside the estimate of the fullest device.

    Args:
        console: where.
        found: ranks of one plan; the comparison holds where the fullest stage is among them.
        estimate: of the same plan; None compares with nothing.
    """
    console.print(_peaks(found))
    if estimate is not None:
        console.print()
        fullest = max(found, key=lambda run: run.total_bytes)
        console.print(_beside(fullest, estimate.memory.breakdown_bytes))
    took, held = max(run.seconds for run in found), max(run.resident_bytes for run in found)
    console.print(
        f"\none step on tensors without values, layers uncompiled; {took:.0f} s and {held / MIB:,.0f} MiB per rank. "
        "The allocator, the libraries and the device's context take more beside."
    )


def compare(found: Mapping[str, float], estimated: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Return bytes of the dry run and of the estimate under names that both know; each sums to its total."""
    known = {name for _, names in COMPARED.values() for name in names}
    pairs = {
        name: (sum(found[part] for part in run), sum(estimated.get(part, 0.0) for part in estimate))
        for name, (run, estimate) in COMPARED.items()
    }
    pairs[OTHER] = (0.0, sum(value for name, value in estimated.items() if name not in known))
    return pairs


def difference(run: float, estimated: float) -> str:
    """Return by how much an estimate is above a dry run, "" where there is nothing to compare with.

    >>> difference(200.0, 190.0), difference(0.0, 5.0)
    ('-5.0%', '')
    """
    return f"{estimated / run - 1:+.1%}" if run else ""


def _peaks(found: Sequence[DryRun]) -> Table:
    table = plain_table("peak, MiB", *(f"rank {run.rank}, stage {run.stage} >" for run in found))
    for name in PURPOSES:
        table.add_row(PURPOSE_NAMES[name], *(f"{run.num_bytes[name] / MIB:,.0f}" for run in found))
    table.add_row("in all", *(f"{run.total_bytes / MIB:,.0f}" for run in found), style="bold")
    return table


def _beside(fullest: DryRun, estimated: Mapping[str, float]) -> Table:
    table = plain_table(f"fullest: rank {fullest.rank}", "dry run >", "estimate >", "difference >")
    pairs = compare(fullest.num_bytes, estimated)
    for name, (run, estimate) in pairs.items():
        if run or estimate:
            table.add_row(name, f"{run / MIB:,.0f}", f"{estimate / MIB:,.0f}", difference(run, estimate))
    run, estimate = (sum(side) for side in zip(*pairs.values(), strict=True))
    table.add_row("in all", f"{run / MIB:,.0f}", f"{estimate / MIB:,.0f}", difference(run, estimate), style="bold")
    return table
