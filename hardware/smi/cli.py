"""The command `smi`: the accelerators of an environment, what trains on them, and asking that to stop."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from hardware.catalog import Catalog, load_catalog
from hardware.command import EXIT_DONE, open_console, print_json, run_command
from hardware.errors import shown
from hardware.models import Flavor
from hardware.smi.jobs import request_stop
from hardware.smi.menu import Choice, converse, menu_of
from hardware.smi.selection import Selection, load_selection
from hardware.smi.status import read_machine, read_status
from hardware.smi.status_tables import machine_document, machine_table, selection_table, status_document, status_tables
from hardware.smi.switching import add_accelerator, make_current, remove_accelerator

WATCH_S = 2.0
"""Between two looks, as `watch` has it."""

smi_app = typer.Typer(add_completion=False, rich_markup_mode=None)

CatalogFiles = Annotated[list[Path] | None, typer.Option(help="TOML file of further hardware; may be repeated")]


def smi_main() -> None:
    """Run `smi`."""
    sys.exit(run_command(smi_app, "smi", sys.argv[1:]))


class _View(NamedTuple):
    """What there is to see, at one look."""

    tables: Callable[[Console], RenderableType]
    document: dict[str, Any]
    problems: tuple[str, ...]


@smi_app.callback(invoke_without_command=True)
def smi(
    context: typer.Context,
    idx: Annotated[str | None, typer.Option("-i", "--idx", help="number of a device: this one alone")] = None,
    physical: Annotated[bool, typer.Option("-p", "--physical", help="show this machine's own devices")] = False,
    reset: Annotated[bool, typer.Option("-r", "--reset", help="ask the run to write a checkpoint and stop")] = False,
    watch: Annotated[bool, typer.Option("--watch", help=f"look again every {WATCH_S:g} s, until Ctrl-C")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, one object a look, and nothing else")] = False,
    catalog: CatalogFiles = None,
) -> int:
    """Show the accelerators of this environment, and what this user trains on them on this machine."""
    if context.invoked_subcommand is not None:
        return EXIT_DONE
    if reset and (physical or watch or as_json):
        raise ValueError("reset: -r is given beside -p, --watch or --json; give it alone, or with -i")
    if physical and idx is not None:
        raise ValueError(
            f"idx: -i {shown(idx)} is given beside -p, which shows the machine's devices; give one or the other"
        )
    number = None if idx is None else _device_number(idx)
    if reset:
        return _reset(load_selection().selection.current if number is None else number)
    hardware = load_catalog(catalog or [])

    def look() -> _View:
        return _machine() if physical else _accelerators(hardware, number)

    if watch:
        return _watch(look, as_json=as_json)
    view = look()
    if as_json:
        print_json(view.document)
    else:
        console = open_console()
        console.print(view.tables(console))
        print(*view.problems, sep="\n", end="\n" if view.problems else "", file=sys.stderr)
    return EXIT_DONE


@smi_app.command()
def device(
    number: Annotated[
        str | None, typer.Argument(help="of a flavor to add, or of a device; asked for if left out")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="list the flavors that --add takes")] = False,
    add: Annotated[bool, typer.Option("--add", help="add an accelerator of a flavor")] = False,
    remove: Annotated[bool, typer.Option("--rm", help="remove a device")] = False,
    switch: Annotated[bool, typer.Option("--switch", help="make a device the current one")] = False,
    catalog: CatalogFiles = None,
) -> int:
    """List, add, remove and switch accelerators, up to five."""
    if [show, add, remove, switch].count(True) != 1:
        raise ValueError("device: give one of --list, --add, --rm and --switch")
    menu = menu_of(load_catalog(catalog or []))
    if show and number is not None:
        raise ValueError(f"device: --list is given beside {shown(number)}; leave that out")
    if show or (add and number is None):
        print("\n".join(menu.lines()))
    if add:
        _select(number, menu.span(), menu.flavor, _add)
    elif remove or switch:
        selection = load_selection().selection
        devices = [chosen.device for chosen in selection.accelerators]
        if number is None:
            _show(selection)
        _select(number, f"{devices[0]}-{devices[-1]}", _device_number, _remove if remove else _switch)
    return EXIT_DONE


def _accelerators(hardware: Catalog, number: int | None) -> _View:
    status = read_status(hardware) if number is None else read_status(hardware).only(number)
    return _View(lambda console: status_tables(console, status), status_document(status), status.problems)


def _machine() -> _View:
    machine = read_machine()
    return _View(lambda console: machine_table(console, machine), machine_document(machine), machine.problems)


def _watch(look: Callable[[], _View], *, as_json: bool) -> int:
    """Look again and again; at a terminal each look takes the place of the one before."""
    console = open_console()
    try:
        if console.is_terminal and not as_json:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while True:
                    view = look()
                    live.update(Group(view.tables(console), *(Text(line) for line in view.problems)), refresh=True)
                    time.sleep(WATCH_S)
        while True:
            view = look()
            if as_json:
                print(json.dumps(view.document, allow_nan=False), flush=True)
            else:
                console.print(view.tables(console))
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return EXIT_DONE


def _reset(number: int) -> int:
    asked = request_stop(number)
    for job_id in dict.fromkeys(rank.job.job_id for rank in asked):
        pids = ", ".join(str(rank.pid) for rank in asked if rank.job.job_id == job_id)
        print(f"Device {number}: job {shown(job_id)} is asked to write a checkpoint and stop (PID {pids}).")
    print("It does so after its current step. If it hangs, end its processes: kill PID.")
    return EXIT_DONE


def _select(number: str | None, span: str, parse: Callable[[str], Choice], act: Callable[[Choice], None]) -> None:
    if number is None:
        print()
        converse(span, parse, act)
    else:
        act(parse(number))


def _add(flavor: Flavor) -> None:
    _report(add_accelerator(flavor), "Create device success.")


def _remove(number: int) -> None:
    _report(remove_accelerator(number), "Remove device success.")


def _switch(number: int) -> None:
    _report(make_current(number), "Switch current device success.")


def _report(selection: Selection, message: str) -> None:
    _show(selection)
    print(message)


def _show(selection: Selection) -> None:
    console = open_console()
    console.print(selection_table(console, selection))


def _device_number(answer: str) -> int:
    """Return a device's number; which ones there are is known where it is used."""
    if not (answer.isascii() and answer.isdecimal() and len(answer) < 10):
        raise ValueError(f"device: {shown(answer)} is not a number; use one of those in the column Device")
    return int(answer)
