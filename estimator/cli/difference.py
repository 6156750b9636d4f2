"""What `estimate --diff` asks and prints: two answers, held against each other."""

from pathlib import Path
from typing import cast

from estimator.api.compare import compare
from estimator.api.estimate import estimate as ask
from estimator.api.flavors import Estimates
from estimator.api.options import Options
from estimator.report.text_difference import print_difference
from estimator.search.planner import Estimate
from hardware.command import EXIT_DONE, open_console, print_json
from hardware.models import Flavor


def refuse_beside_diff(several: str, why: str | None, trace: Path | None, plan: str, *, explain: bool) -> None:
    """Refuse what cannot be given beside two answers."""
    given = {several: several, "--why": why, "--trace": trace, "--plan": plan != "best", "--explain": explain}
    for name, value in given.items():
        if value:
            raise ValueError(
                f"diff: --diff is given beside {name}; it holds two answers of one flavor against each other"
            )


def _is_file(text: str) -> bool:
    """Whether one side of a difference names a file: it is no plan, and not the best one."""
    return text.endswith(".json") or (text != "best" and "=" not in text)


def _asked_with(plan: str, model: str, where: Flavor | str | list[str] | None, options: Options) -> Estimate:
    """Return the answer of one flavor with a plan."""
    found = ask(model, where, **cast("Options", {**options, "plan": plan}))
    if isinstance(found, Estimates):
        raise ValueError("diff: --diff is given beside several flavors; it holds two answers of one against each other")
    return found


def show_difference(
    sides: tuple[str, str], model: str, where: Flavor | str | list[str] | None, options: Options, *, as_json: bool
) -> int:
    """Hold two answers against each other, and print how they differ.

    Args:
        sides: "best", a plan, or a file of `--json`, each.
        model: of the question, where a side is no file.
        where: its flavor.
        options: its options.
        as_json: print one JSON object.

    Raises:
        ValueError: a side cannot be asked or read, or the two are no answers to compare.
    """
    found = compare(*(side if _is_file(side) else _asked_with(side, model, where, options) for side in sides))
    if as_json:
        print_json(found.document())
    else:
        print_difference(open_console(), found, sides)
    return EXIT_DONE
