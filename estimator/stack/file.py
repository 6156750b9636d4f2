"""The files that `calibrate --write` writes of a stack, whole or not at all; what was there before is kept beside."""

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from estimator.stack.stack import Findings, Stack, builtin_stacks, fit_path, parse_fit, stack_path
from hardware.errors import shown, shown_path

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


class Place(NamedTuple):
    """Where the fit of a stack is written."""

    fit: Path
    premises: Path | None = None
    """Of a stack of one's own that is made; None where the premises are there, and stay."""

    @property
    def there(self) -> Path | None:
        """A file that is there already, and would be replaced."""
        return next((path for path in (self.premises, self.fit) if path and path.exists()), None)

    @property
    def name(self) -> str:
        """Of a stack that is made."""
        return self.premises.name.removesuffix(".toml") if self.premises else ""


def place_of(name: str, *, in_place: bool = False) -> Place:
    """Return where the fit of a stack goes.

    Of one's own, beside its premises. One that comes with the package stays as it is: with its premises, the fit makes
    a stack of one's own, `NAME-own.toml` in the working folder; in place it is replaced, in a checkout of the project.

    Raises:
        ValueError: in place it cannot be written, or is none that comes with the package: how else.
    """
    if name in builtin_stacks():
        if in_place:
            refuse_unwritable(name)
            return Place(fit_path(name))
        return Place(Path(f"{name}-own.fit.json"), Path(f"{name}-own.toml"))
    if in_place:
        raise ValueError(
            f"in-place: {shown(name, 200)} does not come with the package; leave --in-place out, or add --replace"
        )
    return Place(fit_path(name))


def refuse_replacing(place: Place) -> None:
    """Refuse to write where a file of one's own is.

    Raises:
        ValueError: one is: which.
    """
    if place.there:
        raise ValueError(
            f"write: {shown_path(place.there)} is there already; add --replace (it is kept as {place.there.name}.bak)"
        )


def refuse_unwritable(name: str) -> None:
    """Refuse to fit a stack of the package in place where that cannot be written.

    Raises:
        ValueError: it is no checkout of the project, or cannot be written: how else.
    """
    folder = fit_path(name).parent
    is_checkout = (folder.parents[2] / "pyproject.toml").is_file()
    if not is_checkout or not os.access(folder, os.W_OK):
        raise ValueError(
            f"stack {name}: its fit is part of the installed package; leave out --in-place: the fit then goes to "
            f"{name}-own.fit.json"
        )


def own_premises(name: str, own: str) -> str:
    """Return the premises of a stack of the package under a name of one's own."""
    text = stack_path(name).read_text(encoding="utf-8")
    lines = text.split("\n")
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    body = re.sub(r"^name = .*$", f'name = "{own}"', "\n".join(lines[first:]), count=1, flags=re.MULTILINE)
    return f"# The premises of {name}, which comes with the package; {own}.fit.json was found with them.\n\n{body}"


def write_fit(stack: Stack, path: Path) -> None:
    """Write the fit of a stack into a file, whole or not at all; what was there is kept, `.bak` behind its name.

    Raises:
        ValueError: what was found cannot be read back, or the file cannot be written; then what was there still is.
    """
    text = fit_text(stack).encode()
    parse_fit(text, stack, str(path))
    _replace(path, text)


def write_stack(stack: Stack, like: str, place: Place) -> None:
    """Write the fit of a stack, and the premises of the one of the package that it is like where it is made.

    Raises:
        ValueError: as `write_fit`.
    """
    write_fit(stack, place.fit)
    if place.premises:
        _replace(place.premises, own_premises(like, place.name).encode())


def _replace(path: Path, content: bytes) -> None:
    draft, kept = Path(f"{path}.{os.getpid()}.tmp"), Path(f"{path}.bak")
    try:
        if path.is_file() and path.read_bytes() != content:
            shutil.copyfile(path, draft)
            draft.replace(kept)
        draft.write_bytes(content)
        draft.replace(path)
    except (OSError, ValueError) as error:
        where = f"fit {shown(str(path), 200)}"
        raise ValueError(f"{where}: cannot be written; check its folder, and the room there") from error
    finally:
        with suppress(OSError, ValueError):  # it took the file's place, or never came to be
            draft.unlink()
