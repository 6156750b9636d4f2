import pytest

from estimator.runs.logs.moai import MoaiReader
from estimator.runs.logs.steps import Refused

LINE = (
    "2024-04-22 00:52:54.759 | INFO | __main__:main:149 - [Step 2/144] | Loss: 0.83203125 | Duration: 10.72 | "
    "Throughput: 48896.53 tokens/sec"
)


@pytest.mark.parametrize("line", [LINE, LINE[: LINE.index(" | Duration")], LINE.replace("] |", "]")])
def test_every_version_of_the_line(line: str) -> None:
    """The time of day and the loss are read, with and without a timed window."""
    reader = MoaiReader()
    reader.take(line)
    (record,) = reader.records.forward(Refused())
    assert (record.step, record.loss, record.clock_s) == (2, 0.83203125, 1713747174.759)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (LINE[: LINE.index("] |")], "not whole: "),
        (LINE + LINE, "two records in one line, or part of one: "),
        (LINE[: LINE.index(" | Throughput")], "two records in one line, or part of one: "),
        (LINE.replace("04-22", "04-31"), "a date or a number that no log has: "),
        (LINE.replace("Step 2/", f"Step {'9' * 5000}/"), "a date or a number that no log has: "),
    ],
)
def test_lines_that_are_no_evidence(line: str, reason: str) -> None:
    """Half a line, two in one, and a date that is none are left out and quoted."""
    reader = MoaiReader()
    reader.take(line)
    assert reader.records.forward(Refused()) == []
    assert [told.startswith(reason) for told in reader.refused.told] == [True]
