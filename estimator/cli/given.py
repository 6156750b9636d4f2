"""Which options of a command were given, and how they are spelled."""

import shlex
from typing import Any

import typer


def given_options(context: typer.Context) -> dict[str, Any]:
    """Return the values of the options that were given, by name; not those that are as by default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name: context.params[name] for name, source in sources.items() if source and source.name != "DEFAULT"}


def flag_of(context: typer.Context, name: str) -> str:
    """Return how an option is spelled."""
    return next(one.opts[0] for one in context.command.params if one.name == name)


def command_again(context: typer.Context) -> str:
    """Return the command that was given, as it can be given again."""
    words, given = ["estimate"], given_options(context)
    for parameter in context.command.params:
        if parameter.name in given:
            value = given[parameter.name]
            flag = parameter.opts[0] if value is not False else parameter.secondary_opts[0]
            for one in value if isinstance(value, list) else [value]:
                words += [flag, *([] if isinstance(one, bool) else map(str, one if isinstance(one, tuple) else [one]))]
    return shlex.join(words)
