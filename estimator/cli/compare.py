"""What `estimate --compare` asks: the same question with some of its options given otherwise."""

import shlex
from collections.abc import Iterable
from typing import NamedTuple, cast

import typer
from typer.exceptions import TyperException

from estimator.api.estimate import estimate as ask
from estimator.api.options import Options, names_all
from estimator.cli.given import flag_of, given_options
from estimator.search.planner import Estimate
from hardware.errors import shown
from hardware.models import Flavor

NOT_COMPARED = frozenset({"why", "objective", "deadline", "budget", "catalog"})
"""Options of a question that answers beside one another have in common, or that give none."""

AS_ASKED = "as asked"

INSTEAD = (
    ({"flavor"}, {"accelerator", "devices"}),
    ({"steps"}, {"rows", "epochs", "lengths"}),
    ({"lengths"}, {"rows"}),
)
"""Options that are given instead of others, either way: those that an answer is compared with replace them."""


class Question(NamedTuple):
    """A question to `estimate`."""

    model: str
    flavor: Flavor | str | None
    """None for the devices of an accelerator."""
    options: Options


def compared(context: typer.Context, texts: Iterable[str], first: Estimate, question: Question) -> dict[str, Estimate]:
    """Return an answer and those that it is compared with, by their names.

    Args:
        context: of the command, which reads options.
        texts: options each, as the command takes them, such as "--lora 16 --seq-len 4096".
        first: the answer as asked.
        question: what was asked.

    Raises:
        ValueError: a text has no options, the same as another, or options that are not of a question; or `estimate`
            refuses the question.
    """
    found = {AS_ASKED: first}
    for text in texts:
        name = " ".join(text.split())
        if name in found:
            raise ValueError(f"compare: {shown(name)} is given twice; leave one out")
        changed = _changed(question, _parsed(context, name))
        try:
            found[name] = ask(changed.model, changed.flavor, **changed.options)
        except ValueError as error:
            raise ValueError(f"compare: {shown(name)}: {error}") from error
    return found


def _parsed(context: typer.Context, text: str) -> dict[str, object]:
    """Return the options of a question that a text gives, by name."""
    try:
        made = context.command.make_context("compare", shlex.split(text), help_option_names=[])
    except TyperException as error:
        raise ValueError(f"compare: {shown(text)}: {error.format_message()}; see estimate --help") from error
    except ValueError as error:  # a quotation without an end
        raise ValueError(f"compare: {shown(text)}: {error}; quote as a shell does") from error
    read = cast("typer.Context", made)
    given = given_options(read)
    allowed = ({"model", "flavor"} | Options.__optional_keys__) - NOT_COMPARED
    if not given:
        raise ValueError(f"compare: {shown(text)} has no options; give for example '--lora 16'")
    if others := sorted(given.keys() - allowed):
        flag = flag_of(read, others[0])
        raise ValueError(
            f"compare: {shown(text)} gives {flag}, by which answers do not differ; give for example '--lora 16'"
        )
    flavor = given.get("flavor")
    if names_all(flavor) or names_all(given.get("stack")) or (isinstance(flavor, str) and "," in flavor):
        raise ValueError(f"compare: {shown(text)} asks for several answers; repeat --compare, with one each")
    return given


def _changed(question: Question, given: dict[str, object]) -> Question:
    """Return a question with some options given otherwise."""
    options = dict(question.options)
    flavor = question.flavor
    for ones, others in INSTEAD:
        for theirs, dropped in ((ones, others), (others, ones)):
            if theirs & given.keys():
                options.update(dict.fromkeys(dropped & options.keys()))
    if {"accelerator", "devices"} & given.keys():
        flavor = None
    options.update({name: value for name, value in given.items() if name not in {"model", "flavor"}})
    return Question(
        str(given.get("model", question.model)),
        cast("str | None", given.get("flavor", flavor)),
        cast("Options", options),
    )
