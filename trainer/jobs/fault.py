"""A rank's failure as a person sees it: one line with the rank and the cause; its traceback goes to a file.

Under the launchers of this package (`trainer.jobs.launch`) the line travels in the file that torch's elastic agent
gives to each rank, and the launcher alone prints it; under any other the rank prints it.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException  # is no Exception
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

import trainer
from trainer.jobs.status import BAD_INPUT, DIVERGED, FAILED

ERRORS_FOLDER = "errors"
"""Of the run's folder; holds `rank-3.txt`, the last traceback of rank 3."""

LAUNCHER_VARIABLE = "FORETRAIN_LAUNCHER"
"""Environment variable: process id of the launcher that tells what its ranks report."""

CONSEQUENCE = "lost its connection to another rank"
"""What a rank says that fails since another has: not the cause."""

CONSEQUENCE_WAIT_S = 3.0
"""A rank that lost its connection to another fails this much later, so that the other is told as the cause."""

MEMORY_MEND = "give a smaller batch_per_device, more recomputation or more sharding in --plan"

_LONGEST_CAUSE = 300
_PACKAGES = Path(trainer.__file__).parents[1]
_OWN = tuple(str(_PACKAGES / name) for name in ("trainer", "estimator", "hardware"))


class Refusal(ValueError):  # noqa: N818 - it is what the user gave that is wrong
    """Bad input that is found by a rank before the first step, in one line."""


class Reported(Exception):  # noqa: N818 - torch writes the name of what it records before its text
    """A failure's line on its way to the launcher."""


@dataclass(frozen=True)
class Fault:
    """A failure, told."""

    line: str
    status: int
    """Exit status of the rank."""
    is_consequence: bool = False
    """Whether another rank's end is the cause."""


@contextmanager
def refusing() -> Iterator[None]:
    """Take a ValueError that this package's own code, no library's, raises inside as bad input.

    Raises:
        Refusal: in its place.
    """
    try:
        yield
    except ValueError as error:
        if traceback.extract_tb(error.__traceback__)[-1].filename.startswith(_OWN):
            raise Refusal(str(error)) from error
        raise


def fault_of(error: BaseException, rank: int, folder: Path) -> Fault:
    """Return a rank's failure in one line, and write its traceback into the run's folder unless its line says all.

    Args:
        error: what was raised.
        rank: where.
        folder: of the run.
    """
    if isinstance(error, Refusal):
        return Fault(" ".join(str(error).split()), BAD_INPUT)
    if isinstance(error, FloatingPointError):  # the loss: all ranks have the same
        return Fault(str(error), DIVERGED)
    where = f"traceback in {written_traceback(error, rank, folder)}"
    rank, origin = _origin(error, rank)
    cause = f"{type(origin).__name__}: {first_line(origin)}"
    if is_consequence(origin):
        return Fault(f"rank {rank} {CONSEQUENCE} ({cause}); {where}", FAILED, is_consequence=True)
    mend = f"; {MEMORY_MEND}" if _is_out_of_memory(origin) else ""
    return Fault(f"rank {rank} failed: {cause}{mend}; {where}", FAILED)


def is_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C ended a rank, also while it wrote a checkpoint."""
    return isinstance(_origin(error, 0)[1], KeyboardInterrupt)


def is_consequence(error: BaseException) -> bool:
    """Whether a rank failed since another one is gone."""
    return isinstance(error, dist.DistBackendError | dist.DistStoreError) or "onnection" in str(error)


def first_line(error: BaseException) -> str:
    """Return what an error says, cut to one line of ASCII, without what a terminal would obey."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = ascii(lines[0])[1:-1] if lines else "no text"
    return text if len(text) <= _LONGEST_CAUSE else f"{text[: _LONGEST_CAUSE - 3]}..."


def written_traceback(error: BaseException, rank: int, folder: Path) -> str:
    """Write the traceback of a rank's error into the run's folder; return its path, or why it is not there."""
    text = "".join(traceback.format_exception(error))
    path = folder / ERRORS_FOLDER / f"rank-{rank}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank}\n{text}", encoding="utf-8")
    except OSError as failed:
        return f"no file ({failed.strerror})"
    return str(path)


def report(fault: Fault) -> None:
    """Tell a failure, once among all ranks: hand it to the launcher, or print it where the launcher is another's."""
    if fault.is_consequence:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever ends all ranks ends this one without a word
        time.sleep(CONSEQUENCE_WAIT_S)
    with suppress(OSError):
        get_error_handler().record_exception(Reported(fault.line))
    if not is_heard():
        print(fault.line, file=sys.stderr, flush=True)


def is_heard() -> bool:
    """Whether a launcher of this package prints what this rank reports."""
    return LAUNCHER_VARIABLE in os.environ and "TORCHELASTIC_ERROR_FILE" in os.environ


def _origin(error: BaseException, rank: int) -> tuple[int, BaseException]:
    """Return the rank and the error that an error of all ranks came from: torch gathers those of a checkpoint."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (error, _) = min(error.failures.items())
    return rank, error


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "an't allocate memory" in str(error)
