"""Ranks of a test: forked from a process that has imported the trainer already, so that a group starts in a moment."""

import multiprocessing
import os
import pickle
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from torch.distributed import TCPStore

from tests.support.terminal import PATIENCE_S
from trainer.parallel.model import FAMILIES

_PRELOADED = [
    "pytest",
    *(f"transformers.models.{family}.modeling_{family}" for family in FAMILIES),
    "transformers.models.auto.modeling_auto",
    "trainer.cli",
    "tests.support.tiny",
    "tests.support.forked_from",
]
_OUTPUT, _RESULT = "output-{}.txt", "result-{}.pkl"


@dataclass(frozen=True)
class Ended:
    """How one rank ended."""

    status: int
    """Its exit status; -N where signal N killed it."""
    output: str
    """What it wrote to standard output and error."""
    value: Any
    """What its work returned; None where it did not get there."""


def fork_server() -> ForkServerContext:
    """Return what forks processes that have imported the trainer; the first call starts it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()
    return context


class Ranks:
    """Processes that do one work, as a launcher would start them."""

    def __init__(
        self, count: int, work: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start them.

        Args:
            count: how many; one alone is started without what a launcher sets.
            work: a function at the top of a module; ends with `trainer.rank.leave`, or by itself.
            arguments: of the work.
            environment: variables of the ranks beside those of a launcher.
        """
        self.folder = Path(mkdtemp(prefix="foretrain-ranks-"))
        context = fork_server()
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as the agent of torchrun
        self.processes: list[BaseProcess] = []
        for rank in range(count):
            variables = {"LOCAL_WORLD_SIZE": str(count), **(environment or {})}
            if count > 1:
                variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port)}
                variables |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            process = context.Process(target=_work, args=(self.folder, rank, variables, work, arguments), daemon=True)
            process.start()
            self.processes.append(process)

    def output(self, rank: int) -> str:
        """Return what a rank has written so far."""
        path = self.folder / _OUTPUT.format(rank)
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def wait_for(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the first rank has written a text."""
        end = time.monotonic() + timeout_s
        while text not in self.output(0):
            assert time.monotonic() < end, f"no {text!r} in: {self.output(0)}"
            assert self.processes[0].is_alive() or text in self.output(0), f"ended: {self.output(0)}"
            time.sleep(0.02)

    def end(self, timeout_s: float = PATIENCE_S) -> list[Ended]:
        """Wait for the ranks' end, and return how each ended; those that do not end in time are killed."""
        end = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0.0))
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()
        ended = [self._ended(rank, process.exitcode or 0) for rank, process in enumerate(self.processes)]
        shutil.rmtree(self.folder)
        return ended

    def _ended(self, rank: int, status: int) -> Ended:
        path = self.folder / _RESULT.format(rank)
        return Ended(status, self.output(rank), pickle.loads(path.read_bytes()) if path.is_file() else None)  # noqa: S301


def run_ranks(count: int, work: Callable[..., Any], *arguments: Any, **variables: str) -> list[Any]:
    """Return what each of so many ranks returns; all must end well."""
    ended = Ranks(count, work, *arguments, environment=variables).end()
    assert [rank.status for rank in ended] == [0] * count, "\n".join(rank.output for rank in ended)
    return [rank.value for rank in ended]


def _work(
    folder: Path, rank: int, variables: Mapping[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Do the work as one rank; nothing of this is imported by the process that the tests run in."""
    import torch  # noqa: PLC0415 - has been imported where the ranks are forked from

    from trainer.rank import leave  # noqa: PLC0415

    written = os.open(folder / _OUTPUT.format(rank), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.environ.update(variables)
    torch.set_num_threads(1)
    try:
        value = work(*arguments)
    except BaseException:  # noqa: BLE001 - the test sees it in the output
        traceback.print_exc()
        os._exit(1)
    (folder / _RESULT.format(rank)).write_bytes(pickle.dumps(value))
    leave(0)
