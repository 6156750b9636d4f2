"""Write a run record beside each log, from what `runs.csv` says of it: run once, its output is committed.

    python reports/measured/moai/convert_runs.py

The logs say themselves when they asked for accelerators and when each line was written, and are read as they are.
"""

import csv
import json
from pathlib import Path

from estimator.runs.record import record_path
from hardware.catalog import load_catalog
from hardware.units import MIB

FOLDER = Path(__file__).parent

RECOMPUTATIONS = {"0 (none)": "none", "false": "none", "true": "full", "default(1)": "full"}
"""As the platform's versions print it."""


def records(folder: Path = FOLDER) -> dict[str, dict[str, object]]:
    """Return the run record of each log, by the log's name."""
    with (folder / "runs.csv").open(encoding="utf-8", newline="") as file:
        return {row["log"]: record(row) for row in csv.DictReader(file)}


def record(row: dict[str, str]) -> dict[str, object]:
    """Return the run record of a row."""
    flavor = load_catalog().flavor(row["flavor"])
    plan = {name: int(row[name]) for name in ("num_stages", "num_micro_batches", "batch_per_device")}
    known = {
        "num_steps": int(row["steps"]),
        "num_candidates": int(row["candidates"]),
        "num_possible": int(row["possible_candidates"]),
        "total_bytes": int(row["memory_mib"]) * MIB if row["memory_mib"] else None,
        "stated_minutes": float(row["stated_minutes"]) if row["stated_minutes"] else None,
    }
    return {
        "record": "run",
        "schema": "steps/1",
        "model": row["model"],
        "plan": plan
        | {
            "recomputation": RECOMPUTATIONS[row["recomputation"]],
            "distribute_param": row["distribute_param"] == "true",
        },
        "accelerator": load_catalog().node(flavor.node).accelerator,
        "num_devices": flavor.num_devices,
        "num_nodes": flavor.num_nodes,
        "tokens_per_step": int(row["global_batch"]) * int(row["seq_len"]),
        "seq_len": int(row["seq_len"]),
        "precision": "bf16-mixed",
        "versions": {"moai": row["platform"]},
    } | {name: value for name, value in known.items() if value is not None}


def main() -> None:
    """Write the records."""
    for log, found in records().items():
        record_path(FOLDER / log).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
