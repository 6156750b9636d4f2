"""A command at a terminal or a pipe: what it shows, while somebody types."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest
import typer

from hardware.command import run_command

PATIENCE_S = 60.0
"""No command of these tests needs as long."""


def at_pipe(app: typer.Typer, name: str, arguments: Sequence[str], typed: str = "") -> tuple[int, str, str]:
    """Run a command in this process, a pipe its input: exit status, standard output, standard error."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("sys.stdin", StringIO(typed))
        status = run_command(app, name, arguments)
    return status, out.getvalue(), err.getvalue()


def at_terminal(
    script: str, typed: Sequence[str] = (), columns: int = 120, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a Python script at a terminal and type each text at the next prompt; return the status and the screen.

    A prompt is what ends with ": " and stays so for a while.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", script],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=variables | {"TERM": "xterm-256color"} | dict(environment or {}),
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - Ctrl-C goes to who owns the terminal
    )
    os.close(theirs)
    try:
        return _converse(ours, list(typed), process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _converse(terminal: int, typed: list[str], process: subprocess.Popen[bytes]) -> tuple[int, str]:
    screen, last = "", time.monotonic() + PATIENCE_S
    while time.monotonic() < last:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                screen += os.read(terminal, 65536).decode()
            except OSError:  # the other side has closed
                return process.wait(), screen.replace("\r\n", "\n")
        elif typed and screen.endswith(": "):  # for as long the command has waited
            os.write(terminal, typed.pop(0).encode())
    raise TimeoutError(screen)
