"""The logs of an earlier part of a run, as a continued one takes them up: whole lines, about steps that are done."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from hardware.files import write_synced


class Kept(NamedTuple):
    """What is left of a log."""

    lines: list[str]
    num_damaged: int
    """Lines that were no records: cut, or lost with the power."""
    steps: list[int]
    """Steps that the lines are about, one a line of a step."""


def step_of_record(line: str) -> int | None:
    """Return the step that a line of `steps.jsonl` is about; 0 of the run's record, None where it is no record."""
    try:
        record = json.loads(line)
        return int(record.get("step", 0)) if isinstance(record["record"], str) else None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


def step_of_line(line: str) -> int | None:
    """Return the step that a line of `train.log` is about; None where it is not whole.

    >>> step_of_line("[Step 4/9] | Loss: 0.8359 | Duration: 7.54 | Throughput: 69569.39 tokens/sec")
    4
    """
    number = line.removeprefix("[Step ").partition("/")[0]
    return int(number) if number.isdecimal() and line.endswith("tokens/sec") else None


def kept(path: Path, done: int, step_of: Callable[[str], int | None]) -> Kept:
    """Return the whole lines of a log that are about steps done.

    Args:
        path: the log; nothing is kept of one that is not there.
        done: steps done; later ones will be done again.
        step_of: the step that a line is about, None of a damaged one.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if done and path.is_file() else []
    found = [(line, step_of(line)) for line in lines if line]
    whole = [(line, step) for line, step in found if step is not None and step <= done]
    damaged = sum(step is None for _, step in found)
    return Kept([line for line, _ in whole], damaged, [step for _, step in whole if step])


def repairs(name: str, log: Kept, done: int) -> str:
    """Return in one line what was wrong with a log; "" where nothing was.

    >>> repairs("steps.jsonl", Kept([], 1, [1, 2, 4, 7]), 8)
    'steps.jsonl: lines that were damaged and are left out: 1; steps that it lacks: 3, 5 to 6, 8'
    """
    said = [f"lines that were damaged and are left out: {log.num_damaged}"] if log.num_damaged else []
    there = set(log.steps)
    if there and (missing := [step for step in range(min(there), done + 1) if step not in there]):
        said.append(f"steps that it lacks: {_ranges(missing)}")
    return f"{name}: {'; '.join(said)}" if said else ""


def _ranges(steps: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][-1] + 1:
            parts[-1].append(step)
        else:
            parts.append([step])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)


def rewrite(path: Path, lines: Iterable[str]) -> None:
    """Replace a log by some lines, all at once even if the power goes."""
    new = path.with_name(path.name + ".new")
    write_synced(new, "".join(f"{line}\n" for line in lines))
    new.replace(path)
