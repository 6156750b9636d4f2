"""Room on the disk: reckoned before a run begins, and before each thing that it writes."""

import shutil
from pathlib import Path

SPARE_BYTES = 2**24
"""Left free beside what is written, for logs and for what files take beyond their bytes.  # assumed"""


def free_bytes(folder: Path) -> int:
    """Return what is free where a folder is, or will be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free - SPARE_BYTES


def make_folder(folder: Path, num_bytes: int) -> None:
    """Make a folder anew for files of so many bytes.

    Raises:
        OSError: there is no room for them, or the folder cannot be made.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if (free := free_bytes(folder)) < num_bytes:
        raise OSError(
            f"it takes {num_bytes / 1e6:,.1f} MB, and {max(free, 0) / 1e6:,.1f} MB are free in {folder.parent}"
        )
    folder.mkdir(parents=True)


def bytes_in(folder: Path) -> int:
    """Return the bytes of the files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
