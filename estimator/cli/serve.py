"""What `estimate --serve` does: the live page, with the other options as what it asks first."""

from urllib.parse import urlencode

import typer

from estimator.cli.given import flag_of, given_options
from hardware.catalog import Catalog
from hardware.models import Flavor

USUAL_PORT = 8765

BESIDE = frozenset({"is_served", "port", "catalog"})
"""Options that `--serve` goes with, beside those that the page asks."""


def serve_page(context: typer.Context, catalog: Catalog, usual: Flavor, port: int) -> None:
    """Serve the live page until it is interrupted.

    Args:
        context: of the command, with what was given.
        catalog: the hardware.
        usual: the flavor where none is asked for.
        port: of loopback; 0 for any that is free.

    Raises:
        ValueError: an option is none that the page asks, the port cannot be had, or the extra is not installed.
    """
    try:
        from estimator.serve.query import PARAMETERS, read_query  # noqa: PLC0415 - an extra
        from estimator.serve.run import serve  # noqa: PLC0415 - likewise
    except ModuleNotFoundError as error:
        raise ValueError("serve: the live page needs an extra: pip install foretrain[serve]") from error
    given = given_options(context)
    if others := sorted(given.keys() - PARAMETERS.keys() - BESIDE):
        flag = flag_of(context, others[0])
        raise ValueError(f"serve: {flag} is given beside --serve; the page does not ask it, so leave it out")
    asked = {name: _text(given[name]) for name in PARAMETERS if name in given}
    read_query(asked.items())
    query = f"?{urlencode(asked)}" if asked else ""
    serve(catalog, usual, port, lambda address: print(f"{address}{query}  (until Ctrl-C)", flush=True))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
