"""Who may ask: what comes by a name of loopback, and from no other site that the browser has open."""

from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer."""


class Guard:
    """Refuses requests by another name of this host (a name that was rebound to it), or from other sites."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        """Guard an application that listens on a port of loopback."""
        self.app, self.hosts = app, {f"{name}:{port}" for name in LOOPBACK}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it in one line."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = ((name.lower().encode(), value.encode()) for name, value in HEADERS.items())
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        problem = self.problem(Headers(scope=scope))
        app = JSONResponse({"error": problem}, 403) if problem else self.app
        await app(scope, receive, send_guarded)

    def problem(self, headers: Headers) -> str:
        """Return why a request with such headers is refused; "" where it is not."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            return f"host: {_told(hosts)} is no name of this page; open it as {min(self.hosts)}"
        if any(origin not in {f"http://{host}" for host in self.hosts} for origin in origins):
            return f"origin: {_told(origins)} is another site; ask from this page, or from no page"
        is_link = headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"} and not is_link:
            return "origin: another site asks; ask from this page, or from no page"
        return ""


def _told(values: Iterable[str]) -> str:
    return ascii(", ".join(values))[:80]
