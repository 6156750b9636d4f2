"""The command `switch-model`: shows the current flavor and the menu, and switches."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hardware.catalog import load_catalog
from hardware.command import EXIT_DONE, run_command
from hardware.errors import shown
from hardware.models import Flavor
from hardware.smi.menu import Menu, converse, menu_of
from hardware.smi.selection import current_flavor, load_selection
from hardware.smi.switching import refuse_environment, refuse_in_use, switch_flavor

switch_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def switch_main() -> None:
    """Run `switch-model`."""
    sys.exit(run_command(switch_app, "switch-model", sys.argv[1:]))


@switch_app.command()
def switch_model(
    name: Annotated[str | None, typer.Argument(help="a flavor, to switch without a dialogue")] = None,
    model: Annotated[str | None, typer.Option("-M", "--model", help="its number on the menu, or its name")] = None,
    catalog: Annotated[list[Path] | None, typer.Option(help="TOML file of further hardware; may be repeated")] = None,
) -> int:
    """Show the flavor of the current accelerator and the menu, and switch to another one.

    The choice is this user's, and is the default of estimate and train; ACCELERATOR_FLAVOR goes before it.
    """
    if name is not None and model is not None:
        raise ValueError(f"model: -M {shown(model)} is given beside {shown(name)}; give one or the other")
    hardware = load_catalog(catalog or [])
    menu = menu_of(hardware)
    answer = model if name is None else name
    if answer is not None:
        _switch(menu.flavor(answer))
        return EXIT_DONE
    current = current_flavor()
    if current.problem:
        print(current.problem, file=sys.stderr)
    print(f"Current MoAI Accelerator: {current.id_in(hardware)}\n")
    _show(menu, current.id_in(hardware))
    refuse_environment()
    refuse_in_use(load_selection().selection.current)

    def switch_and_show(flavor: Flavor) -> None:
        _switch(flavor)
        print()
        _show(menu, flavor.id)

    converse(menu.span(), menu.flavor, switch_and_show)
    return EXIT_DONE


def _switch(flavor: Flavor) -> None:
    switch_flavor(flavor)
    print(f'The MoAI Accelerator model is successfully switched to  "{flavor.id}".')


def _show(menu: Menu, current: str) -> None:
    print("\n".join(menu.lines(current)), end="\n\n", flush=True)
