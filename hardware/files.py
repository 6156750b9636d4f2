"""Files that are read within bounds, and never seen half written; private directories."""

import os
import stat
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from hardware.errors import shown_path

_KINDS = (
    (stat.S_ISDIR, "a directory", "name a file in it"),
    (stat.S_ISFIFO, "a pipe", "save what it carries as a file"),
    (stat.S_ISSOCK, "a socket", "name a file"),
    (stat.S_ISCHR, "a device", "name a file"),
    (stat.S_ISBLK, "a device", "name a file"),
)
"""What is no regular file, what it is called, and the mend."""


def read_regular_file(path: Path, most_bytes: int) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: the file, or a link to it.
        most_bytes: a larger file is refused.

    Raises:
        ValueError: as `open_regular_file`, or it is larger.
        OSError: it is not there, or cannot be read.
    """
    with open_regular_file(path) as file:
        content = bytearray()
        while len(content) <= most_bytes and (part := file.read1()):
            content += part
    if len(content) > most_bytes:
        raise ValueError(f"{shown_path(path)}: is larger than {most_bytes:,} bytes; give a smaller file")
    return bytes(content)


def open_regular_file(path: Path) -> BufferedReader:
    """Return a regular file, open for reading: no pipe is waited for, no device read without end.

    Args:
        path: the file, or a link to it.

    Raises:
        ValueError: it is no regular file, or cannot be a path; one line that begins with the path.
        OSError: it is not there, or cannot be read.
    """
    try:
        found = path.stat()
    except ValueError as error:  # a null byte
        raise ValueError(f"{shown_path(path)}: is no path of a file; give one") from error
    _refuse_irregular(path, found)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # what has become a pipe meanwhile is not waited for either
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _refuse_irregular(path, os.fstat(file.fileno()))
    except ValueError:
        file.close()
        raise
    return file


def _refuse_irregular(path: Path, found: os.stat_result) -> None:
    for is_kind, name, mend in _KINDS:
        if is_kind(found.st_mode):
            raise ValueError(f"{shown_path(path)}: is {name}, not a file; {mend}")


def write_synced(path: Path, text: str) -> None:
    """Write a file, and wait until it is on the disk, so that a name which is given to it later comes after its text.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str, *, durable: bool) -> None:
    """Replace a file's text: a reader sees the old one or the new one, whole.

    Args:
        path: the file, in a directory that exists; it becomes readable by its owner alone.
        text: its new text.
        durable: whether the new text outlives a power cut from here on (waits for the disk, twice).

    Raises:
        OSError: it cannot be written; then what was there still is.
    """
    draft = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    if durable:
        _sync_directory(path.parent)


def check_private_directory(path: Path) -> None:
    """Refuse a directory that another user could have made, or could change.

    Raises:
        ValueError: it is a link, no directory, another user's, or open to others.
        OSError: it is not there, or cannot be looked at.
    """
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{shown_path(path)}: is a link or a file, not a directory; remove it")
    if found.st_uid != os.geteuid():
        raise ValueError(f"{shown_path(path)}: belongs to user {found.st_uid}, not to {os.geteuid()}; have it removed")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise ValueError(f"{shown_path(path)}: others can enter it (mode {mode:04o}); chmod it to 0700")


def make_private_directory(path: Path) -> None:
    """Make a directory that its owner alone can enter, unless it is there; its parent is there.

    Raises:
        ValueError: what is there is not such a directory.
        OSError: it cannot be made.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    check_private_directory(path)


def told(error: OSError) -> str:
    """Return what an error of a file says, without the file; libraries raise some that have a text alone."""
    return error.strerror or " ".join(str(error).split())


def _sync_directory(path: Path) -> None:
    """Wait until a directory's entries are on the disk, where the system can (Windows cannot open one)."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
