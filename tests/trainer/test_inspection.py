from pathlib import Path

import pytest

import trainer.cli
from hardware.command import run_command
from tests.support.checkpoints import flip, write_checkpoints

STATE = {
    "num_steps": 8,
    "plan": "num_stages=1",
    "num_devices": 2,
    "stack": "reference",
    "model": {"name": "tiny"},
    "options": {"lr": 0.001, "steps": 8, "dataset": ""},
    "versions": {"torch": "2.13.0"},
}


def inspect(folder: Path) -> int:
    """Inspect a folder."""
    return run_command(trainer.cli.train_app, "train", ["--inspect", str(folder)])


def test_whole_checkpoints_are_told_with_status_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run's folder, each checkpoint is a line, oldest first, and what they are of is told once."""
    write_checkpoints(tmp_path / "checkpoints", 8, 4, held_out_loss=1.5, **STATE)
    assert inspect(tmp_path) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in said[1:3]] == [
        ["step-00000004", "yes", "4", "of", "8"],
        ["step-00000008", "yes", "8", "of", "8"],
    ]
    assert said[1].split()[-2:] == ["1", "1.5000"]
    assert said[3:] == [
        "",
        "step-00000004 to step-00000008:",
        "  model tiny on 2 devices",
        "  plan num_stages=1; forecast by stack reference",
        "  options lr=0.001",
        "  torch 2.13.0",
    ]


def test_a_damaged_one_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is not whole is told with what is wrong, whichever it is and whatever else is readable of it."""
    before, newest = write_checkpoints(tmp_path, 4, 8, **STATE)
    flip(newest / "__0_0.distcp")
    (before / "run.json").unlink()
    assert inspect(tmp_path) == 1
    said = capsys.readouterr().out
    assert "step-00000004 is damaged: run.json is missing\n" in said
    assert "step-00000008 is damaged: __0_0.distcp is not as it was written (its sha256 differs)\n" in said
    assert inspect(newest) == 1
    assert "step-00000004" not in capsys.readouterr().out


def test_a_folder_without_a_checkpoint_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and status 2."""
    assert inspect(tmp_path) == 2
    assert capsys.readouterr().err == (
        f"inspect: '{tmp_path}' holds no checkpoint; give a folder step-..., or a run's\n"
    )
