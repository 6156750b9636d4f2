"""SIGTERM and Ctrl-C: save and end after the step under way; and no rank waits for ever for another that is gone."""

import os
import signal
import socket
import threading
import time
from types import FrameType

PATIENCE_S = 15.0
"""After a stop was asked for, how long a rank may make no progress at all: it waits for a peer that has ended.

assumed: longer than a step and the wait for other ranks' steps; a launcher gives 30 s before it kills.
"""


class Stop:
    """Whether this process was asked to stop; leaves the process if it cannot get to where it would notice.

    The signal handler only sets a flag, which the loop reads between steps. A rank that hangs in a collective whose
    peer has ended never gets there, and no Python handler runs meanwhile; but the interpreter's wake-up byte reaches
    a thread.
    """

    def __init__(self) -> None:
        """Handle SIGTERM and SIGINT from now on; call it in the main thread."""
        self.asked = False
        self.progressed_at = time.monotonic()
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
        """Say that this rank is not stuck."""
        self.progressed_at = time.monotonic()

    def _watch(self, receiver: socket.socket) -> None:
        while receiver.recv(1)[0] not in (signal.SIGTERM, signal.SIGINT):
            pass
        asked_at = time.monotonic()
        while True:
            time.sleep(0.5)
            if time.monotonic() - max(self.progressed_at, asked_at) > PATIENCE_S:
                os._exit(128 + signal.SIGTERM)
