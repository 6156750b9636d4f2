"""What a rank says at its end, and how it fails alone."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.api import _wrap_exception

import trainer.rank
from tests.support.tiny import tiny_config
from tests.trainer.test_measure import STEP
from trainer.jobs.status import DIVERGED, FAILED, INTERRUPTED
from trainer.measure import StepLog
from trainer.rank import run_rank, summary
from trainer.train import Outcome


def logged(folder: Path, losses: list[float]) -> None:
    """Write a log of steps of half a second."""
    log = StepLog(folder, {}, len(losses), 0)
    for number, loss in enumerate(losses, start=1):
        log.write(replace(STEP, step=number, loss=loss, peak_reserved_bytes=3 * 2**20))
    log.close()


def test_a_run_is_summed_up(tmp_path: Path) -> None:
    """The end tells steps, loss, pace and memory as measured, and what was written."""
    logged(tmp_path, [5.0, 4.0, 3.5])
    lines = summary(tiny_config(tmp_path, tmp_path), Outcome(3, 3, (tmp_path / "model",)), None)
    assert lines == [
        "3 of 3 steps in 2 s: loss 5.000 to 3.500",
        "step 0.5 s, 200 tokens/s",
        "fullest device 3 MiB",
        f"written to {tmp_path}: steps.jsonl, train.log, loss.png, model",
    ]


def test_a_stopped_run_says_how_to_go_on(tmp_path: Path) -> None:
    """A run that was stopped names the options that continue it, and exports nothing."""
    logged(tmp_path, [5.0])
    lines = summary(tiny_config(tmp_path, tmp_path), Outcome(1, 3, ()), None)
    assert lines[-2:] == [
        f"stopped after step 1; go on with --resume auto --output {tmp_path}",
        f"written to {tmp_path}: steps.jsonl, train.log, loss.png",
    ]


def test_a_run_without_steps_has_a_summary(tmp_path: Path) -> None:
    """A run that was complete before it was continued in another folder has no step to tell of."""
    logged(tmp_path, [])
    assert len(summary(tiny_config(tmp_path, tmp_path), Outcome(3, 3, ()), None)) == 1


def test_no_number_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process alone whose loss is no number says so in one line, and fails."""

    def fail(*_: object) -> Outcome:
        raise FloatingPointError("step 3: the loss is nan")

    monkeypatch.setattr(trainer.rank, "train", fail)
    config = tiny_config(tmp_path, tmp_path / "run")
    work: Any = SimpleNamespace(source=None, data=None)  # is handed on to what fails
    assert run_rank(config, work, None) == DIVERGED
    assert capsys.readouterr().err == "step 3: the loss is nan\n"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), CheckpointException("save", {0: _wrap_exception(KeyboardInterrupt())})]
)
def test_who_is_interrupted_says_what_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    """Ctrl-C twice, in a step or in a checkpoint, says that nothing was saved, and from where the run may go on."""

    def fail(*_: object) -> Outcome:
        raise error

    monkeypatch.setattr(trainer.rank, "train", fail)
    config, work = tiny_config(tmp_path, tmp_path), SimpleNamespace(source=None, data=None)
    said = "interrupted: the steps since the last checkpoint are not saved; "
    assert run_rank(config, work, None) == INTERRUPTED  # type: ignore[arg-type]
    assert capsys.readouterr().err == f"{said}there is no checkpoint\n"
    for name in ("step-00000004", "step-00000008", ".partial-step-00000012"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert run_rank(config, work, None) == INTERRUPTED  # type: ignore[arg-type]
    assert capsys.readouterr().err == f"{said}go on from step-00000008 with --resume auto --output {tmp_path}\n"


def test_a_process_alone_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a process alone meets is one line that names the file of its traceback."""

    def fail(*_: object) -> Outcome:
        raise CheckpointException("save", {0: _wrap_exception(OSError(28, "No space left on device"))})

    monkeypatch.setattr(trainer.rank, "train", fail)
    work: Any = SimpleNamespace(source=None, data=None)  # is handed on to what fails
    assert run_rank(tiny_config(tmp_path, tmp_path), work, None) == FAILED
    said = f"rank 0 failed: OSError: [Errno 28] No space left on device; traceback in {tmp_path}/errors/rank-0.txt\n"
    assert capsys.readouterr().err == said
