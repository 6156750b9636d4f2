"""One run in a folder: held by a process, and by nothing that it leaves."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.jobs.lock import LOCK_FILE, held, refuse_held

HOLDER = """
import sys
from pathlib import Path
from trainer.jobs.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    """While another process holds a folder it is refused by that process's id; killed by kill -9, it holds nothing."""
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        for refused in (lambda: held(tmp_path).__enter__(), lambda: refuse_held(tmp_path)):
            with pytest.raises(ValueError, match=rf"^output: .* is in use by process {holder.pid} on .+ since 20.+; "):
                refused()
        holder.send_signal(signal.SIGKILL)
    with held(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()


def test_a_look_leaves_nothing(tmp_path: Path) -> None:
    """Looking whether a folder is held makes nothing, and holds nothing."""
    refuse_held(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path):
        pass
    refuse_held(tmp_path)
    with held(tmp_path):
        pass


def test_a_lock_that_says_nothing_is_a_lock(tmp_path: Path) -> None:
    """A holder that has not written yet, or whose words were lost, holds all the same."""
    with held(tmp_path):
        (tmp_path / LOCK_FILE).write_text("\0\0")
        with pytest.raises(ValueError, match="is in use by another run; "):
            refuse_held(tmp_path)


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing can be locked a run begins, and one line says that nobody watches."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held(tmp_path):
        pass
    assert (
        capsys.readouterr().err == f"{tmp_path}: this file system has no locks; see yourself that one run writes here\n"
    )
