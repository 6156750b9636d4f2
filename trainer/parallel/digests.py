"""Digests of a checkpoint's files: written with it, and held against the files before anything of it is loaded.

SHA-256, as the standard library has it.  # measured: 1.4 GB/s on one core of an x86-64 processor with SHA extensions,
where BLAKE2b makes 0.8 and MD5 0.6. A CRC-32, 4.1, would see a flipped bit too, but take one file for another more
easily; and a disk is slower than any of them.
"""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from hardware.errors import shown
from hardware.files import read_regular_file, told, write_synced
from trainer.data.cache import file_digest

DIGESTS = "digests.json"
ALGORITHM = "sha256"
MOST_BYTES = 2**26
"""Of a list of digests: a file has about 100, so a hundred thousand ranks fit."""


class FileDigest(NamedTuple):
    """What a file was when it was written."""

    num_bytes: int
    digest: str
    """Of its bytes, hexadecimal."""


def digests_of(paths: Iterable[Path]) -> dict[str, FileDigest]:
    """Return the digests of files, by their names."""
    return {path.name: FileDigest(path.stat().st_size, file_digest(path)) for path in paths}


def write_digests(folder: Path, digests: Mapping[str, FileDigest]) -> None:
    """Write the digests of a checkpoint's files beside them."""
    files = {name: {"bytes": found.num_bytes, ALGORITHM: found.digest} for name, found in sorted(digests.items())}
    write_synced(folder / DIGESTS, json.dumps({"files": files}, indent=1) + "\n")


def read_digests(folder: Path) -> dict[str, FileDigest]:
    """Return the digests that were written beside a checkpoint's files.

    Raises:
        ValueError: there are none, or they are damaged themselves; in words that follow "is damaged: ".
    """
    path = folder / DIGESTS
    try:
        document = json.loads(read_regular_file(path, MOST_BYTES))
    except FileNotFoundError as error:
        raise ValueError(f"{DIGESTS} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{DIGESTS} cannot be read") from error
    try:
        found = {name: FileDigest(entry["bytes"], entry[ALGORITHM]) for name, entry in document["files"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{DIGESTS} is no list of digests") from error
    for name in found:
        if Path(name).name != name:
            raise ValueError(f"{DIGESTS} names {shown(name)}, which is no file beside it")
    return found


def file_damage(folder: Path, *, part: int = 0, parts: int = 1, needed: Iterable[str] = ()) -> str:
    """Return what is wrong with the files of a checkpoint, in words that follow "is damaged: "; "" where nothing is.

    That all are there and of their length is looked at in any case, digests are shared: on all cores of a process, and
    among ranks.

    Args:
        folder: the checkpoint.
        part: which share of the digests is computed here.
        parts: of how many.
        needed: files that must be among them.
    """
    try:
        listed = read_digests(folder)
    except ValueError as error:
        return str(error)
    missing = next((f"{DIGESTS} lists no {name}" for name in needed if name not in listed), "")
    return missing or _short(folder, listed) or _changed(folder, listed, part, parts)


def _short(folder: Path, listed: Mapping[str, FileDigest]) -> str:
    """Return which file is missing, or not of its length."""
    for name, written in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != written.num_bytes:
            return f"{name} has {size:,} of {written.num_bytes:,} bytes"
    return ""


def _changed(folder: Path, listed: Mapping[str, FileDigest], part: int, parts: int) -> str:
    """Return which file of a share has another digest."""
    mine = sorted(listed, key=lambda name: (-listed[name].num_bytes, name))[part::parts]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        try:
            for name, digest in zip(mine, threads.map(file_digest, (folder / name for name in mine)), strict=True):
                if digest != listed[name].digest:
                    return f"{name} is not as it was written (its {ALGORITHM} differs)"
        except OSError as error:
            return f"a file cannot be read ({told(error)})"
    return ""
