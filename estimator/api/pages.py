"""An answer to be looked at: as one page of HTML, and as pictures for a slide."""

from collections.abc import Mapping
from pathlib import Path

from estimator.api.flavors import Estimates
from estimator.search.planner import Estimate
from hardware.errors import shown, shown_path, unknown_name
from hardware.files import told


def html_page(
    answer: Estimate | Estimates | Mapping[str, Estimate], elsewhere: Estimates | None = None, command: str = ""
) -> str:
    """Return an answer as one page of HTML that needs no other file and no network.

    Args:
        answer: of `estimate`, on one flavor or on several; or answers to any questions by name, to be compared.
        elsewhere: of one flavor, the answer to the same question on all flavors, `estimate(..., flavor="all")`, for
            minutes against USD; without, that is left out.
        command: what makes the page again, which it shows; "" for none.

    Raises:
        ValueError: there is no answer, or the library that draws is not installed.
    """
    from estimator.report.answer_page import answer_page  # noqa: PLC0415 - what is read on a terminal comes along
    from estimator.report.comparison_page import comparison_page  # noqa: PLC0415 - likewise

    if isinstance(answer, Estimate):
        return answer_page(answer, elsewhere.estimates if elsewhere else (), command)
    if isinstance(answer, Mapping):
        if not answer:
            raise ValueError("html: there are no answers to compare; give at least one with its name")
        fitting = [(one.best.wall_s.value, name) for name, one in answer.items() if one.best]
        return comparison_page(answer, "questions", min(fitting)[1] if fitting else "", command)
    if len({one.flavor.id for one in answer}) < len(answer):
        stacks = {one.stack.name: one for one in answer}  # the first answers where none is asked for
        return comparison_page(stacks, "stacks", next(iter(stacks)) if answer.estimates[0].best else "", command)
    chosen = answer.chosen
    return comparison_page(
        {one.flavor.id: one for one in answer}, "flavors", chosen.flavor.id if chosen else "", command
    )


def plot(answer: Estimate | Estimates, kind: str, file_type: str = "svg") -> bytes:
    """Return a picture of an answer for a slide, on white.

    Args:
        answer: of `estimate`; of one flavor for "memory", "step" and "schedule", of several for "frontier".
        kind: "memory", "step", "schedule" or "frontier".
        file_type: "svg" or "png".

    Raises:
        ValueError: the kind or the file's type is unknown, the picture is not of such an answer, no plan fits, or the
            library that draws is not installed.
    """
    from estimator.report import drawing, pictures  # noqa: PLC0415 - likewise

    refuse_unknown_plot(kind, file_type)
    if isinstance(answer, Estimates) != (kind == "frontier"):
        what = "several flavors" if kind == "frontier" else "one flavor"
        raise ValueError(f"plot: {kind} is of an answer on {what}; ask for that, or draw another picture")
    if isinstance(answer, Estimates):
        if not any(one.best and one.best.usd for one in answer):
            raise ValueError("plot: frontier needs a flavor on which a plan fits and whose price is known; add --price")
        drawn = pictures.frontier(answer.estimates)
    elif answer.best is None:
        raise ValueError(f"plot: no plan fits {answer.flavor.id}, so that there is none to draw; take a larger flavor")
    else:
        drawn = pictures.OF_ONE[kind](answer)
    return drawing.picture(drawn.spec, file_type)


def refuse_unknown_plot(kind: str, file_type: str) -> None:
    """Refuse a picture that there is not, or a type of file.

    Raises:
        ValueError: there is no such one.
    """
    from estimator.report import pictures  # noqa: PLC0415 - likewise

    if kind not in pictures.PICTURES:
        raise ValueError(unknown_name("plot", kind, pictures.PICTURES))
    if file_type not in ("svg", "png"):
        raise ValueError(f"plot: a file of type {shown(file_type)} is neither svg nor png; name it so")


def write(option: str, path: Path, content: bytes) -> None:
    """Write a file that an option names.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ValueError(f"{option}: {shown_path(path)} cannot be written ({told(error)}); check its folder") from error
