"""The file of a stack's fit: what `calibrate --write` writes, whole or not at all, and never over the premises."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from estimator.stack.stack import Findings, Stack, builtin_stacks, fit_path, parse_fit, stack_path
from hardware.errors import shown

WIDEST = 118
"""Characters of a line that holds more than numbers or words."""


def fit_text(stack: Stack) -> str:
    """Return the file of a stack's fit: JSON, a key or a row a line, numbers of six digits."""
    found = stack.model_dump(mode="json", include=set(Findings.model_fields), exclude_none=True)
    return _json({"schema": "fit/1"} | _six_digits(found)) + "\n"


def _six_digits(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: _six_digits(item) for key, item in value.items()}
        case list():
            return [_six_digits(item) for item in value]
    return value


def _json(value: Any, margin: str = "") -> str:
    """Return JSON whose arrays of numbers or words take a line, as do arrays and objects that fit in one."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(margin + line) <= WIDEST:
        return line
    inner = f"{margin} "
    if isinstance(value, dict):
        items = [f"{json.dumps(key, ensure_ascii=False)}: {_json(item, inner)}" for key, item in value.items()]
    elif any(isinstance(item, dict | list) for item in value):
        items = [_json(item, inner) for item in value]
    else:
        return line
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{margin}{closing}"


def refuse_unwritable(name: str) -> None:
    """Refuse to fit a stack whose fit could not be written.

    Raises:
        ValueError: it comes with the package, and that is no checkout of the project, or cannot be written: how else.
    """
    if name not in builtin_stacks():
        return
    folder, premises = fit_path(name).parent, stack_path(name)
    is_checkout = (folder.parents[2] / "pyproject.toml").is_file()
    if not is_checkout or not os.access(folder, os.W_OK):
        raise ValueError(
            f"stack {name}: its fit is part of the installed package; copy {shown(str(premises), 200)} to mine.toml, "
            "and give --stack mine.toml: the fit then goes to mine.fit.json"
        )


def write_fit(stack: Stack, path: Path) -> None:
    """Write the fit of a stack into a file, whole or not at all.

    Raises:
        ValueError: what was found cannot be read back, or the file cannot be written; then what was there still is.
    """
    text = fit_text(stack).encode()
    parse_fit(text, stack, str(path))
    draft = Path(f"{path}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(text)
        draft.replace(path)
    except (OSError, ValueError) as error:
        where = f"fit {shown(str(path), 200)}"
        raise ValueError(f"{where}: cannot be written; check its folder, and the room there") from error
    finally:
        with suppress(OSError, ValueError):  # it took the file's place, or never came to be
            draft.unlink()
