"""Serve the live page on loopback, until it is interrupted."""

import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from estimator.report.drawing import page_script
from estimator.serve.app import application
from hardware.catalog import Catalog
from hardware.files import told
from hardware.models import Flavor

MOST_CONNECTIONS = 256
"""At a time; more are told that the page is busy (status 503)."""


def serve(catalog: Catalog, usual: Flavor, port: int, tell: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        catalog: the hardware.
        usual: the flavor where none is asked for.
        port: to listen on at 127.0.0.1; 0 for any that is free.
        tell: is told the address as soon as it answers.

    Raises:
        ValueError: the port cannot be had, or the library that draws is not installed.
    """
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(f"port: {port} cannot be had ({told(error)}); give another, or --port 0") from error
        at = listening.getsockname()[1]
        listening.listen(MOST_CONNECTIONS)
        app = application(catalog, usual, at)
        how = uvicorn.Config(app, log_level="warning", limit_concurrency=MOST_CONNECTIONS, server_header=False)
        page_script()  # three seconds, which the first page does not wait for
        tell(f"http://127.0.0.1:{at}/")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(how).run(sockets=[listening])
