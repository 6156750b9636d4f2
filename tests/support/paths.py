"""Where the files lie that tests read, and paths that are none of a file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
MEASURED = ROOT / "reports" / "measured"
TABLES = MEASURED / "runs"
TIMINGS = MEASURED / "timings"


def check_what_is_no_file(read: Callable[[Path], object], kind: str, folder: Path) -> None:
    """Hold that a missing file, a folder, a pipe and an impossible path are refused by name, in a line each."""
    os.mkfifo(folder / "pipe")
    for path, why in (
        (folder / "none", r"'.*': cannot be read; check the path"),
        (folder, r".*: is a directory, not a file; name a file in it"),
        (folder / "pipe", r".*: is a pipe, not a file; save what it carries as a file"),
        (Path("a\0b"), r"'.*': is no path of a file; give one"),
    ):
        with pytest.raises(ValueError, match=rf"^{kind} {why}$"):
            read(path)
