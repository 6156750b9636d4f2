"""The files that `estimate` writes beside its answer: a page, a picture."""

from pathlib import Path

from estimator.api.estimate import estimate as ask
from estimator.api.flavors import Estimates
from estimator.api.options import Options
from estimator.api.pages import html_page, refuse_unknown_plot, write
from estimator.api.pages import plot as draw_plot
from estimator.search.planner import Estimate

ON_THE_PLATFORM = Options(space="moai", accelerator=None, devices=None)
"""What differs of the question that a larger space is held against; its flavor is given."""

EVERYWHERE = Options(plan="best", deadline=None, budget=None)
"""What differs of the question on all flavors that a page shows beside an answer on one."""


def refuse_files(why: str | None, html: Path | None, plot: tuple[str, Path] | None) -> None:
    """Refuse a page or a picture beside `--why`, and a picture that there is not, before anything is searched."""
    if why is not None and (html or plot):
        which = "html" if html else "plot"
        raise ValueError(f"{which}: --{which} is given beside --why; it shows an answer, and --why is told in a line")
    if plot:
        refuse_unknown_plot(plot[0], plot[1].suffix.removeprefix("."))


def write_pages(
    found: Estimate | Estimates,
    model: str,
    options: Options,
    html: Path | None,
    plot: tuple[str, Path] | None,
    command: str,
) -> None:
    """Write the page, and the picture, that are asked for; no picture where no plan fits."""
    everywhere: Estimates | None = None
    if isinstance(found, Estimate) and (html or (plot and plot[0] == "frontier")):
        everywhere = ask(model, "all", **(options | ON_THE_PLATFORM | EVERYWHERE))
    if plot and found.best:
        kind, path = plot
        of = everywhere if everywhere and kind == "frontier" else found
        write("plot", path, draw_plot(of, kind, path.suffix.removeprefix(".")))
    if html:
        write("html", html, html_page(found, everywhere, command).encode())
