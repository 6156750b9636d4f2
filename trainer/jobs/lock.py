"""One run in a folder at a time: a lock that ends with the process that holds it, however it ends."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hardware.errors import shown

LOCK_FILE = "run.lock"
"""Of the run's folder. It stays; what it says counts only while it is locked."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system without locks answers, such as a Lustre that is mounted so."""


_TRIES, _BETWEEN_TRIES_S = 5, 0.1
"""Whoever looks whether a folder is held, holds it for a moment."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder of a run for what runs inside.

    The kernel gives a lock (flock) back when its process ends, kill -9 included, so that no lock is ever stale. On NFS
    it holds between machines; on a file system without locks this says so, and holds nothing.

    Raises:
        ValueError: another run holds it.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, folder, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def refuse_held(folder: Path) -> None:
    """Refuse the folder of a run that is under way; nothing is made or written.

    Raises:
        ValueError: a run holds it.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # it was never held, or cannot be written to, which is refused elsewhere
        return
    try:
        _lock(descriptor, folder, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, kind: int) -> None:
    try:
        for _ in range(_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                return
            time.sleep(_BETWEEN_TRIES_S)
        raise ValueError(
            f"output: {shown(str(folder), 200)} is in use by {_holder(descriptor)}; wait for its end, stop it with "
            "smi -r, or give another --output"
        )
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"{folder}: this file system has no locks; see yourself that one run writes here", file=sys.stderr)


def _holder(descriptor: int) -> str:
    """Return who holds a lock, as they have written it."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(found['process'])} on {shown(found['host'])[1:-1]} since {shown(found['since'])[1:-1]}"
    return "another run"
