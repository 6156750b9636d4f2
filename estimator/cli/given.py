"""Which options of a command were given, and how they are spelled."""

from typing import Any

import typer


def given_options(context: typer.Context) -> dict[str, Any]:
    """Return the values of the options that were given, by name; not those that are as by default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name: context.params[name] for name, source in sources.items() if source and source.name != "DEFAULT"}


def flag_of(context: typer.Context, name: str) -> str:
    """Return how an option is spelled."""
    return next(one.opts[0] for one in context.command.params if one.name == name)
