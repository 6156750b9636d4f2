"""The script for a machine with an accelerator, rehearsed on a processor."""

import json
import multiprocessing
import os
import queue
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.accelerator import what_it_found
from tests.support.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "accelerator.py"


def called(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script to its end."""
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)  # noqa: S603


@pytest.mark.slow
def test_every_path_that_compiles_nothing_runs(tmp_path: Path) -> None:
    """Each run has a result without an error, falling or level losses, and its step log."""
    done = called("--smoke", "--eager", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(results) == 4
    assert all(found["losses"][0] == pytest.approx(6.25, abs=0.1) for found in results)  # log 512, of random tokens
    logged = {json.loads(line)["run"] for line in (tmp_path / "logs.jsonl").read_text().splitlines()}
    assert logged == {found["name"] for found in results}


def test_predictions_come_before_any_run(tmp_path: Path) -> None:
    """Of each run that is not packed, seconds and bytes with their intervals, in order."""
    done = called("--predict", str(tmp_path / "blind.jsonl"))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "blind.jsonl").read_text().splitlines()]
    assert len(found) == len({one["name"] for one in found}) > 20
    for one in found:
        for value, low, high in (one["step_s"], one["reserved_bytes"]):
            assert 0 < low <= value <= high


def test_smoke_tests_that_were_not_begun_are_a_failure(tmp_path: Path) -> None:
    """They are counted in one line, and the status is 1."""
    done = called("--smoke", "--eager", "--seconds", "5", "--out", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["4 runs were not begun: 5 s were over; give more --seconds"]


def test_a_run_that_was_killed_is_not_waited_for() -> None:
    """Its status is the result, long before its time limit; a result that came with the end is taken."""
    process = multiprocessing.get_context("spawn").Process(target=os._exit, args=(7,))
    process.start()
    process.join()
    found: queue.Queue[dict[str, float]] = queue.Queue()
    assert what_it_found(process, found, 600.0) == {"error": "ended with status 7 and no result"}
    found.put({"step_s": 1.0})
    assert what_it_found(process, found, 600.0) == {"step_s": 1.0}
