"""Who is waited for, and for how long; that a run ends is tested under its launcher."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import trainer.jobs.hang
from tests.support.ranks import Ended, Ranks
from tests.support.terminal import PATIENCE_S
from trainer.jobs.hang import LEAST_S, PATIENCE, Beat, Hang, blame
from trainer.jobs.status import HUNG
from trainer.parallel.mesh import World


def beat(count: int, phase: str = "compute", step: int = 3, rank: int = 0) -> Beat:
    """Return what a rank published."""
    return Beat(1, count, step, phase, "node-7", 100 + rank)


@pytest.mark.parametrize(
    ("own", "others", "silent", "said"),
    [
        (
            beat(9),
            {1: beat(8, rank=1)},
            [1],
            "rank 1 stopped or cut off (process 101 on node-7), last in compute of step 3; rank 0 waits in ",
        ),
        (beat(9), {1: beat(9), 2: beat(7, "data")}, [], "rank 2 is behind, in data of step 3; rank 0 waits in "),
        (beat(7, "data"), {1: beat(9)}, [], "rank 0 is behind, in data of step 3"),
        (beat(9), {1: beat(9)}, [], "all ranks are in compute of step 3"),
        (beat(9), {}, [], "rank 0 is in compute of step 3"),
        (beat(0, "start", 0), {}, [], "rank 0 is in start"),
        (beat(9), {1: beat(8), 2: beat(8)}, [1, 2], "rank 1 and 1 others stopped or cut off (process 100 on "),
    ],
)
def test_who_is_furthest_behind_is_to_blame(own: Beat, others: dict[int, Beat], silent: list[int], said: str) -> None:
    """A rank that publishes no more comes first, then the one that has entered the fewest phases."""
    assert blame(0, own, others, silent, "").startswith(said)
    assert blame(0, own, others, silent, "all_reduce").endswith("(all_reduce)")


def test_how_long_a_phase_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 s, or ten of the longest steps but the first; the start, the first step and checkpoints 15 times as long."""
    now = [0.0]
    monkeypatch.setattr(threading.Thread, "start", lambda _: None)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    hang = Hang(World(), tmp_path, 0.0)
    assert hang.limit_s == LEAST_S * PATIENCE
    for step, seconds in ((5, 500.0), (6, 1.0), (7, 30.0)):
        hang.step(step)
        hang.enter("compute")
        assert hang.limit_s == LEAST_S * (PATIENCE if step == 5 else 1)
        now[0] += seconds
    hang.step(8)
    assert hang.limit_s == 300.0
    with hang.patient():
        assert hang.limit_s == 300.0 * PATIENCE
    hang.enter("data")
    assert hang.limit_s == 300.0
    assert Hang(World(), tmp_path, 7.0).limit_s == 7.0 * PATIENCE


def waits(folder: Path, seconds: float, *, is_suspended: bool) -> str:
    """Be a process alone that waits in its second step, or is stopped as long."""
    trainer.jobs.hang._BEAT_S = 0.05  # noqa: SLF001
    hang = Hang(World(), folder, 0.5)
    for step in (1, 2):
        hang.step(step)
        hang.enter("data")
    if is_suspended:
        if os.fork() == 0:
            time.sleep(seconds)
            os.kill(os.getppid(), signal.SIGCONT)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        time.sleep(seconds)
    hang.close()
    return "lived"


@pytest.fixture(scope="module")
def waited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Ended, Path]:
    """Return how a rank ended that waits for ever, and one that was stopped for a while, and the folder of both."""
    folder = tmp_path_factory.mktemp("run")
    stuck, suspended = (
        Ranks(1, _stuck, folder, PATIENCE_S),
        Ranks(1, _suspended, folder, 2.0),
    )
    return stuck.end()[0], suspended.end()[0], folder


def _stuck(folder: Path, seconds: float) -> str:
    return waits(folder, seconds, is_suspended=False)


def _suspended(folder: Path, seconds: float) -> str:
    return waits(folder, seconds, is_suspended=True)


@pytest.mark.slow
def test_a_process_alone_that_waits_for_its_rows_ends(waited: tuple[Ended, Ended, Path]) -> None:
    """It says in one line where it is, ends with a status of its own, and leaves its stacks."""
    stuck, _, folder = waited
    assert stuck.status == HUNG
    assert stuck.output.startswith("rank 0 is in data of step 2; no phase has ended for "), stuck.output
    assert stuck.output.count("\n") == 1
    assert "in waits" in (folder / "errors" / "rank-0.txt").read_text()


@pytest.mark.slow
def test_a_suspended_job_is_not_stuck(waited: tuple[Ended, Ended, Path]) -> None:
    """The time that a process was stopped for does not count against itself."""
    assert waited[1].value == "lived", waited[1].output
