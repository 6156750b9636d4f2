"""A run that stands still ends by itself: which rank it waits for, where, and in which collective.

Each rank has a thread that publishes where the rank is, in the store of the process group, and ends the process when
the rank has not come on for too long, or when the next one publishes no more. Whoever ends first says who is to blame:
a rank that publishes no more is stopped or cut off; else the one that is furthest behind. torch's own limit is half an
hour, and names no rank.
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from trainer.jobs.fault import ERRORS_FOLDER, Fault, report
from trainer.jobs.status import HUNG
from trainer.parallel.mesh import World, is_launched

LEAST_S, LONGEST_STEPS = 120.0, 10.0
"""Without `--hang-timeout`, how long no phase of a step may end: seconds, and in steps as long as the longest so far.

assumed: steps of one run are alike; what takes ten times as long waits for somebody.
"""

PATIENCE = 15.0
"""Times as long may the start, the first step (which compiles), an evaluation, a checkpoint and the export take.

By default half an hour at least, as torch waits for a collective.
"""

_BETWEEN, _DONE = "evaluation or checkpoint", "done"
PATIENT_PHASES = ("start", _BETWEEN, "save", "export")

_BEAT_S = 5.0
_STORE_TIMEOUT = timedelta(seconds=10)
_SETTLE_S = 1.1
"""Between a line and the killing of the rank it blames: torch tells failures apart by whole seconds."""


class Beat(NamedTuple):
    """What a rank publishes of itself."""

    number: int
    """Grows as long as the process runs, whether or not it comes on."""
    entered: int
    """Phases entered."""
    step: int
    phase: str
    host: str
    process: int

    @property
    def place(self) -> str:
        """Where the rank is, in words."""
        return f"{self.phase} of step {self.step}" if self.step else self.phase


class Hang:
    """Where this rank is, and the thread that ends it when it stays there."""

    def __init__(self, world: World, folder: Path, timeout_s: float) -> None:
        """Be at the start of a run, and watch from now on.

        Args:
            world: the ranks, whose process group is up.
            folder: of the run.
            timeout_s: how long no phase may end [s]; 0 for the rule of `LEAST_S`.
        """
        self._world, self._folder, self._timeout_s = world, folder, timeout_s
        self._phase, self._count, self._step, self._number = "start", 0, 0, 0
        self._first_step, self._longest_s = 0, 0.0
        self._step_began_at = time.monotonic()
        self._beat_s = min(_BEAT_S, (timeout_s or LEAST_S) / 20)
        self._parent = os.getppid() if is_launched() else None
        self._closed = threading.Event()
        self._store = _store(world)
        threading.Thread(target=self._watch, daemon=True, name="hang").start()

    def close(self) -> None:
        """Watch no more, and be watched no more."""
        self._closed.set()
        self.enter(_DONE)
        self._publish()

    def step(self, step: int) -> None:
        """Say that a step begins."""
        now = time.monotonic()
        if self._step > self._first_step:  # the first one compiles, and says nothing of the others
            self._longest_s = max(self._longest_s, now - self._step_began_at)
        self._first_step = self._first_step or step
        self._step, self._step_began_at = step, now

    def enter(self, phase: str) -> None:
        """Say that a phase begins."""
        self._phase, self._count = phase, self._count + 1

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Give what runs inside, an evaluation or a checkpoint, more time."""
        self.enter(_BETWEEN)
        yield
        self.enter(_BETWEEN)

    @property
    def silence_s(self) -> float:
        """How long a rank may publish nothing [s]."""
        return self._timeout_s or max(LEAST_S, LONGEST_STEPS * self._longest_s)

    @property
    def limit_s(self) -> float:
        """How long the rank may stay where it is [s]."""
        is_patient = self._phase in PATIENT_PHASES or self._step <= self._first_step
        return self.silence_s * (PATIENCE if is_patient else 1.0)

    def _watch(self) -> None:
        stuck_s = silent_s = 0.0
        seen, heard, at = -1, None, time.monotonic()
        while not self._closed.wait(self._beat_s):
            now = time.monotonic()
            elapsed_s, at = min(now - at, 2 * self._beat_s), now  # a job that was suspended whole is not stuck
            self._end_with_launcher()
            self._publish()
            next_rank = self._next_rank()
            stuck_s = stuck_s + elapsed_s if self._count == seen else 0.0
            is_silent = next_rank is not None and next_rank == heard and next_rank.phase != _DONE
            silent_s = silent_s + elapsed_s if is_silent else 0.0
            seen, heard = self._count, next_rank
            if stuck_s > self.limit_s:
                self._end(f"no phase has ended for {stuck_s:.0f} s", self.limit_s)
            elif silent_s > self.silence_s:
                self._end(f"nothing was heard of it for {silent_s:.0f} s", self.silence_s)

    def _publish(self) -> None:
        self._number += 1
        if self._store is not None:
            try:
                self._store.set(str(self._world.rank), json.dumps(self._own()))
            except RuntimeError:  # who keeps it has ended, and torch would say so at each beat
                self._store = None

    def _own(self) -> Beat:
        return Beat(self._number, self._count, self._step, self._phase, socket.gethostname(), os.getpid())

    def _end_with_launcher(self) -> None:
        """Save and end when the launcher was killed: nobody else would end this rank, or hear of it."""
        if self._parent is not None and os.getppid() != self._parent:
            self._parent = self._store = None
            if self._world.rank == 0:
                print("the launcher of this run is gone: the ranks save and end", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)

    def _end(self, what: str, limit_s: float) -> None:
        """Say who is waited for, and end this process; what does not answer on this machine is killed."""
        before = self._others()
        time.sleep(3 * self._beat_s)
        beats = self._others()
        silent = [rank for rank, beat in beats.items() if before.get(rank) == beat]
        where = self._write_stacks()
        who = blame(self._world.rank, self._own(), beats, silent, _collective())
        limit = f"longer than --hang-timeout ({limit_s:.0f} s here)"
        report(Fault(f"{who}; {what}, {limit}; {where}", HUNG))
        time.sleep(_SETTLE_S)
        for rank in silent:
            if beats[rank].host == socket.gethostname():
                with suppress(OSError):
                    os.kill(beats[rank].process, signal.SIGKILL)
        os._exit(HUNG)

    def _next_rank(self) -> Beat | None:
        """Return what the rank after this one published last: each is heard by one; None where there is none."""
        key = str((self._world.rank + 1) % self._world.size)
        with suppress(RuntimeError, ValueError):
            if self._store is not None and self._store.check([key]):
                return Beat(*json.loads(self._store.get(key)))
        return None

    def _others(self) -> dict[int, Beat]:
        """Return what the other ranks published last; empty where it cannot be had."""
        if self._store is None:
            return {}
        ranks = [rank for rank in range(self._world.size) if rank != self._world.rank]
        with suppress(RuntimeError, ValueError):
            found = self._store.multi_get([str(rank) for rank in ranks])
            return {rank: Beat(*json.loads(text)) for rank, text in zip(ranks, found, strict=True)}
        return {}

    def _write_stacks(self) -> str:
        path = self._folder / ERRORS_FOLDER / f"rank-{self._world.rank}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
        except OSError as error:
            return f"no stacks could be written ({error.strerror})"
        return f"stacks in {path.parent}"


def blame(rank: int, own: Beat, others: dict[int, Beat], silent: Sequence[int], collective: str) -> str:
    """Return in words whom a run waits for.

    Args:
        rank: who says it.
        own: where it is.
        others: where the others are, by rank.
        silent: those of them that publish no more.
        collective: what the rank waits in; "" where that is not known.

    >>> beats = {1: Beat(9, 20, 3, "data", "a", 11)}
    >>> blame(0, Beat(9, 21, 3, "compute", "a", 10), beats, [], "all_reduce")
    'rank 1 is behind, in data of step 3; rank 0 waits in compute of step 3 (all_reduce)'
    """
    waits = own.place + (f" ({collective})" if collective else "")
    if silent:
        first, more = others[silent[0]], f" and {len(silent) - 1} others" if len(silent) > 1 else ""
        who = f"rank {silent[0]}{more} stopped or cut off (process {first.process} on {first.host})"
        return f"{who}, last in {first.place}; rank {rank} waits in {waits}"
    last = min(others, key=lambda other: others[other].entered, default=rank)
    if last != rank and others[last].entered < own.entered:
        return f"rank {last} is behind, in {others[last].place}; rank {rank} waits in {waits}"
    if any(beat.entered > own.entered for beat in others.values()):
        return f"rank {rank} is behind, in {waits}"
    return f"all ranks are in {waits}" if others else f"rank {rank} is in {waits}"


def _collective() -> str:
    """Return the function of torch.distributed that the main thread is in, "" where it is in none."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - the one way to look
    while frame is not None:
        name = frame.f_code.co_name
        if frame.f_globals.get("__name__") == dist.distributed_c10d.__name__ and not name.startswith("_"):
            return name
        frame = frame.f_back
    return ""


def _store(world: World) -> dist.Store | None:
    """Return a connection of this thread's own to the store that the ranks met at; None for a process alone."""
    if world.size == 1 or not is_launched():
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_STORE_TIMEOUT)
    except RuntimeError:  # met elsewhere, such as in a file: then this rank can tell of itself alone
        return None
    return dist.PrefixStore(f"hang-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
