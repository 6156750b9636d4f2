import io
import json
from dataclasses import replace

from rich.console import Console

from estimator.calibrate.assess import Assessment, assess
from estimator.predict.interval import Range
from estimator.report.text_runs import assessment_document, print_assessment, print_fit
from estimator.runs.read import Skipped
from estimator.stack.stack import load_stack
from hardware.units import MIB
from tests.support.measured import table_runs

STACK = load_stack("nanotron")
RUNS = [c for c in table_runs("ultrascale_h100") if c.trainer == "nanotron"][::40]
FOUND = Assessment(assess(RUNS, [STACK]).rows, (Skipped("row 9", "gpu: not stated"),))


def printed(show: str, found: Assessment = FOUND) -> str:
    """Return what is printed of the assessment, or of the stack."""
    console = Console(file=io.StringIO(), width=400)
    print_assessment(console, found) if show == "rows" else print_fit(console, STACK)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rows_show_both_numbers_and_the_sample() -> None:
    """Every run has its line, every other row its reason, and no error in sample goes without saying so."""
    text = printed("rows")
    assert all(run.name in text for run in RUNS)
    assert "skipped: row 9: gpu: not stated" in text
    assert "in sample: these runs were fitted, their error is no accuracy" in text
    assert f"{len(RUNS)} runs predicted, 1 skipped" in text


def test_what_only_logs_tell_has_its_columns() -> None:
    """The launch of work and the bytes of all devices are shown and summarized where a log tells them, else not."""
    tells = replace(FOUND.rows[0].run, launch_windows_s=(1.0, 2.0), total_bytes=MIB * 1000)
    told = replace(FOUND.rows[0], run=tells, launch_s=Range(3.0, 2.0, 4.0), total_bytes=Range(MIB, MIB, MIB))
    found = Assessment((told, *FOUND.rows[1:]), ())
    text = printed("rows", found)
    assert "launch s (90 %)" in text
    assert "3.00 (2.00-4.00)" in text
    assert "1.00 (1.00-1.00) 1,000" in " ".join(text.split())
    assert "total memory" in text
    assert "launch s" not in printed("rows")
    first, second = assessment_document(found)["rows"][:2]
    assert (first["measured"]["launch_s"], first["predicted"]["launch_s"]["value"]) == (1.5, 3.0)
    assert first["error"]["launch"] == 1.0
    assert first["error"]["total_memory"] == -0.999
    assert second["error"].keys() == {"step", "memory"}
    assert second["measured"].keys() == {"step_s", "tokens_per_s", "reserved_mib", "fits"}


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
