import re

import pytest

from estimator.runs.logs.composer import ComposerReader
from estimator.runs.logs.read import read_log
from tests.support.paths import GOLDEN

LOG = GOLDEN / "logs" / "composer.log"
TEXT = LOG.read_text(encoding="utf-8")


def read(text: str) -> ComposerReader:
    """Return a reader that has read a text."""
    reader = ComposerReader()
    for line in text.split("\n"):
        reader.take(line)
    return reader


def test_memory_and_rows_are_read() -> None:
    """Memory is in 1e9 bytes; rows of a step follow from those before it; blocks are of the batch that ended."""
    log = read_log(LOG)
    assert (log.reserved_bytes, log.allocated_bytes) == (49.93e9, 45.251e9)
    assert [record.step for record in log.records] == [1, 10, 20, 30, 40, 50, 60]
    assert {record.rows for record in log.records[1:]} == {64.0}


@pytest.mark.parametrize("unit_s", [1.0, 60.0, 3600.0, 86400.0])
def test_the_unit_of_time_follows_from_the_rate(unit_s: float) -> None:
    """Whatever unit `time/train` is in, the rate of batches tells it, and the steps take as long."""
    changed = re.sub(r"time/train: ([\d.]+)", lambda m: f"time/train: {float(m[1]) * 3600 / unit_s:.6f}", TEXT)
    reader = read(changed)
    steps = reader.steps()
    assert reader.unit_s == unit_s
    assert (steps[-1].clock_s or 0) - (steps[1].clock_s or 0) == pytest.approx(50 * 1.25, rel=0.02)


def test_a_time_without_a_unit_is_refused() -> None:
    """Where no block has a rate, the unit is not known, and nothing is told."""
    with pytest.raises(ValueError, match=r"^time/train: its unit is not known, since no block has a "):
        read(re.sub(r".*batches_per_sec.*\n", "", TEXT)).steps()


def test_evaluations_are_no_batches() -> None:
    """Blocks of an evaluation are no steps, and nothing of them is in the time."""
    assert read(TEXT).count == 7
    assert read("[Eval batch=2/2] Eval on eval data:\n\t Eval time/train: 1.0\n").count == 0


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("[batch=1/9]:\n\t Train time/train: 0.5", "a block without its time/batch"),
        ("[batch=1/9]:\n\t Train time/batch: 0.5\n\t Train time/train: 0.5", "a block without its time/batch"),
        ("[batch=1/9]:\n\t Train time/batch: 1\n\t Train time/batch: 2", "time/batch is told twice in a block"),
    ],
)
def test_blocks_that_are_not_whole_are_refused(block: str, reason: str) -> None:
    """A block without its batch, or with two of them, is left out and quoted."""
    reader = read(block)
    assert reader.count == 0
    assert reader.refused.told[0].startswith(f"{reason}: ")
