import os
import signal
import time
from collections.abc import Callable

import pytest

import trainer.jobs.stop
from tests.support.ranks import Ended, Ranks, run_ranks
from tests.support.terminal import PATIENCE_S
from trainer.jobs.stop import Stop

pytestmark = pytest.mark.slow


def asked_by(number: int) -> tuple[bool, bool]:
    """Return whether a stop was asked for before and after a signal."""
    stop = Stop()
    before = stop.asked
    os.kill(os.getpid(), number)
    return before, stop.asked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(number: int) -> None:
    """SIGTERM and Ctrl-C set the flag, and end nothing by themselves."""
    assert run_ranks(1, asked_by, number) == [(False, True)]


def interrupted_twice() -> str:
    """Return how a second Ctrl-C ends what is under way."""
    stop = Stop()
    os.kill(os.getpid(), signal.SIGINT)
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        return f"interrupted, asked {stop.asked}"
    return "went on"


def test_a_second_ctrl_c_does_not_wait() -> None:
    """Who presses Ctrl-C twice does not want to wait for the end of the step."""
    assert run_ranks(1, interrupted_twice) == ["interrupted, asked True"]


def stuck(*, asks: bool, is_patient: bool) -> str:
    """Make no progress for longer than the patience, after a stop was asked for or not."""
    trainer.jobs.stop.PATIENCE_S = 0.2
    stop = Stop()
    if asks:
        os.kill(os.getpid(), signal.SIGTERM)
    if is_patient:
        with stop.patient():
            time.sleep(2)
    else:
        time.sleep(2)
    return "lived"


def hangs() -> str:
    """Hang after a stop was asked for, for ever."""
    stuck(asks=True, is_patient=False)
    time.sleep(PATIENCE_S)
    return "lived"


def hangs_unasked() -> str:
    """Hang, but nobody asked."""
    return stuck(asks=False, is_patient=False)


def saves() -> str:
    """Write a checkpoint for a long time."""
    return stuck(asks=True, is_patient=True)


def long_steps() -> str:
    """Take, after a stop was asked for, a step as long as the ones before."""
    trainer.jobs.stop.PATIENCE_S = 0.2
    stop = Stop()
    time.sleep(1.5)
    stop.progress()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2)
    return "lived"


@pytest.fixture(scope="module")
def waited() -> dict[Callable[[], str], Ended]:
    """Return how ranks ended that wait for seconds, all at once."""
    ranks = {work: Ranks(1, work) for work in (hangs, hangs_unasked, saves, long_steps)}
    return {work: started.end()[0] for work, started in ranks.items()}


def test_a_stuck_rank_leaves_after_a_stop_was_asked_for(waited: dict[Callable[[], str], Ended]) -> None:
    """A rank that hangs where no handler runs ends by itself, with the status of a terminated process, and says so."""
    assert waited[hangs].output.startswith("rank 0 was asked to stop, but got no further for ")
    assert (waited[hangs].status, waited[hangs].value) == (128 + signal.SIGTERM, None)


def test_a_long_step_is_no_hang(waited: dict[Callable[[], str], Ended]) -> None:
    """Nobody asked to stop, so that a rank may take as long as it likes."""
    assert waited[hangs_unasked].value == "lived"


def test_a_checkpoint_may_take_its_time(waited: dict[Callable[[], str], Ended]) -> None:
    """What is done with patience is not broken off."""
    assert waited[saves].value == "lived"


def test_a_step_as_long_as_others_is_waited_for(waited: dict[Callable[[], str], Ended]) -> None:
    """Patience grows with the longest step."""
    assert waited[long_steps].value == "lived"
