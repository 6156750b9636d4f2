"""Folders that are made once per content and then found again: whole or invisible, whoever makes them at a time."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock
from platformdirs import user_cache_path

from hardware.errors import shown

_DRAFT = ".draft"
_STALE_S = 86_400.0


def cache_folder() -> Path:
    """Return the user's cache folder of this project; `XDG_CACHE_HOME` moves it on Linux."""
    return user_cache_path("foretrain")


def key_of(*parts: object) -> str:
    """Return a name for content: the same for the same parts only.

    >>> key_of("a", 1) == key_of("a", 1), key_of("a", 1) == key_of("a1")
    (True, False)
    """
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached(cache: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `name` of a cache, made by `make(draft)` if it is not there yet.

    A draft takes the name only when it is whole, in one step. Of several processes one makes it and the others wait for
    its lock; where locks do nothing (some network file systems) each makes it, and the first one's stays.

    Raises:
        ValueError: the cache cannot be written, or what `make` raises; then the folder is not there.
    """
    folder = cache / name
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{name}.lock"):
            if not folder.is_dir():
                _clear_stale(cache, name)
                with TemporaryDirectory(
                    prefix=f"{name}.", suffix=_DRAFT, dir=cache, ignore_cleanup_errors=True
                ) as draft:
                    make(Path(draft))
                    _publish(Path(draft), folder)
    except OSError as error:
        where = f"cache {shown(str(cache), 200)}"
        raise ValueError(f"{where}: cannot be written ({error.strerror}); free room, or set XDG_CACHE_HOME") from error
    return folder


def _clear_stale(cache: Path, name: str) -> None:
    """Remove what processes that were killed left behind: drafts that nobody wrote to for a day."""
    for draft in cache.glob(f"{name}.*{_DRAFT}"):
        with suppress(OSError):  # its maker lives after all
            if time.time() - max(path.stat().st_mtime for path in [draft, *draft.iterdir()]) > _STALE_S:
                shutil.rmtree(draft)


def _publish(draft: Path, folder: Path) -> None:
    for file in draft.iterdir():  # else a crash of the machine could leave a whole folder of empty files
        with file.open("rb") as written:
            os.fsync(written.fileno())
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process's came first
            raise
