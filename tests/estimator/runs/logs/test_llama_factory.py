import json

import pytest

from estimator.runs.logs.llama_factory import LlamaFactoryReader


def entry(step: object, elapsed: object, **others: object) -> str:
    """Return a line of the log."""
    return json.dumps({"current_steps": step, "total_steps": 93, **others, "elapsed_time": elapsed})


def read(*lines: str) -> LlamaFactoryReader:
    """Return a reader that has read lines."""
    reader = LlamaFactoryReader()
    for line in lines:
        reader.take(line)
    return reader


def test_evaluations_between_steps_are_taken_off() -> None:
    """What passes between a step's line and that of its evaluation is no training; nor is what comes at the end."""
    reader = read(
        entry(5, "0:02:00", loss=5.7),
        entry(10, "0:04:00", loss=4.2),
        entry(10, "0:10:00", eval_loss=4.1),
        entry(15, "1 day, 0:12:00", loss=4.0),
        entry(93, "1 day, 0:13:00"),
    )
    assert [(one.step, one.clock_s, one.loss) for one in reader.steps()] == [
        (5, 120.0, 5.7),
        (10, 240.0, 4.2),
        (15, 86400.0 + 360.0, 4.0),
    ]


def test_memory_is_in_gib() -> None:
    """With RECORD_VRAM, peaks are in 2**30 bytes."""
    found = read(entry(5, "0:02:00", loss=5.7, vram_reserved=70.5, vram_allocated=61.25)).records
    assert (found.reserved_bytes, found.allocated_bytes) == (70.5 * 2**30, 61.25 * 2**30)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (entry(5, "0:02:00", loss=5.7)[:-1], "not whole, or no JSON"),
        (entry("5", "0:02:00", loss=5.7), "no step, or no time"),
        (entry(True, "0:02:00", loss=5.7), "no step, or no time"),
        (entry(5, "2 minutes", loss=5.7), "no step, or no time"),
        (entry(5, 120, loss=5.7), "no step, or no time"),
        (f"[{entry(5, '0:02:00')}]", "no step, or no time"),
        (entry(-5, "0:02:00", loss=5.7), "step -5: no run has so many"),
    ],
)
def test_what_is_no_line_is_refused(line: str, reason: str) -> None:
    """What is no JSON, or has no step or time, is left out and quoted."""
    reader = read(line)
    assert reader.count == 0
    assert reader.refused.told[0].startswith(f"{reason}: ")
