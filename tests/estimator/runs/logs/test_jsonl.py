import json
from typing import Any

import pytest

from estimator.runs.logs.jsonl import JsonlReader
from estimator.runs.logs.steps import Refused, StepLine
from tests.support.paths import GOLDEN

LINES = (GOLDEN / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines()


def read(*lines: str) -> JsonlReader:
    """Return a reader that has read lines."""
    reader = JsonlReader("log 'a'")
    for line in lines:
        reader.take(line)
    return reader


def step(**changes: Any) -> str:
    """Return a line of the golden log with other values."""
    return json.dumps(json.loads(LINES[1]) | changes)


def told(*lines: str) -> list[StepLine]:
    """Return the steps of lines."""
    return read(*lines).records.forward(Refused())


def test_further_keys_and_records_are_not_read() -> None:
    """Keys that are not known, records of other kinds, and other lines change nothing."""
    plain = told(*LINES[:5])
    more = told(LINES[0], *(json.dumps(json.loads(line) | {"new": [1]}) for line in LINES[1:5]))
    assert [r._replace(line="") for r in more] == [r._replace(line="") for r in plain]
    reader = read(*LINES[:5], '{"record": "evaluation", "step": 3, "loss": 1.0}', "[Step 4/144] | Loss: 0.8", "{}")
    assert reader.records.forward(Refused()) == plain
    assert reader.refused.count == 0


@pytest.mark.parametrize(
    "time", ["2026-11-20T10:00:03Z", "2026-11-20T10:00:03", "2026-11-20T11:00:03+01:00", 1795168803]
)
def test_time_in_every_notation(time: str | int) -> None:
    """A time in ISO 8601, of any zone or of none (UTC), or in seconds since the epoch is the same time."""
    assert told(step(time=time))[0].clock_s == 1795168803


@pytest.mark.parametrize("peak", [7.0, [3, 7], {"0": 7, "1": 2}])
def test_memory_is_the_fullest_rank(peak: Any) -> None:
    """A peak over ranks, and the peaks of all ranks, tell the largest."""
    reader = read(step(peak_reserved_bytes=peak, peak_allocated_bytes=peak))
    assert (reader.records.reserved_bytes, reader.records.allocated_bytes) == (7, 7)


def test_a_loss_may_be_no_number() -> None:
    """A diverged run's loss is NaN in its log, and the step counts."""
    assert len(told(step(loss=float("nan")))) == 1


@pytest.mark.parametrize("line", [LINES[1][:-1], LINES[1][:80], LINES[1] + LINES[2], step(step=-1), step(step_s=True)])
def test_broken_lines_are_refused(line: str) -> None:
    """Half a record, two in a line, and values of another kind are left out and counted."""
    reader = read(line)
    assert reader.refused.count == 1
    assert reader.records.forward(Refused()) == []


def test_a_broken_run_record_ends_the_reading() -> None:
    """A run record that breaks a rule names the log and the key."""
    with pytest.raises(ValueError, match=r"^log 'a': run record: num_devices: is missing; add it$"):
        read(json.dumps({k: v for k, v in json.loads(LINES[0]).items() if k != "num_devices"}))
