"""The live page as an application: the page of a query, and the same as JSON."""

import json
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import cast

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from estimator.api.estimate import estimate
from estimator.api.flavors import Estimates
from estimator.api.options import OneFlavor, Options
from estimator.report.answer_page import answer_page
from estimator.report.html import page
from estimator.report.json import estimate_document
from estimator.search.planner import Estimate
from estimator.serve.form import form
from estimator.serve.guard import Guard
from estimator.serve.openapi import openapi_document
from estimator.serve.query import Query, read_query
from estimator.work.defaults import SEED_BATCH, SEED_EPOCHS, SEED_MODEL, SEED_ROWS, SEED_SEQ_LEN
from estimator.work.shape import MOST_CONFIG_BYTES
from hardware.catalog import Catalog
from hardware.errors import shown
from hardware.models import Flavor

KEPT_ANSWERS, KEPT_PAGES = 256, 16
"""Of questions that were asked last; an answer of the full space has some 150 KB, a page 1 MB."""

OF_ONE_FLAVOR = ("flavor", "accelerator", "devices", "plan", "deadline", "budget")
"""Options that are not asked of all flavors."""


USUALLY = {
    "model": SEED_MODEL, "seq_len": str(SEED_SEQ_LEN), "batch": str(SEED_BATCH), "rows": str(SEED_ROWS),
    "epochs": str(SEED_EPOCHS), "plan": "best", "lora": "0",
}  # fmt: skip
"""Values where nothing is given, as the form shows them."""


@dataclass(frozen=True)
class Answers:
    """Answers to queries on some hardware."""

    catalog: Catalog
    usual: Flavor
    """Where no flavor is asked for."""

    def __call__(self, query: Query) -> Estimate:
        """Return the answer to a query."""
        given = dict(query.options)
        is_elsewhere = "accelerator" in given or "devices" in given
        flavor = given.pop("flavor", None if is_elsewhere else self.usual)
        options = cast("Options", given | {"catalog": self.catalog})
        return estimate(query.shape or SEED_MODEL, cast("OneFlavor", flavor), **options)

    def everywhere(self, query: Query) -> Estimates:
        """Return the answers on all flavors, of the platform's small space."""
        given = {name: value for name, value in query.options if name not in OF_ONE_FLAVOR}
        options = cast("Options", given | {"space": "moai", "catalog": self.catalog})
        return estimate(query.shape or SEED_MODEL, "all", **options)


def application(catalog: Catalog, usual: Flavor, port: int) -> Starlette:
    """Return the application.

    Args:
        catalog: the hardware.
        usual: the flavor where none is asked for.
        port: that it listens on; requests by another name than loopback's with it are refused.
    """
    answers = Answers(catalog, usual)
    at_once = anyio.CapacityLimiter(os.cpu_count() or 1)

    @lru_cache(KEPT_ANSWERS)
    def written(query: Query) -> bytes:
        return json.dumps(estimate_document(answers(query)), allow_nan=False).encode()

    @lru_cache(KEPT_PAGES)
    def drawn(pairs: tuple[tuple[str, str], ...]) -> tuple[bytes, int]:
        text, status = _page(answers, pairs, form(dict(pairs), catalog, USUALLY | {"flavor": usual.id}))
        return text.encode(), status

    async def document(request: Request) -> Response:
        posted = await _posted(request) if request.method == "POST" else None
        pairs = request.query_params.multi_items()
        made = await anyio.to_thread.run_sync(lambda: written(read_query(pairs, posted)), limiter=at_once)
        return Response(made, media_type="application/json")

    async def live_page(request: Request) -> Response:
        pairs = tuple(request.query_params.multi_items())
        text, status = await anyio.to_thread.run_sync(drawn, pairs, limiter=at_once)
        return HTMLResponse(text, status)

    return Starlette(
        routes=[
            Route("/", live_page),
            Route("/api/estimate", document, methods=["GET", "POST"]),
            Route("/openapi.json", _openapi),
        ],
        middleware=[Middleware(Guard, port=port)],
        exception_handlers={ValueError: _bad_input, HTTPException: _refused},
    )


def _page(answers: Answers, pairs: Iterable[tuple[str, str]], question: str) -> tuple[str, int]:
    """Return the page of a query and its status; of one that cannot be answered, why."""
    try:
        query = read_query(pairs)
        answer = answers(query)
        elsewhere = answers.everywhere(query).estimates if query.everywhere else ()
    except ValueError as error:
        head = f'<p class="lead" role="alert">{escape(str(error))}</p>'
        return page("This cannot be answered", head + question, ()), 400
    return answer_page(answer, elsewhere, as_command(query, answers.usual), question), 200


def as_command(query: Query, usual: Flavor) -> str:
    """Return the command that gives the answer to a query of a built-in model."""
    options = dict(query.options)
    words = ["estimate", *(["--model", query.shape.name] if query.shape else [])]
    words += [] if options.keys() & {"flavor", "accelerator"} else ["--flavor", usual.id]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if name == "compiles":
            words.append("--compile" if value else "--no-compile")
        elif not isinstance(value, bool):
            words += [flag, str(value)]
        elif value:
            words.append(flag)
    return shlex.join([*words, "--html", "answer.html"])


async def _posted(request: Request) -> bytes:
    """Return what is posted, as far as it is no larger than a config may be."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_CONFIG_BYTES:
            raise HTTPException(413, f"model: what is posted is over {MOST_CONFIG_BYTES:,} bytes; post a config.json")
    return bytes(body)


async def _openapi(_: Request) -> Response:
    return JSONResponse(openapi_document())


async def _bad_input(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {
        404: f"path: {shown(request.url.path)} is not served; ask /, /api/estimate or /openapi.json",
        405: f"method: {shown(request.method)} is not answered at {shown(request.url.path)}; use GET",
    }
    return JSONResponse({"error": told.get(error.status_code, error.detail)}, error.status_code, error.headers)
