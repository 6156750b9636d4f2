"""The file of a stack: premises written by hand, then what a fit found; read in halves, written whole or not at all."""

import json
import os
from contextlib import suppress
from pathlib import Path

from estimator.stack.stack import Premises, Stack, parse_stack
from hardware.errors import shown
from hardware.toml_text import toml_table

DIVIDER = "# " + "-" * 118 + "\n"
"""Stands between the premises of a stack file and what the fit found."""


def read_premises(text: str, name: str) -> Premises:
    """Return the half of a stack file above the divider."""
    return parse_stack(Premises, text.partition(DIVIDER)[0], name)


def stack_text(text: str, stack: Stack) -> str:
    """Return a stack file: the premises of `text` to the letter, then what the fit found."""
    fit = stack.fit.model_dump()
    families, factors = fit.pop("families"), fit.pop("factors")
    if fit["usable_memory_fraction"] is None:  # TOML has no null
        del fit["usable_memory_fraction"]
    unexplained = {name: fit.pop(name) for name in ("step_residual", "memory_residual")}
    lines = [
        text.partition(DIVIDER)[0].rstrip("\n"),
        "",
        DIVIDER + "# Found by `calibrate` from the runs below; do not edit.",
        *toml_table("[startup]", stack.startup.model_dump()),
        *toml_table("[window]", stack.window.model_dump()),
        *toml_table("[fit]", fit),
    ]
    for kind, found in (("families", families), ("factors", factors)):
        for name, factor in found.items():
            lines += toml_table(f"[fit.{kind}.{json.dumps(name)}]", factor)
    for name, found in unexplained.items():
        if found:
            lines += toml_table(f"[fit.{name}]", found)
    if stack.versions:
        lines += toml_table("[versions]", stack.versions)
    for run in stack.runs:
        lines += toml_table("[[runs]]", run.model_dump())
    for table in stack.tables:
        lines += toml_table("[[tables]]", table.model_dump())
    return "\n".join(lines) + "\n"


def write_stack(path: Path, text: str) -> None:
    """Write a stack file, whole or not at all.

    Raises:
        ValueError: the text is no stack, or the file cannot be written; then what was there still is.
    """
    parse_stack(Stack, text, str(path))
    draft = Path(f"{path}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except (OSError, ValueError) as error:
        where = f"stack {shown(str(path), 200)}"
        raise ValueError(f"{where}: cannot be written; check its folder, and the room there") from error
    finally:
        with suppress(OSError, ValueError):  # it took the file's place, or never came to be
            draft.unlink()
