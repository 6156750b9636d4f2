from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.trainer.test_measure import STEP, log_of
from trainer.display import WARM_UP, Display, Reporter, draw_loss, spoken, steady


def test_the_first_steps_say_nothing_of_the_pace() -> None:
    """The pace is the mean of the last 20 steps, the first ones of a run left out where there are others."""
    assert steady([9.0]) == 9.0
    assert steady([9.0, 7.0]) == 8.0
    assert steady([9.0, 7.0, 1.0, 2.0]) == 1.5
    assert WARM_UP == 2
    assert steady([9.0] * 50 + [1.0] * 20) == 1.0


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (99.4, "99 s"), (100, "1.7 min"), (7200, "2.00 h")])
def test_spans_are_spoken(seconds: float, said: str) -> None:
    """Each span has the unit that a person would use."""
    assert spoken(seconds) == said


def test_a_pipe_gets_the_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal there is no bar: each step is its line, and nothing is on standard error."""
    display = Display(9, 0, None)
    display.step(STEP, "a line")
    display.say("another")
    display.close()
    assert capsys.readouterr() == ("a line\nanother\n", "")


def test_the_bar_tells_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal the bar has pace and time left; lines still go to standard output, which may be a file."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    display = Display(9, 0, None)
    display.step(replace(STEP, step=4, step_s=2.0), "a line")
    display.close()
    written = capsys.readouterr()
    assert written.out == "a line\n"
    assert "50 tokens/s, 10 s left" in written.err
    assert "4/9" in written.err


def test_the_loss_is_drawn(tmp_path: Path) -> None:
    """The picture has a line in the colour of training, dots in that of the held-out rows, and a white ground."""
    log_of(tmp_path, range(1, 9))
    draw_loss(tmp_path)
    image = imread(tmp_path / "loss.png")[..., :3]
    for color in ((0x33, 0x65, 0x8A), (0xF2, 0x64, 0x19), (255, 255, 255)):
        assert (abs(image - [part / 255 for part in color]).max(axis=-1) < 0.01).sum() > 20


def test_one_rank_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first rank writes logs, lines and picture; another nothing."""
    for name, is_main in (("main", True), ("other", False)):
        (tmp_path / name).mkdir()
        reporter = Reporter(tmp_path / name, {}, 9, 0, None, is_main=is_main)
        reporter.step(STEP)
        reporter.evaluation(1, 0.5)
        reporter.close()
    assert sorted(path.name for path in (tmp_path / "main").iterdir()) == ["loss.png", "steps.jsonl", "train.log"]
    assert list((tmp_path / "other").iterdir()) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["[Step 1/9] | Loss on held-out rows: 0.5000"]


def test_a_picture_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full at the end costs the picture, and a line says so."""

    def fail(*_: object, **__: object) -> None:
        (tmp_path / "loss.png").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    reporter = Reporter(tmp_path, {}, 9, 0, None, is_main=True)
    reporter.step(STEP)
    reporter.close()
    assert capsys.readouterr().out.endswith("loss.png not written: No space left on device\n")
    assert not (tmp_path / "loss.png").exists()
