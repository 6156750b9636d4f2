import json
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from estimator.calibrate.assess import assess
from estimator.calibrate.hold_out import hold_out_document
from estimator.stack.stack import load_stack
from tests.support.measured import table_runs
from tests.support.paths import MEASURED

SCRIPT = MEASURED / "tables" / "compare_peers.py"
FUNCTIONS = runpy.run_path(str(SCRIPT))
ROW = {
    "source": "lab one", "tp": 8, "unhealthy": "", "step_s": 2.0, "predicted_step_s": [3.0, 2.0, 4.0],
    "flop_per_s_per_device": 2e14,
}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "is_in"),
    [
        ({"source_begins": "lab"}, True),
        ({"source_begins": "lab two"}, False),
        ({"source_begins": "lab", "healthy": True}, True),
        ({"source_begins": "lab", "tp_at_most": 4}, False),
        ({"source_begins": "lab", "tp_at_most": 8, "least_flop_per_s_per_device": 1e14}, True),
        ({"source_begins": "lab", "least_flop_per_s_per_device": 3e14}, False),
    ],
)
def test_row_sets_keep_their_bounds(rows: dict[str, Any], *, is_in: bool) -> None:
    """A run is of the row sets whose source it begins with, and whose bounds it keeps; an untimed one is of none."""
    assert FUNCTIONS["is_in"](ROW, rows) == is_in
    assert not FUNCTIONS["is_in"]({**ROW, "step_s": None, "flop_per_s_per_device": None}, rows)
    if rows.get("healthy"):
        assert not FUNCTIONS["is_in"]({**ROW, "unhealthy": "hot"}, rows)


def test_one_scale_makes_the_error_least() -> None:
    """Predictions that are all off by one factor have no error after one scale, and theirs before."""
    rows = [{**ROW, "step_s": s, "predicted_step_s": [1.25 * s, 0.0, 0.0]} for s in (1.0, 2.0, 5.0)]
    assert FUNCTIONS["mean_error"](rows, one_scale=False) == pytest.approx(0.25)
    assert FUNCTIONS["mean_error"](rows, one_scale=True) == pytest.approx(0.0, abs=1e-3)


def test_hold_outs_are_held_beside_peers(tmp_path: Path) -> None:
    """From the rows that a hold-out wrote, a line for each row set that has runs there: its error, then the peers'."""
    runs = table_runs("vtrain_a100_single_node")[::40]
    rows = list(assess(runs, [load_stack("megatron-deepspeed")]).rows)
    path = tmp_path / "holdout.json"
    path.write_text(json.dumps(hold_out_document({"megatron-deepspeed": {"random half": rows}})), encoding="utf-8")
    done = subprocess.run([sys.executable, SCRIPT, path], check=True, capture_output=True, text=True)  # noqa: S603
    (line,) = done.stdout.splitlines()
    mean = np.mean([abs(row.error("step") or 0.0) for row in rows])
    peers = tomllib.loads(SCRIPT.with_name("peers.toml").read_text(encoding="utf-8"))
    (named,) = (rows for rows in peers["row_set"] if rows["name"] == "A100, single node")
    assert line.startswith(f"A100, single node: {mean:.1%} of {len(runs)} runs; ")
    places = [line.index(f"{peer['name']} {peer['mean_error']:.1%} (") for peer in named["peers"]]
    assert places == sorted(places)
