"""What a person reads of a dry run: each rank's peak by purpose, and the fullest beside the estimate."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from estimator.predict.evaluate import PlanEstimate
from estimator.report.text import plain_table
from hardware.units import MIB
from trainer.look_ahead.dry_run import DryRun
from trainer.look_ahead.meter import PURPOSES
from trainer.look_ahead.verify import MOST_OFF, TERMS, Term, Verified, terms_of

PURPOSE_NAMES = {
    "parameters": "parameters kept",
    "gathered_parameters": "parameters gathered",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "communication_buffers": "comm. buffers",
    "temporary": "temporary",
}

OTHER = "fitted correction"

TERM_NAMES = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations, temporary",
    "communication_buffers": "comm. buffers",
    OTHER: OTHER,
    "total": "in all",
    "flop": "FLOP, 1e12",
}


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
        f"\none step on tensors without values, {_layers(found)}; {took:.0f} s and {held / MIB:,.0f} MiB per rank. "
        "The allocator, the libraries and the device's context take more beside."
    )


def compare(found: Mapping[str, float], estimated: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Return bytes of the dry run and of the estimate under names that both know; each sums to its total."""
    known = {name for _, names in TERMS.values() for name in names}
    ours = {name: value for name, value in estimated.items() if name in known}
    pairs = {term.name: (term.counted, term.predicted) for term in terms_of(found, ours)}
    pairs[OTHER] = (0.0, sum(estimated.values()) - sum(ours.values()))
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
            table.add_row(TERM_NAMES[name], f"{run / MIB:,.0f}", f"{estimate / MIB:,.0f}", difference(run, estimate))
    run, estimate = (sum(side) for side in zip(*pairs.values(), strict=True))
    table.add_row("in all", f"{run / MIB:,.0f}", f"{estimate / MIB:,.0f}", difference(run, estimate), style="bold")
    return table


def _layers(found: Sequence[DryRun]) -> str:
    return f"layers {'compiled' if found[0].compiled else 'not compiled'}"


# --- the oracle -------------------------------------------------------------------------------------------------------


def print_verified(console: Console, found: Sequence[Verified]) -> None:
    """Print each stage's account, term by term, and name the terms that are off.

    Args:
        console: where.
        found: a rank of each kind of stage.
    """
    for stage in found:
        console.print(_account(stage))
        console.print()
    off = [stage for stage in found if not stage.holds]
    for stage in off:
        console.print(_complaint(stage))
    rule = f"bytes within {MOST_OFF:.0%} of what torch held, FLOP equal"
    console.print(f"{'does not hold' if off else 'holds'}: {rule}; {_layers([stage.run for stage in found])}")


def verified_document(found: Sequence[Verified]) -> dict[str, object]:
    """Return what `--json` prints of a verification."""
    return {
        "schema": "verify/1",
        "holds": all(stage.holds for stage in found),
        "most_off_fraction": MOST_OFF,
        "compiled": found[0].run.compiled,
        "stages": [
            {
                "rank": stage.run.rank,
                "stage": stage.run.stage,
                "phase": stage.run.phase,
                "holds": stage.holds,
                "furthest": stage.furthest.name,
                "terms_bytes": {term.name: _sides(term) for term in (*stage.terms, stage.total)},
                "flop": _sides(stage.flop),
                "seconds": round(stage.run.seconds, 1),
                "resident_bytes": stage.run.resident_bytes,
            }
            for stage in found
        ],
    }


def _sides(term: Term) -> dict[str, float]:
    return {"torch": term.counted, "predicted": term.predicted}


def _account(stage: Verified) -> Table:
    run = stage.run
    table = plain_table(f"rank {run.rank}, stage {run.stage}, MiB", "torch >", "predicted >", "difference >")
    for term in stage.terms:
        if term.counted or term.predicted:
            table.add_row(*_row(term, MIB))
    table.add_row(*_row(stage.total, MIB), style="bold")
    table.add_row(*_row(stage.flop, 1e12))
    return table


def _row(term: Term, unit: float) -> tuple[str, str, str, str]:
    sides = (term.counted, term.predicted)
    counted, predicted = (f"{side / unit:,.0f}" for side in sides)
    return TERM_NAMES[term.name], counted, predicted, difference(*sides)


def _complaint(stage: Verified) -> str:
    """Return the line that names what is off."""
    where, total = f"stage {stage.run.stage} (rank {stage.run.rank})", stage.total
    if stage.flop.off:
        return f"{where}: torch counts {stage.flop.counted:,.0f} FLOP, {stage.flop.predicted:,.0f} predicted"
    term = stage.furthest
    return (
        f"{where}: {difference(total.counted, total.predicted)} in all, most of it {TERM_NAMES[term.name]}: "
        f"{term.counted / MIB:,.0f} MiB held {stage.run.phase}, {term.predicted / MIB:,.0f} MiB predicted"
    )
