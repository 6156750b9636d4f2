import pytest

from estimator.runs.logs.lightning import LightningReader
from estimator.runs.logs.read import read_log
from tests.support.paths import GOLDEN

LOG = GOLDEN / "logs" / "lightning_metrics.csv"


def read(*lines: str) -> LightningReader:
    """Return a reader that has read lines."""
    reader = LightningReader()
    for line in lines:
        reader.take(line)
    return reader


def test_the_golden_file_tells_memory() -> None:
    """Peaks of `DeviceStatsMonitor`, in bytes."""
    log = read_log(LOG)
    assert (log.reserved_bytes, log.allocated_bytes) == (25769803776, 23410016256)


@pytest.mark.parametrize("column", ["train/time", "train|time"])
def test_rows_with_a_time_are_steps(column: str) -> None:
    """Rows that tell the time are steps, counted from 1; those of losses and evaluations are not."""
    reader = read(f"epoch,step,{column},train_loss,val_loss", "0,0,5.5,,", "0,0,,2.5,", "0,1,6.25,,", "0,1,,,1.5")
    assert [(one.step, one.clock_s) for one in reader.steps()] == [(1, 5.5), (2, 6.25)]


def test_seconds_of_a_callback_are_read() -> None:
    """NeMo's callback tells the seconds of each step, and the loss beside them."""
    (step,) = read("reduced_train_loss,step,train_step_timing in s", "1.5,9,2.25").steps()
    assert (step.step, step.step_s, step.loss) == (10, 2.25, 1.5)


@pytest.mark.parametrize(
    "header", ["epoch,step,train_loss", "step,loss,iter,iter_time,time", "epoch,step,step,train/time"]
)
def test_other_tables_are_not_read(header: str) -> None:
    """A table that times no steps, litgpt's, and one with a column twice, are none of these logs."""
    reader = read(header, "0,0,1.5,2.5,3.5")
    assert (reader.count, reader.refused.count) == (0, 0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0,1", "has not one cell for each column"),
        ("0,1,soon,", "train/time is no number of its kind"),
        ("0,1.5,6.25,", "step is no number of its kind"),
        ("0,,6.25,", "step is no number of its kind"),
    ],
)
def test_rows_that_are_none_are_refused(row: str, reason: str) -> None:
    """A row with too few cells, or one that is no number, is left out and quoted."""
    reader = read("epoch,step,train/time,train_loss", row)
    assert reader.count == 0
    assert reader.refused.told[0].startswith(f"{reason}: ")
