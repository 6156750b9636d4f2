import subprocess
import sys

import pytest
import typer

from hardware.command import PLAIN_WIDTH, open_console, run_command
from tests.support.terminal import PATIENCE_S

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def command(how: str) -> int:
    """End as it is told to."""
    match how:
        case "bad":
            raise ValueError("value: 7\nis odd;   use 8")
        case "interrupted":
            raise KeyboardInterrupt
        case "full":
            raise OSError(28, "No space left on device")
    return int(how)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["0"], 0, ""),
        (["3"], 3, ""),
        (["--help"], 0, ""),
        (["bad"], 2, "value: 7 is odd; use 8\n"),
        (["interrupted"], 2, "interrupted\n"),
        (["full"], 2, "output: cannot be written: No space left on device; give it room, or another place\n"),
        ([], 2, "Missing argument 'how'.; see command --help\n"),
        (["0", "--more"], 2, "No such option: --more; see command --help\n"),
    ],
)
def test_how_a_command_ends(arguments: list[str], status: int, told: str) -> None:
    """It ends with its own status; what is wrong is one line on standard error, and status 2."""
    script = f"from {__name__} import app, run_command; import sys; sys.exit(run_command(app, 'command', {arguments}))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)  # noqa: S603
    assert (ended.returncode, ended.stderr) == (status, told)


def test_a_reader_that_has_seen_enough() -> None:
    """When the reader of its output has gone, the command ends well and silently."""
    script = """
import sys, typer
from hardware.command import run_command
app = typer.Typer(add_completion=False)
@app.command()
def much() -> None:
    for _ in range(100_000): print("line")
sys.exit(run_command(app, "much", []))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=PATIENCE_S) == 0
        assert process.stderr.read() == b""


def test_the_console_is_wide_enough_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, tables have the room they need, or what COLUMNS says; words are no markup."""
    monkeypatch.setenv("COLUMNS", "77")
    assert open_console().width == 77
    monkeypatch.delenv("COLUMNS")
    assert open_console().width == PLAIN_WIDTH
    assert open_console().render_str("[bold]x", markup=None).plain == "[bold]x"
    assert callable(run_command)
