import pytest

from estimator.runs.logs.steps import Refused, StepLine
from estimator.runs.logs.torchtitan import TorchtitanReader
from hardware.units import GIB

LINE = (
    "[rank0]:[titan] 2025-12-17 01:18:42,407 - root - INFO - step:  3  loss: 12.3513  grad_norm:  7.9040  memory: "
    "116.16GiB(83.14%)  tps: 6,585  tflops: 332.35  mfu: 33.60%"
)


def read(*lines: str) -> TorchtitanReader:
    """Return a reader that has read lines."""
    reader = TorchtitanReader()
    for line in lines:
        reader.take(line)
    return reader


def told(reader: TorchtitanReader) -> list[StepLine]:
    """Return the steps that a reader has read."""
    return reader.records.forward(Refused())


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        LINE.replace("[titan] ", ""),  # 2024
        LINE.replace("tps", "wps").replace("  grad_norm:  7.9040", "").replace("  tflops: 332.35", ""),  # 2024
        LINE[: LINE.index("  tflops")],  # without a model's FLOP
        f"[case] {LINE}",
    ],
)
def test_every_version_of_the_line(line: str) -> None:
    """The time of day, tokens per second and device, and memory in 2**30 bytes are read in each version's form."""
    reader = read(line)
    (record,) = told(reader)
    assert (record.step, record.loss, record.device_tokens_per_s) == (3, 12.3513, 6585)
    assert record.clock_s == 1765934322.407
    assert reader.records.reserved_bytes == 116.16 * GIB


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (LINE[: LINE.index("tps")] + "tps: 6,5", "not whole"),
        (LINE.replace("- root - INFO - ", ""), "not whole"),
        (LINE + LINE, "two records in one line"),
        (LINE.replace("2025-12-17", "2025-13-17"), "a date or a number that no log has"),
        (LINE.replace("6,585", "0"), None),
    ],
)
def test_lines_that_are_no_evidence(line: str, reason: str | None) -> None:
    """Half a line, two in one, and a date that is none are left out and quoted; a rate of 0 is only not believed."""
    reader = read(line)
    assert len(told(reader)) == (reason is None)
    assert [t.startswith(reason) for t in reader.refused.told] == ([True] if reason else [])


@pytest.mark.parametrize(
    "line",
    [
        LINE.replace("step:", "validate step:"),
        "[titan] 2025-12-17 01:18:42,407 - root - INFO - Training starts at step 1",
        "2025-12-17 01:18:42,407 - torchft.manager - INFO - [a - step 21] should_commit=False",
    ],
)
def test_other_lines_are_none_of_its(line: str) -> None:
    """Validation and other messages are neither steps nor refused."""
    reader = read(line)
    assert (told(reader), reader.refused.told) == ([], [])


def test_memory_in_another_unit_is_not_read() -> None:
    """Memory in GB is not taken for GiB."""
    assert read(LINE.replace("GiB", "GB")).records.reserved_bytes is None
