"""How long 50 clients of the live page wait at a time, for 20 seconds of each kind of question; nothing is asserted."""

import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from urllib.parse import urlsplit

NUM_CLIENTS = 50
SECONDS = 20.0
START = "from estimator.cli.estimate import estimate_main; estimate_main()"
FLAVOR = "4xLarge.2048GB"

KINDS: dict[str, Callable[[random.Random], str]] = {
    "one question, as JSON": lambda _: f"/api/estimate?flavor={FLAVOR}",
    "one question, as a page": lambda _: f"/?flavor={FLAVOR}",
    "each another question, as JSON": lambda draw: f"/api/estimate?flavor={FLAVOR}&steps={draw.randint(1, 10**9)}",
    "each another, space full": lambda draw: f"/api/estimate?flavor=mi300x8&steps={draw.randint(1, 10**9)}",
}


def waits(port: int, path: Callable[[random.Random], str]) -> list[float]:
    """Return the seconds that each answer took, all clients asking at a time, each again as soon as it is answered."""
    took: list[float] = []
    end = time.monotonic() + SECONDS

    def ask(seed: int) -> None:
        draw, connection = random.Random(seed), HTTPConnection("127.0.0.1", port, timeout=120)  # noqa: S311
        while (start := time.monotonic()) < end:
            connection.request("GET", path(draw))
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}")
            took.append(time.monotonic() - start)
        connection.close()

    clients = [threading.Thread(target=ask, args=(seed,)) for seed in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return sorted(took)


def main() -> None:
    """Serve, ask, and print a line a kind."""
    command = [sys.executable, "-c", START, "--serve", "--port", "0", "--flavor", FLAVOR]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:  # noqa: S603
        assert served.stdout is not None
        port = urlsplit(served.stdout.readline().split()[0]).port
        assert port is not None
        for name, path in KINDS.items():
            took = waits(port, path)
            median, late = statistics.median(took), took[int(0.99 * len(took))]
            print(f"{name}: {len(took) / SECONDS:,.0f} a second, median {median:.3f} s, 99th percentile {late:.3f} s")
        served.terminate()


if __name__ == "__main__":
    main()
