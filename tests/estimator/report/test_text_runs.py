import io
import json

from rich.console import Console

from estimator.calibrate.assess import Assessment, assess
from estimator.report.text_runs import assessment_document, print_assessment, print_fit
from estimator.runs.read import Skipped, read_runs
from estimator.stack.stack import load_stack
from hardware.catalog import load_catalog
from tests.support.paths import TABLES

STACK = load_stack("nanotron")
RUNS = [c for c in read_runs([TABLES / "ultrascale_h100.csv"], load_catalog()).runs if c.trainer == "nanotron"][::40]
FOUND = Assessment(assess(RUNS, [STACK]).rows, (Skipped("row 9", "gpu: not stated"),))


def printed(show: str) -> str:
    """Return what is printed of the assessment, or of the stack."""
    console = Console(file=io.StringIO(), width=400)
    print_assessment(console, FOUND) if show == "rows" else print_fit(console, STACK)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rows_show_both_numbers_and_the_sample() -> None:
    """Every run has its line, every other row its reason, and no error in sample goes without saying so."""
    text = printed("rows")
    assert all(run.name in text for run in RUNS)
    assert "skipped: row 9: gpu: not stated" in text
    assert "in sample: these runs were fitted, their error is no accuracy" in text
    assert f"{len(RUNS)} runs predicted, 1 skipped" in text


def test_a_fit_says_what_it_could_not_tell() -> None:
    """Parameters that the data did not constrain are said to stand at their priors."""
    text = printed("fit")
    assert "matmul_efficiency" in text
    assert "no: the prior stands" in text


def test_the_document_is_plain_json() -> None:
    """It survives JSON, holds every row and reason, and its errors are predicted over measured less 1."""
    document = json.loads(json.dumps(assessment_document(FOUND), allow_nan=False))
    assert document["schema"] == "calibration/1"
    assert len(document["rows"]) == len(RUNS)
    assert document["skipped"] == [{"name": "row 9", "why": "gpu: not stated"}]
    for row in document["rows"]:
        if row["measured"]["step_s"]:
            error = row["predicted"]["step_s"]["value"] / row["measured"]["step_s"] - 1
            assert abs(error - row["error"]["step"]) < 1e-9
    assert {s["sample"] for s in document["summary"]} <= {"in", "out"}
