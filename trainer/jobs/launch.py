"""Several processes on this machine: torch's elastic agent runs one per device, and one signal stops them all."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from trainer.jobs.fault import CONSEQUENCE, LAUNCHER_VARIABLE, MEMORY_MEND, Reported, first_line
from trainer.jobs.status import DONE, FAILED, HUNG, INTERRUPTED, STOPPED

_MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
_CLEAN_LINE = "\r\x1b[2K\x1b[?25h"
"""Clears what a killed rank was drawing on a terminal, and shows the cursor again."""


def launch(
    num_processes: int,
    arguments: Sequence[str],
    module: str = "trainer",
    *,
    again: Sequence[str] = (),
    restarts: int = 0,
) -> int:
    """Run `python -m trainer` with these arguments as so many ranks, and return the exit status of them all.

    SIGTERM and Ctrl-C are handed to the ranks, which save and end in their own time; the agent does not kill them. When
    a rank fails, the agent ends the others, and the cause is told in one line.

    Args:
        num_processes: ranks.
        arguments: of each.
        module: what they run.
        again: the arguments of ranks that begin again.
        restarts: how often those that failed, were killed or stood still begin again.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        logs_specs=DefaultLogsSpecs(),
    )
    words, again = ["-m", module, *arguments], ["-m", module, *again]
    return Launcher().run(config, sys.executable, words, again=again, restarts=restarts)


class _NothingToStop(BaseException):
    """A stop was asked for while no rank ran."""


class Launcher:
    """Runs the ranks of this machine, and tells how they ended."""

    def __init__(self) -> None:
        """Nothing was asked for yet."""
        self.asked = False
        """Whether this process was asked to stop."""
        self.is_interrupted = False
        """Whether Ctrl-C came after that, which does not wait for a checkpoint."""

    def run(
        self, config: LaunchConfig, program: str, words: Sequence[str], *, again: Sequence[str], restarts: int
    ) -> int:
        """Run the ranks of a launch on this machine, and return the exit status of them all.

        Args:
            config: of torch's agent, whose own restarts are not used: it would begin again what was stopped or refused.
            program: what each rank runs.
            words: its arguments.
            again: its arguments where it begins again, at the newest checkpoint.
            restarts: how often ranks that failed, were killed or stood still do.
        """
        os.environ.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // config.nproc_per_node, 1)))
        os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what failed is told here
        config.signals_to_handle, config.max_restarts = "SIGHUP,SIGQUIT", 0
        run_id = config.run_id
        for attempt in range(restarts + 1):
            config.run_id = f"{run_id}.{attempt}"  # each has a rendezvous of its own
            status = self._run_once(config, program, words)
            if status not in (FAILED, HUNG) or self.asked or attempt == restarts:
                break
            print(f"beginning again at the newest checkpoint, {attempt + 1} of {restarts} times", file=sys.stderr)
            words = again
        return status

    def _run_once(self, config: LaunchConfig, program: str, words: Sequence[str]) -> int:
        killed = _num_killed_for_memory()
        try:
            with self._handing_over():
                elastic_launch(config, program)(*words)
        except ChildFailedError as error:
            return self._told(error, ran_out=_num_killed_for_memory() > killed)
        except _NothingToStop:
            print("stopped before the ranks began: there was nothing to save", file=sys.stderr)
            return STOPPED
        except Exception as error:  # noqa: BLE001 - of the rendezvous, which has errors of many kinds
            print(f"the ranks were not started: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
            return FAILED
        return DONE

    @contextmanager
    def _handing_over(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._hand_over) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hand_over(self, number: int, _: FrameType | None) -> None:
        self.is_interrupted = self.is_interrupted or (self.asked and number == signal.SIGINT)
        self.asked = True
        ranks = psutil.Process().children()
        if not ranks:
            raise _NothingToStop
        for process in ranks:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL if self.is_interrupted else signal.SIGTERM)

    def _told(self, error: ChildFailedError, *, ran_out: bool) -> int:
        """Tell why the ranks ended in one line, unless they have said so, and return their exit status."""
        if sys.stderr.isatty():
            print(_CLEAN_LINE, end="", file=sys.stderr)
        rank, failure = min(error.failures.items(), key=_lateness)
        if failure.exitcode == -signal.SIGTERM and self.asked:
            print("stopped before the first step: there was nothing to save", file=sys.stderr)
            return STOPPED
        if failure.exitcode == -signal.SIGKILL and self.is_interrupted:
            print("interrupted: the steps since the last checkpoint are not saved", file=sys.stderr)
            return INTERRUPTED
        if isinstance(failure.message, dict):
            line = failure.message.get("message", "").removeprefix(f"{Reported.__name__}: ")
            print(line, file=sys.stderr)
        elif failure.exitcode < 0:
            why = f"; the memory of this machine ran out: {MEMORY_MEND}" if ran_out else ""
            name = signal.Signals(-failure.exitcode).name
            print(f"rank {rank} was killed by {name}{why}; all ranks were ended", file=sys.stderr)
            return FAILED
        return failure.exitcode  # where there is no line, the rank has said why on its own


def _lateness(failed: tuple[int, ProcessFailure]) -> tuple[bool, int, int]:
    """Return the place of a failed rank in the order of causes: what follows from another's end comes last."""
    rank, failure = failed
    line = failure.message.get("message", "") if isinstance(failure.message, dict) else ""
    follows = CONSEQUENCE in line or failure.exitcode == -signal.SIGTERM  # which the agent ends the others with
    return follows, failure.timestamp, rank


def _num_killed_for_memory() -> int:
    """Return how many processes of this container the kernel has killed for memory; 0 where nobody counts them."""
    with suppress(OSError, ValueError):
        for line in _MEMORY_EVENTS.read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
