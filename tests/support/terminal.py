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

import psutil
import pytest
import typer

from hardware.command import run_command

PATIENCE_S = 300.0
"""No command of these tests needs as long, on a machine that does much else."""

PROMPT = "q, Q): "
"""What the dialogues end their question with."""


def at_pipe(app: typer.Typer, name: str, arguments: Sequence[str], typed: str = "") -> tuple[int, str, str]:
    """Run a command in this process, a pipe its input: exit status, standard output, standard error."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("sys.stdin", StringIO(typed))
        status = run_command(app, name, arguments)
    return status, out.getvalue(), err.getvalue()


def at_terminal(
    script: str,
    typed: Sequence[str] = (),
    columns: int = 120,
    environment: Mapping[str, str] | None = None,
    prompt: str = PROMPT,
) -> tuple[int, str]:
    """Run a Python script at a terminal and type a text each time that a prompt is shown; return status and screen."""
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
        return _converse(ours, prompt, list(typed), process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _converse(terminal: int, prompt: str, typed: list[str], process: subprocess.Popen[bytes]) -> tuple[int, str]:
    screen, last, shown = b"", time.monotonic() + PATIENCE_S, 0
    while time.monotonic() < last:
        is_asked = bool(typed) and screen.count(prompt.encode()) > shown
        if select.select([terminal], [], [], 0.01 if is_asked else PATIENCE_S)[0]:
            try:
                screen += os.read(terminal, 65536)
            except OSError:  # the other side has closed
                return process.wait(), screen.decode().replace("\r\n", "\n")
        elif is_asked and _waits(process):
            shown += 1
            os.write(terminal, typed.pop(0).encode())
    raise TimeoutError(screen)


def _waits(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process sleeps; a Ctrl-C between its prompt and its reading would not interrupt the reading."""
    return psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING
