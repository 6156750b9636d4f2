import json
from pathlib import Path
from typing import Any

import pytest

from estimator import calibrate, load_stack
from estimator.stack.stack import stack_path
from tests.support.commands import calibrate as call
from tests.support.paths import GOLDEN, TABLES

STEPS = GOLDEN / "logs" / "steps.jsonl"
FEW = 30


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of the first of a node's runs."""
    lines = (TABLES / "vtrain_a100_single_node.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    path = tmp_path_factory.mktemp("tables") / "few.csv"
    path.write_text("".join(lines[: FEW + 1]), encoding="utf-8")
    return path


@pytest.mark.parametrize("options", [{}, {"stack": "megatron"}])
def test_a_check_is_the_commands(table: Path, options: dict[str, Any]) -> None:
    """Checked, the rows are what the command prints: measured, predicted, and whether in sample."""
    frame = calibrate([table, STEPS], check=True, **options).to_frame()
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    _, out, _ = call(str(table), str(STEPS), "--check", "--json", *words)
    rows = json.loads(out)["rows"]
    assert frame.run.tolist() == [row["name"] for row in rows]
    assert frame.in_sample.tolist() == [row["in_sample"] for row in rows]
    assert frame.predicted_step_s_high.tolist() == [row["predicted"]["step_s"]["high"] for row in rows]
    assert frame.step_error.tolist() == [row["error"]["step"] for row in rows]
    assert set(frame.split) == {""}


@pytest.mark.slow
def test_a_fit_gives_the_stack(table: Path, tmp_path: Path) -> None:
    """Fitted, there is the stack and its runs in sample; written, the file holds it."""
    mine = tmp_path / "mine.toml"
    mine.write_bytes(stack_path("megatron-deepspeed").read_bytes())
    before = mine.read_bytes()
    found = calibrate(table, mine)
    assert found.stack is not None
    assert found.to_frame().in_sample.all()
    assert repr(found).startswith(f"megatron-deepspeed fitted to them; {FEW} predictions of runs, 0 skipped\n  in samp")
    assert mine.read_bytes() == before
    written = calibrate([table], str(mine), write=True).stack
    assert written is not None
    assert load_stack(str(mine)).tables == written.tables == found.stack.tables
    assert [(one.name, one.rows) for one in written.tables] == [("few.csv", FEW)]


@pytest.mark.slow
def test_held_out_runs_are_out_of_sample(table: Path) -> None:
    """Held out, each run is predicted once for each way to part them, by a fit that did not see it."""
    found = calibrate(table, "megatron-deepspeed", hold_out=True)
    frame = found.to_frame()
    assert not frame.in_sample.any()
    halves = frame[frame.split == "random half"]
    assert len(halves) == FEW == halves.run.nunique()
    assert "  out of sample: seconds off by " in repr(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "stack: a fit needs the stack that it is for; add --stack NAME, or --check to only predict"),
        ({"check": True, "write": True}, "check: --check and --write are given together; give one"),
        ({"check": True, "hold_out": True}, "check: --check and --hold-out are given together; give one"),
        ({"check": True, "stack": "none"}, "unknown stack 'none'"),
    ],
)
def test_an_error_is_the_commands_line(table: Path, options: dict[str, Any], message: str) -> None:
    """What contradicts itself is told as the command tells it."""
    with pytest.raises(ValueError, match=message):
        calibrate(table, **options)
