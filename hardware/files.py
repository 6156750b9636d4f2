"""Files that a reader never sees half written, and private directories."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from hardware.errors import shown_path


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
