"""Work that all ranks do at once, of which one rank's failure is told to all: none waits for another that gave up."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException  # is no Exception: it would pass by

from hardware.errors import shown
from hardware.files import told

T = TypeVar("T")


class TogetherError(Exception):
    """What some rank failed at, in one line; raised on every rank."""


@dataclass(frozen=True)
class _Failure:
    said: str


def together(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Do some work on every rank of a group, and return what each came to, in the order of ranks.

    Raises:
        TogetherError: it failed on some rank; what the first of them said.
    """
    try:
        mine: Any = work()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks are told
        mine = _Failure(reason(error))
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, mine, group=group)
    for found in every:
        if isinstance(found, _Failure):
            raise TogetherError(found.said)
    return every


def on_first(work: Callable[[], object], group: dist.ProcessGroup | None = None) -> None:
    """Let the first rank of a group do some work, and the others wait for it.

    Raises:
        TogetherError: it failed; on all ranks.
    """
    together(lambda: work() if dist.get_rank(group) == 0 else None, group)


def reason(error: BaseException) -> str:
    """Return in one line why something failed; of a checkpoint's ranks, why the first did.

    >>> reason(OSError(28, "No space left on device"))
    'No space left on device'
    """
    if isinstance(error, CheckpointException) and error.failures:
        return reason(error.failures[min(error.failures)][0])
    if isinstance(error, TogetherError):
        return str(error)
    if found := _of_system(error):
        return told(found)
    text = " ".join(str(error).split())
    return shown(f"{type(error).__name__}: {text}" if text else type(error).__name__, 200).strip("'\"")


def _of_system(error: BaseException | None) -> OSError | None:
    """Return the system's error that another came of: a full disk confuses torch's writer, which raises its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def told_plainly() -> Iterator[None]:
    """Raise what the system said in place of what came of it inside: between ranks, an error loses its cause."""
    try:
        yield
    except Exception as error:
        if (found := _of_system(error)) is not None and found is not error:
            raise OSError(found.errno, found.strerror) from error
        raise
