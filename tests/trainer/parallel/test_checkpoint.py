from pathlib import Path

import pytest

from trainer.parallel.checkpoint import _prune, find_checkpoint, read_state, step_of


def made(folder: Path, *steps: int) -> list[Path]:
    """Make whole checkpoints, as far as names go."""
    found = [folder / f"step-{step:08d}" for step in steps]
    for path in found:
        path.mkdir(parents=True)
        (path / "run.json").write_text("{}")
    return found


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    """Of a run's own checkpoints the last counts; broken ones, others' folders and files do not."""
    made(tmp_path, 2, 10, 9)
    (tmp_path / "step-00000099").mkdir()  # without its state
    (tmp_path / ".partial-step-00000098").mkdir()
    (tmp_path / "step-00000097").write_text("a file")
    (tmp_path / "step-96").mkdir()
    assert find_checkpoint("auto", tmp_path) == tmp_path / "step-00000010"


def test_there_need_be_none(tmp_path: Path) -> None:
    """A run without a checkpoint begins anew, as does one that is not to be continued."""
    assert find_checkpoint("auto", tmp_path / "none") is None
    assert find_checkpoint("auto", tmp_path) is None
    made(tmp_path, 1)
    assert find_checkpoint("", tmp_path) is None


def test_a_checkpoint_is_given_by_its_folder(tmp_path: Path) -> None:
    """Any whole checkpoint can be given, newest or not; its step is in its name."""
    first, _ = made(tmp_path, 3, 4)
    assert find_checkpoint(str(first), tmp_path / "elsewhere") == first
    assert step_of(first) == 3


@pytest.mark.parametrize("name", ["missing", ".partial-step-00000003", "step-00000005"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    """A folder without a whole checkpoint is no place to continue from."""
    (tmp_path / "step-00000005").mkdir()
    given = str(tmp_path / name)
    with pytest.raises(ValueError, match=r"^resume: '.*' is no whole checkpoint; give a folder step-..., or auto$"):
        find_checkpoint(given, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_state_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    """A broken state names its file."""
    (checkpoint,) = made(tmp_path, 1)
    (checkpoint / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"^resume: '.*run.json' cannot be read; use another checkpoint$"):
        read_state(checkpoint)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    """All but the newest checkpoints go, and what was broken off; nothing else is touched."""
    made(tmp_path, 1, 5, 20, 100)
    (tmp_path / ".partial-step-00000007" / "deep").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    _prune(tmp_path, keep)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["notes", *[f"step-{step:08d}" for step in (1, 5, 20, 100)[-keep:]]]
