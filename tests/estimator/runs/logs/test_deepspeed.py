from pathlib import Path

import pytest

from estimator.runs.logs.deepspeed import DeepSpeedReader
from estimator.runs.logs.read import read_log
from tests.support.paths import GOLDEN

LOGS = GOLDEN / "logs"
LINE = (
    "[2023-11-07 01:55:23,714] [INFO] [timer.py:260:stop] epoch=0/micro_step=40/global_step=10, "
    "RunningAvgSamplesPerSec=25.025771473496132, CurrSamplesPerSec=25.704280480541442, MemAllocated=4.32GB, "
    "MaxMemAllocated=38.49GB"
)
PIPELINE = "steps: 200 loss: 5.5508 lm loss: 5.5103 moe loss: 0.0405 iter time (s): 0.936 samples/sec: 136.706"


def read(*lines: str) -> DeepSpeedReader:
    """Return a reader that has read lines."""
    reader = DeepSpeedReader()
    for line in lines:
        reader.take(line)
    return reader


def test_a_line_is_read() -> None:
    """The step, when its line was written, and memory, of which a GB is 2**30 bytes."""
    reader = read(LINE, LINE.replace("23,714", "44,114").replace("global_step=10", "global_step=20"))
    first, second = reader.steps()
    assert (first.step, second.step) == (10, 20)
    assert (second.clock_s or 0) - (first.clock_s or 0) == pytest.approx(20.4)
    assert reader.records.allocated_bytes == 38.49 * 2**30


def test_a_line_of_a_pipeline_is_read() -> None:
    """The mean of its steps is told."""
    (step,) = read(PIPELINE).steps()
    assert (step.step, step.step_s, step.loss) == (200, 0.936, 5.5508)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            LINE.replace("epoch=0/micro_step=40/global_step=10", "0/20"),
            "not whole, or of a form that does not tell its",
        ),
        (LINE[:-1], "not whole, or of a form that does not tell its steps"),
        (LINE.replace("MaxMemAllocated=38.49GB", "MaxMemAllocated=38.49GiB"), "not whole, or of a form"),
        (LINE + LINE, "two records in one line"),
        (PIPELINE + PIPELINE, "two records in one line"),
        (LINE.replace("2023-11-07", "2023-13-07"), "a date that no log has"),
    ],
)
def test_what_is_no_line_is_refused(line: str, reason: str) -> None:
    """Forms that do not tell their steps, part of a line, or two in one, are left out and quoted."""
    reader = read(line)
    assert reader.count == 0
    assert reader.refused.told[0].startswith(reason)


def test_a_trainers_own_lines_go_before(tmp_path: Path) -> None:
    """Where Megatron-LM writes a line beside each of DeepSpeed's, its own are taken, and the others told of."""
    megatron = [line for line in (LOGS / "megatron.log").read_text(encoding="utf-8").split("\n") if "elapsed" in line]
    both = [f"{one}\n{LINE.replace('_step=10', f'_step={i}')}" for i, one in enumerate(megatron)]
    (tmp_path / "a.log").write_text("\n".join(both), encoding="utf-8")
    log = read_log(tmp_path / "a.log")
    assert log.form == "megatron"
    assert log.refused[-1] == f"{len(megatron)} lines of another format, deepspeed"
