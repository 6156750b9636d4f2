from dataclasses import replace
from pathlib import Path

import pytest

from estimator.calibrate.hold_out import EACH, hold_out
from estimator.calibrate.residual_study import study
from estimator.report.page_runs import write_report
from estimator.runs.read import read_runs
from estimator.stack.stack import load_premises, load_stack
from hardware.catalog import load_catalog
from tests.support.commands import calibrate as call
from tests.support.measured import table_runs
from tests.support.paths import MEASURED

RUNS = sorted((MEASURED / "moai").glob("*.log"))


def test_of_few_runs_each_is_shown(tmp_path: Path) -> None:
    """Of a stack of few runs each has its line, in sample where nothing was held out; one not healthy says so."""
    stack = load_stack("torchtune")
    own = [run for run in table_runs("measured_runs") if run.trainer == stack.name]
    runs = [replace(own[0], why_unhealthy="hot"), *own[1:]]
    write_report(study(stack, runs, {}), tmp_path)
    text = (tmp_path / "torchtune.md").read_text(encoding="utf-8")
    each = text.partition("## Each run")[2].partition("## ")[0]
    assert "predicted by the fit to all of them, which is no accuracy" in each
    for run in runs:
        assert f"| {run.name}{', not healthy' if run.why_unhealthy else ''} | {run.model} | " in each
    assert "Mean parts of a predicted step, by run" in text


def test_a_report_of_runs_with_logs_is_whole(tmp_path: Path) -> None:
    """Every run is there as a fit to the others predicts it, and every picture of the text."""
    status, out, _ = call(*map(str, RUNS), "--stack", "moai-24.2", "--report", str(tmp_path))
    assert status == 0
    assert "moai-24.2.html" in out
    text = (tmp_path / "moai-24.2.md").read_text(encoding="utf-8")
    premises, runs = load_premises("moai-24.2"), read_runs(RUNS, load_catalog()).runs
    for row in hold_out(premises, runs, EACH):
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {row.run.name} | {row.run.model} "))
        assert float(line.split("|")[5].strip(" %")) / 100 == pytest.approx(row.error("step"), abs=6e-4)
    assert "out of sample, held out: each run | total memory | 2 " in text
    assert "## Residuals" not in text
    pictures = [line.partition("](")[2].removesuffix(")") for line in text.splitlines() if line.startswith("![")]
    assert pictures == [f"moai-24.2-{name}.svg" for name in ("steps", "coverage", "parameters", "shares")]
    assert all((tmp_path / picture).is_file() for picture in pictures)
