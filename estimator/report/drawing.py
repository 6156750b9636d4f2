"""The library that draws: a chart as a file of its own, and the script that draws charts in a page."""

import json
from functools import cache
from types import ModuleType

from estimator.report.charts import LIGHT, Spec


def picture(spec: Spec, file_type: str) -> bytes:
    """Return a chart as a file of its own, "svg" or "png", on white.

    Raises:
        ValueError: the library that draws is not installed.
    """
    text = json.dumps({**spec, "width": 760, "padding": 20})
    for name, colour in LIGHT.items():
        text = text.replace(f"var(--{name})", colour)
    whole = json.loads(text)
    whole["config"] = {**whole["config"], "background": LIGHT["paper"], "font": "DejaVu Sans, Helvetica, sans-serif"}
    draws = drawing_library()
    if file_type == "svg":
        return str(draws.vegalite_to_svg(whole)).encode()
    return bytes(draws.vegalite_to_png(whole, scale=2))


def drawing_library() -> ModuleType:
    """Return the library that draws.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import vl_convert  # noqa: PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as error:
        raise ValueError("pages and pictures need an extra: pip install foretrain[report]") from error
    return vl_convert


@cache
def page_script() -> str:
    """Return the script that draws in a page, some 900 KB; made in three seconds, once a process.

    Raises:
        ValueError: the library that draws is not installed.
    """
    return str(drawing_library().javascript_bundle("window.vegaEmbed = vegaEmbed;"))
