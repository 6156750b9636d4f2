"""Chromium without a window, spoken to over a pipe in its DevTools protocol: no package, no port."""

import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 60.0
"""Within which a browser answers, and draws; a busy machine takes a few."""

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the page is looked at by no one")

SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """A page in Chromium: what it was asked to load, and what it complained of."""

    def __init__(self, sent: int, received: int) -> None:
        """Open a page; `sent` and `received` are the ends of the pipes."""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._sent, self._received, self._read = sent, received, b""
        self._session, self._count, self._events = "", 0, []  # type: ignore[var-annotated]
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return what a method of the protocol answers."""
        self._count += 1
        told = {"id": self._count, "method": method, "params": parameters}
        left = json.dumps(told | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        while left:
            left = left[os.write(self._sent, left) :]
        while (message := self._next()).get("id") != self._count:
            self._note(message)
        assert "error" not in message, message
        return message["result"]  # type: ignore[no-any-return]

    def open(self, url: str, *, width: int = 1200, scheme: str = "light", media: str = "") -> None:
        """Load a page and wait until its charts are drawn.

        Args:
            url: of the page.
            width: of the window in pixels.
            scheme: of colours that the reader prefers: "light" or "dark".
            media: "print", or "" for the screen.
        """
        self.complaints.clear()
        self.requests.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        prefers = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=prefers)
        self._load("Page.navigate", url=url)

    def submit(self, expression: str) -> None:
        """Run an expression that loads another page, and wait until its charts are drawn."""
        self._load("Runtime.evaluate", expression=expression)

    def _load(self, method: str, **parameters: Any) -> None:
        self._events.clear()
        self.call(method, **parameters)
        while "Page.loadEventFired" not in self._events:
            self._note(self._next())
        drawn = self.run(
            "new Promise((done) => { const look = (left) => [...document.querySelectorAll('.chart')]"
            ".every((one) => one.querySelector('svg[aria-label]')) ? done(true) "
            f": left ? setTimeout(look, 20, left - 1) : done(false); look({PATIENCE_S / 0.02:.0f}); }})"
        )
        assert drawn, self.complaints

    def run(self, expression: str) -> Any:
        """Return what a JavaScript expression gives, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key, by its name and its Windows code."""
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        about = {"key": key, "code": {" ": "Space"}.get(key, key), "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def close(self) -> None:
        """End the browser."""
        self._session = ""  # what follows is to the browser, not to the page
        with suppress(AssertionError, BrokenPipeError):
            self.call("Browser.close")
        os.close(self._sent)
        os.close(self._received)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._received], [], [], PATIENCE_S)
            assert ready, "Chromium says nothing"
            text = os.read(self._received, 2**16)
            assert text, "Chromium ended"
            self._read += text
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)  # type: ignore[no-any-return]

    def _note(self, message: dict[str, Any]) -> None:
        method, about = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str([one.get("value") for one in about["args"]]))
        elif method in {"Log.entryAdded", "Runtime.exceptionThrown"}:
            self.complaints.append(json.dumps(about))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Yield Chromium with an empty profile; it ends with the block."""
    assert CHROMIUM is not None
    to_read, sent = os.pipe()
    received, to_write = os.pipe()

    def on_3_and_4() -> None:
        read, write = os.dup(to_read), os.dup(to_write)
        os.dup2(read, 3)
        os.dup2(write, 4)

    started = subprocess.Popen(  # noqa: S603
        [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=on_3_and_4,  # noqa: PLW1509 - the pipes must be 3 and 4; nothing else runs between fork and exec
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    page = Browser(sent, received)
    try:
        yield page
    finally:
        page.close()
        started.terminate()
        started.wait(timeout=20)
