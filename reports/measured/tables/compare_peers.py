"""Other estimators beside this one, on the runs that they were compared on: `peers.toml` and what hold-outs predicted.

    python compare_peers.py build/holdout.json

Errors are the mean over runs of |predicted over measured seconds per step, less 1|, each run predicted by a fit that
never saw the half of its stack's runs that it is in (`make hold-out`).
"""

import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PEERS = Path(__file__).with_name("peers.toml")
SPLIT = "random half"


def is_in(row: Mapping[str, Any], rows: Mapping[str, Any]) -> bool:
    """Whether a run, as a hold-out has it, is of a row set."""
    return (
        row["step_s"] is not None
        and row["source"].startswith(rows["source_begins"])
        and not (rows.get("healthy") and row["unhealthy"])
        and row["tp"] <= rows.get("tp_at_most", np.inf)
        and row["flop_per_s_per_device"] >= rows.get("least_flop_per_s_per_device", 0.0)
    )


def mean_error(rows: Sequence[Mapping[str, Any]], *, one_scale: bool) -> float:
    """Return the mean error of runs, all multiplied by the one factor that makes it least where `one_scale`."""
    ratio = np.array([row["predicted_step_s"][0] / row["step_s"] for row in rows])
    factors = np.exp(np.linspace(-0.5, 0.5, 1001)) if one_scale else np.ones(1)
    return float(min(np.abs(factor * ratio - 1).mean() for factor in factors))


def compared(document: Mapping[str, Any], peers: Mapping[str, Any]) -> list[str]:
    """Return a line for each row set: this estimator's error, then those of others, least first."""
    halves = [row for splits in document["stacks"].values() for row in splits.get(SPLIT, {"rows": []})["rows"]]
    lines = []
    for rows in peers["row_set"]:
        own = [row for row in halves if is_in(row, rows)]
        if not own:
            continue
        others = sorted(rows["peers"], key=lambda peer: peer["mean_error"])
        told = [f"{p['name']} {p['mean_error']:.1%} ({p['evidence']}, {p['note']})" for p in others]
        error = mean_error(own, one_scale=rows["one_scale"])
        lines.append(f"{rows['name']}: {error:.1%} of {len(own)} runs; {'; '.join(told) or 'no other is published'}")
    return lines


if __name__ == "__main__":
    for line in compared(
        json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), tomllib.loads(PEERS.read_text(encoding="utf-8"))
    ):
        print(line)
