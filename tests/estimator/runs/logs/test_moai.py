import pytest

from estimator.runs.logs.moai import MoaiReader
from estimator.runs.logs.read import read_log
from estimator.runs.logs.reader import Beginning
from estimator.runs.logs.steps import Refused
from tests.support.paths import MEASURED

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
    assert record.launch_s == (10.72 if "Duration" in line else None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (LINE[: LINE.index("] |")], "not whole: "),
        (LINE[: LINE.index(" | Throughput")], "part of a line: "),
        (LINE.replace("04-22", "04-31"), "a date or a number that no log has: "),
        (LINE.replace("Step 2/", f"Step {'9' * 5000}/"), "a date or a number that no log has: "),
    ],
)
def test_lines_that_are_no_evidence(line: str, reason: str) -> None:
    """Half a line, and a date or a number that is none, are left out and quoted."""
    reader = MoaiReader()
    reader.take(line)
    assert reader.records.forward(Refused()) == []
    assert [told.startswith(reason) for told in reader.refused.told] == [True]


def test_of_two_records_in_a_line_the_first_counts() -> None:
    """A record that is whole counts, and what stands behind it in its line is quoted."""
    reader = MoaiReader()
    reader.take(LINE + LINE.replace("Step 2/", "Step 3/"))
    (record,) = reader.records.forward(Refused())
    assert (record.step, record.launch_s) == (2, 10.72)
    assert reader.refused.told[0].startswith("a second record in its line: ")


@pytest.mark.parametrize("launch", ["0.00", "0.000000001", "1000000000.0"])
def test_a_launch_of_no_time_is_refused_and_the_line_counts(launch: str) -> None:
    """A launch too short or too long to be one is left out and quoted; its line still times a step."""
    reader = MoaiReader()
    reader.take(LINE.replace("10.72", launch))
    (record,) = reader.records.forward(Refused())
    assert (record.step, record.launch_s) == (2, None)
    assert reader.refused.told[0].startswith(f"a launch of {float(launch):g} s is none; the line counts without it: ")


EVENTS = (
    "[2024-04-22 00:50:31.097] [info] Requesting resources for MoAI Accelerator from the server...",
    "[2024-04-22 00:50:36.870] [info] MoAI Accelerator is ready to use.",
    "[2024-04-22 00:51:28.449] [info] train: true",
)


def test_what_the_events_tell() -> None:
    """The seconds of the request and of the choice of a plan, and when the first step began."""
    reader = MoaiReader()
    for line in (*EVENTS, LINE):
        reader.take(line)
    assert reader.beginning == pytest.approx((5.773, 51.579, 1713747088.449), abs=1e-3)


def test_events_that_tell_nothing() -> None:
    """Without the events nothing is told, nor where they run backward, nor of a date that is none."""
    assert MoaiReader().beginning == Beginning()
    reader = MoaiReader()
    for line in (EVENTS[1], EVENTS[0].replace("00:50", "00:59"), EVENTS[2].replace("04-22", "13-22")):
        reader.take(line)
    assert reader.beginning == Beginning()
    assert reader.refused.told[0].startswith("a date or a number that no log has: ")


def test_the_seed_log() -> None:
    """The seed's log reads as the facts state it: 22.14 s between lines, launches of 9.06 s, 59,671 tokens/s logged."""
    log = read_log(MEASURED / "moai" / "mistral_7b_4xlarge.log")
    first, *later = log.records
    span = (later[-1].clock_s or 0) - (first.clock_s or 0)
    launches = [record.launch_s for record in later if record.launch_s]
    assert span / len(later) == pytest.approx(22.143, abs=5e-4)
    assert sum(launches) / len(later) == pytest.approx(9.06, abs=5e-3)
    assert sum(256 * 2048 / launch for launch in launches) / len(later) == pytest.approx(59671, abs=1)
    assert log.steps_per_read == 1
    assert read_log(MEASURED / "moai" / "llama3_8b_4xlarge.log").steps_per_read == 2
