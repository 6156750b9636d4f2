"""SIGTERM and Ctrl-C: save and end after the step under way; and no rank waits for ever for another that is gone."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.jobs.fault import Fault, report

PATIENCE_S, PATIENCE_STEPS = 10.0, 3.0
"""After a stop was asked for, how long a rank may make no progress: seconds, and in steps as long as its longest.

assumed: a rank that needs more waits for a peer that has ended.
"""

STUCK = 128 + signal.SIGTERM
"""Exit status of a rank that could not stop in time, as shells have it for a terminated process."""

ASKED = "asked to stop: the step under way is finished and saved; Ctrl-C (again) ends at once, without saving"


class Stop:
    """Whether this process was asked to stop; leaves the process if it cannot get to where it would notice.

    The signal handler only sets a flag, which the loop reads between steps. A rank that hangs in a collective whose
    peer has ended never gets there, and no Python handler runs meanwhile; but the interpreter's wake-up byte reaches
    a thread.
    """

    def __init__(self, *, says: bool = False) -> None:
        """Handle SIGTERM and SIGINT from now on; call it in the main thread.

        Args:
            says: whether this rank says, of Ctrl-C, that it was asked to stop, and what it does until it ends.
        """
        self.asked, self._says = False, says
        self._progressed_at = time.monotonic()
        self._longest_s = 0.0
        self._is_watched = True
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        self._sockets = receiver, sender  # kept open as long as the handlers are
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(receiver,), daemon=True, name="stop").start()

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait
        self.asked = True

    def progress(self) -> None:
        """Say that this rank is not stuck, once per step."""
        now = time.monotonic()
        self._longest_s, self._progressed_at = max(self._longest_s, now - self._progressed_at), now

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Give what runs inside, a checkpoint, all the time that it takes."""
        self._is_watched = False
        yield
        self._progressed_at, self._is_watched = time.monotonic(), True

    def _watch(self, receiver: socket.socket) -> None:
        while (number := receiver.recv(1)[0]) not in (signal.SIGTERM, signal.SIGINT):
            pass
        asked_at = time.monotonic()
        if self._says and number == signal.SIGINT:  # a launcher sends SIGTERM also to those whom a failed rank leaves
            print(ASKED, file=sys.stderr, flush=True)
        while True:
            time.sleep(0.5)
            stuck_s = time.monotonic() - max(self._progressed_at, asked_at)
            if self._is_watched and stuck_s > PATIENCE_S + PATIENCE_STEPS * self._longest_s:
                who = f"rank {os.environ.get('RANK', '0')} was asked to stop"
                line = (
                    f"{who}, but got no further for {stuck_s:.0f} s: the steps since the last checkpoint are not saved"
                )
                report(Fault(line, STUCK))
                os._exit(STUCK)
