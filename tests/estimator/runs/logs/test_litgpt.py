import pytest

from estimator.runs.logs.litgpt import LitgptReader
from estimator.runs.logs.read import read_log
from tests.support.paths import GOLDEN

LOG = GOLDEN / "logs" / "litgpt.log"


def line(number: int, step: int, end: str = "", ms: str = "300.00") -> str:
    """Return the line of an iteration."""
    return f"Epoch 1 | iter {number} step {step} | loss train: 1.646, val: n/a | iter time: {ms} ms{end}"


def read(*lines: str) -> LitgptReader:
    """Return a reader that has read lines."""
    reader = LitgptReader()
    for one in lines:
        reader.take(one)
    return reader


def test_a_step_is_its_iterations_together() -> None:
    """Micro-batches up to the update make a step; a repetition of one counts once."""
    reader = read(line(1, 0), line(2, 1, " (step)"), line(3, 1), line(3, 1), line(4, 2, " (step)", "500.00"))
    assert [(one.step, one.step_s) for one in reader.steps()] == [(1, 0.6), (2, 0.8)]
    assert read(line(7, 7, " (step) remaining time: 0:10:00")).count == 0  # what was before is not known
    assert read(line(1, 1, " (step) remaining time: 0:10:00")).count == 1


def test_a_step_of_which_one_is_missing_is_refused() -> None:
    """Where pretraining logs the last micro-batch alone, no step is timed, and it says why."""
    reader = read(line(4, 1, " (step)"), line(8, 2, " (step)"), line(12, 3, " (step)"))
    assert reader.count == 0
    assert reader.refused.told[0].startswith("the log has not every iteration of the step: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (line(1, 1, " (step)").replace(" ms", " s"), "not whole, or not in milliseconds"),
        (line(1, 1, " (step)") * 2, "two records in one line"),
    ],
)
def test_what_is_no_line_is_refused(text: str, reason: str) -> None:
    """Another unit, or two records in a line, are left out; nor is the step known that they are of."""
    reader = read(text)
    assert reader.count == 0
    assert reader.refused.told[0].startswith(f"{reason}: ")


@pytest.mark.parametrize("text", ["| - Memory Used               :  21.30 GB  ", "Memory used: 21.30 GB"])
def test_memory_is_in_1e9_bytes(text: str) -> None:
    """What tensors held at the most, as it is printed now and was before."""
    assert read(text).records.allocated_bytes == 21.3e9
    assert read_log(LOG).allocated_bytes == 21.3e9
