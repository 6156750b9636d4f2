import json
from pathlib import Path

import pytest

from estimator.runs.logged import logged_run_of
from estimator.runs.logs.read import read_log
from estimator.runs.logs.torchtune import TorchtuneReader
from estimator.runs.record import record_path
from hardware.catalog import load_catalog
from tests.support.paths import GOLDEN

LOG = GOLDEN / "logs" / "torchtune.txt"
RECORD = {
    "schema": "steps/1", "model": "meta-llama/Meta-Llama-3-8B", "accelerator": "h100-sxm-80gb", "num_devices": 8,
    "num_nodes": 1, "tokens_per_step": 65536, "precision": "bf16",
    "plan": {"num_stages": 1, "num_micro_batches": 1, "batch_per_device": 1, "zero_stage": 3},
}  # fmt: skip
LINE = (
    "Step 5 | loss:0.3511 lr:1e-06 tokens_per_second_per_gpu:9077.155 peak_memory_active:85.5 peak_memory_alloc:85.25 "
    "peak_memory_reserved:104.0"
)


def run_of(folder: Path, **changes: object) -> tuple[float | None, str]:
    """Return the seconds of a step of the golden log under a record, and what they assume."""
    log = folder / LOG.name
    log.write_bytes(LOG.read_bytes())
    record_path(log).write_text(json.dumps(RECORD | changes), encoding="utf-8")
    run = logged_run_of(read_log(log), load_catalog())
    return run.step_s, run.assumes


def read(*lines: str) -> TorchtuneReader:
    """Return a reader that has read lines."""
    reader = TorchtuneReader()
    for line in lines:
        reader.take(line)
    return reader


def test_rates_and_a_record_make_seconds(tmp_path: Path) -> None:
    """The steps, made with 2.05 s, take that under the record of their tokens; what that assumes is told."""
    step_s, assumes = run_of(tmp_path)
    assert step_s == pytest.approx(2.05, rel=0.003)
    assert assumes == "tokens of a step: the log's rates count all of them, none masked or padding"


def test_tokens_that_the_log_counts_can_be_told(tmp_path: Path) -> None:
    """Where half of the tokens are masked, the record tells so, and the steps take half as long."""
    step_s, assumes = run_of(tmp_path, logged_tokens_per_step=32768)
    assert step_s == pytest.approx(1.025, rel=0.003)
    assert assumes == ""


def test_rates_alone_are_no_time() -> None:
    """Without a record there is no time, and the error says why."""
    with pytest.raises(
        ValueError, match=r"torchtune\.txt': tells tokens per second alone; its run record tells of how"
    ):
        read_log(LOG).pace()


def test_a_line_is_read() -> None:
    """Step, loss, rate and memory in GiB."""
    found = read(LINE, "Step 5 | val_loss:1.5 ").records
    (step,) = read(LINE).steps()
    assert (step.step, step.loss, step.device_tokens_per_s) == (5, 0.3511, 9077.155)
    assert (found.count, found.reserved_bytes, found.allocated_bytes) == (1, 104 * 2**30, 85.25 * 2**30)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (LINE + LINE, "two records in one line"),
        (LINE.replace("9077.155", "many"), "not whole"),
        ("noise " + LINE, "not whole"),
        (LINE.replace("9077.155", "0"), "step 5: device_tokens_per_s = 0 is no run's"),
    ],
)
def test_what_is_no_line_is_refused(line: str, reason: str) -> None:
    """Two records in a line, part of one, or a rate of nothing are left out and quoted."""
    reader = read(line)
    assert reader.count == 0
    assert reader.refused.told[0].startswith(f"{reason}: ")
