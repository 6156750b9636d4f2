"""What checkpoints hold, and whether each is whole: `train --inspect FOLDER`."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from hardware.errors import shown
from trainer.config import CHECKPOINT_FOLDER
from trainer.parallel.checkpoint import checkpoints_in, damage, read_state, step_of
from trainer.parallel.metadata import read_metadata
from trainer.parallel.room import bytes_in


class Inspected(NamedTuple):
    """A checkpoint as it lies there."""

    path: Path
    damage: str
    """What is wrong with it; "" where it is whole."""
    state: dict[str, Any]
    """What it says of its run; empty where that cannot be read."""
    num_bytes: int
    num_tensors: int
    """Weights, moments and random states; 0 where that cannot be read."""


def inspect_folder(folder: Path) -> list[Inspected]:
    """Return a checkpoint, or all of a run, oldest first, each verified to the last byte.

    Args:
        folder: a checkpoint's, a run's, or the one in which a run's checkpoints lie.

    Raises:
        ValueError: there is no checkpoint.
    """
    if step_of(folder) is not None:
        return [_inspected(folder)]
    found = checkpoints_in(folder / CHECKPOINT_FOLDER) or checkpoints_in(folder)
    if not found:
        raise ValueError(f"inspect: {shown(str(folder), 200)} holds no checkpoint; give a folder step-..., or a run's")
    return [_inspected(path) for path in reversed(found)]


def _inspected(path: Path) -> Inspected:
    found = damage(path)
    try:
        state = read_state(path)
    except ValueError:
        state = {}
    try:
        num_tensors = len(read_metadata(path).state_dict_metadata)
    except ValueError:
        num_tensors = 0
    return Inspected(path, found, state, bytes_in(path), num_tensors)


def print_inspected(console: Console, every: list[Inspected]) -> None:
    """Print a line per checkpoint, then what is wrong with which, then what they are of: alike ones together."""
    table = Table("", "whole", "step", "written", "MB", "tensors", "held-out loss", box=None, pad_edge=False)
    for one in every:
        state, loss = one.state, one.state.get("held_out_loss")
        table.add_row(
            one.path.name,
            "no" if one.damage else "yes",
            f"{state.get('step', '-')} of {state.get('num_steps', '-')}",
            str(state.get("written", "-")),
            f"{one.num_bytes / 1e6:,.1f}",
            str(one.num_tensors or "-"),
            f"{loss:.4f}" if isinstance(loss, float) else "-",
        )
    console.print(table)
    for one in every:
        if one.damage:
            console.print(f"{one.path.name} is damaged: {one.damage}", soft_wrap=True)
    for lines, alike in groupby((one for one in every if one.state), lambda one: list(_lines(one.state))):
        names = [one.path.name for one in alike]
        console.print(f"\n{names[0]} to {names[-1]}:" if len(names) > 1 else f"\n{names[0]}:")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True)


def _lines(state: dict[str, Any]) -> Iterator[str]:
    """Yield what a checkpoint says of its run, but for what differs from one to the next."""
    options = _table(state.get("options"))
    told = (f"{name}={value}" for name, value in options.items() if name not in {"plan", "steps"} and value != "")
    yield f"model {_table(state.get('model')).get('name', '-')} on {state.get('num_devices', '-')} devices"
    yield f"plan {state.get('plan', '-')}; forecast by stack {state.get('stack') or '-'}"
    yield f"options {', '.join(told) or '-'}"
    yield ", ".join(f"{name} {version}" for name, version in _table(state.get("versions")).items()) or "no versions"


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
