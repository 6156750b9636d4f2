from pathlib import Path

import pytest

from estimator.stack.stack import load_stack
from tests.support.commands import calibrate as call
from tests.support.paths import MEASURED

LOGS = sorted((MEASURED / "moai").glob("*.log"))


def test_a_report_of_runs_with_logs_is_whole(tmp_path: Path) -> None:
    """Every run is there with the error that the stack's file states of it left out, and every picture of the text."""
    status, out, _ = call(*map(str, LOGS), "--stack", "moai-24.2", "--report", str(tmp_path))
    assert status == 0
    assert "moai-24.2.html" in out
    text = (tmp_path / "moai-24.2.md").read_text(encoding="utf-8")
    for run in load_stack("moai-24.2").runs:
        row = f"| {run.log.removesuffix('.log')} | {run.model} "
        (line,) = (line for line in text.splitlines() if line.startswith(row))
        assert float(line.split("|")[5].strip(" %")) / 100 == pytest.approx(run.left_out_step_error, abs=6e-4)
    pictures = [line.partition("](")[2].removesuffix(")") for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == 3
    assert all((tmp_path / picture).is_file() for picture in pictures)
