"""What every command does around its work: it ends bad input in one line, and prints tables or one JSON object."""

import json
import os
import sys
from collections.abc import Sequence

import typer
from rich.console import Console
from typer.exceptions import TyperException

PLAIN_WIDTH = 132
EXIT_DONE, EXIT_BAD_INPUT = 0, 2


def run_command(app: typer.Typer, name: str, arguments: Sequence[str]) -> int:
    """Run a command and return its exit status; bad input is one line on standard error and status 2."""
    try:
        with typer.main.get_command(app).make_context(name, list(arguments)) as context:
            status = context.command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as end:  # --help
        return end.exit_code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _discard_output()
        return EXIT_DONE
    except (TyperException, ValueError, OSError, KeyboardInterrupt) as error:
        print(" ".join(_told(error, name).split()), file=sys.stderr)
        return EXIT_BAD_INPUT
    return status if isinstance(status, int) else EXIT_DONE


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Leave the end of the command to `run_command`, where a Console would exit with status 1."""
        raise BrokenPipeError


def open_console() -> Console:
    """Return where tables go: as wide as the terminal, or wide enough for them all where there is none."""
    console = _Output(markup=False, highlight=False)  # names come from users
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    return console


def _told(error: BaseException, name: str) -> str:
    match error:
        case TyperException():
            return f"{error.format_message()}; see {name} --help"
        case OSError():
            _discard_output()
            return f"output: cannot be written: {error.strerror}; give it room, or another place"
        case KeyboardInterrupt():
            return "interrupted"
    return str(error)


def _discard_output() -> None:
    """Let the interpreter's last flush go nowhere, since where it went takes no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(document: object) -> None:
    """Print one JSON object."""
    print(json.dumps(document, indent=1, allow_nan=False))
