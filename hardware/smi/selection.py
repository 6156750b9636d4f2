"""The accelerators of an environment and the current one: a user's choice, kept in a file of the state directory.

What decides, in this order: the variable `ACCELERATOR_FLAVOR`, the user's choice, the seed flavor.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from platformdirs import user_state_path
from pydantic import Field, ValidationError, model_validator

from hardware.catalog import Catalog
from hardware.errors import first_error, shown, shown_path
from hardware.files import read_regular_file, told, write_atomically
from hardware.models import Flavor, FlavorName, Record

SEED_FLAVOR = "4xLarge.2048GB"
VARIABLE = "ACCELERATOR_FLAVOR"
MOST_BYTES = 2**20
"""Of the file of a choice."""

MOST_ACCELERATORS = 5
"""Accelerators of one environment."""

_SCHEMA = "selection/1"
_MEND = f"set XDG_STATE_HOME to a directory of yours, or choose with {VARIABLE}=NAME"

DeviceId = Annotated[int, Field(strict=True, ge=0, lt=MOST_ACCELERATORS)]


class ChosenAccelerator(Record):
    """One accelerator of the environment."""

    device: DeviceId
    """Number that it keeps as long as it is there."""

    flavor: FlavorName


class Selection(Record):
    """The accelerators of an environment."""

    current: DeviceId = 0
    """Device number of the one in use."""

    accelerators: Annotated[tuple[ChosenAccelerator, ...], Field(min_length=1, max_length=MOST_ACCELERATORS)] = (
        ChosenAccelerator(device=0, flavor=SEED_FLAVOR),
    )
    """By device number."""

    @model_validator(mode="after")
    def _devices_are_distinct(self) -> Self:
        devices = [accelerator.device for accelerator in self.accelerators]
        if devices != sorted(set(devices)):
            raise ValueError(
                f"accelerators: devices {devices} do not increase; give each a number of its own, in order"
            )
        if self.current not in devices:
            raise ValueError(f"current: device {self.current} is not among {devices}; name one of them")
        return self

    def flavor(self, device: int) -> str:
        """Return the name of a device's flavor.

        Raises:
            ValueError: there is no such device.
        """
        flavors = {accelerator.device: accelerator.flavor for accelerator in self.accelerators}
        if device not in flavors:
            raise ValueError(f"device {device}: there is none; use one of {', '.join(map(str, flavors))}")
        return flavors[device]


class LoadedSelection(NamedTuple):
    """What a user chose, or the seed flavor."""

    selection: Selection
    problem: str = ""
    """Why the file could not be used, and the mend; "" where it was, or where there is none yet."""

    is_newer: bool = False
    """Whether a newer version wrote the file, so that this one must not replace it."""


class CurrentFlavor(NamedTuple):
    """The flavor that decides, and what it rests on."""

    name: str
    origin: str
    """As an error names it."""

    problem: str
    """As of `LoadedSelection`; "" where the file does not decide."""

    def record(self, catalog: Catalog) -> Flavor:
        """Return the flavor's record.

        Raises:
            ValueError: the catalog has no such flavor.
        """
        try:
            return catalog.flavor(self.name)
        except ValueError as error:
            raise ValueError(f"{self.origin}: {error} (--catalog FILE adds hardware)") from error

    def id_in(self, catalog: Catalog) -> str:
        """Return the flavor's id; the name as it is where the catalog does not know it."""
        try:
            return self.record(catalog).id
        except ValueError:
            return self.name


def current_flavor() -> CurrentFlavor:
    """Return the flavor in use where none is named: the environment's, else the user's choice, else the seed flavor."""
    if name := environment_flavor():
        return CurrentFlavor(name, VARIABLE, "")
    selection, problem, _ = load_selection()
    return CurrentFlavor(selection.flavor(selection.current), "the flavor that switch-model chose", problem)


def environment_flavor() -> str:
    """Return the flavor that the environment names; "" where it names none."""
    return os.environ.get(VARIABLE, "").strip()


def selection_path() -> Path:
    """Return where a user's choice is kept."""
    return user_state_path("foretrain", appauthor=False) / "selection.json"


def load_selection() -> LoadedSelection:
    """Return what the user chose; where the file cannot be used, the seed flavor and the reason."""
    path = selection_path()
    try:
        text = read_regular_file(path, MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return LoadedSelection(Selection())
    except (OSError, ValueError) as error:
        what = f"cannot be read: {told(error)}" if isinstance(error, OSError) else str(error).partition("; ")[0]
        return _unused(path, what.removeprefix(f"{shown_path(path)}: "))
    try:
        document = json.loads(text)
    except (RecursionError, ValueError) as error:
        return _unused(path, f"is damaged: {shown(str(error), 100)}")
    schema = document.pop("schema", None) if isinstance(document, dict) else None
    if schema != _SCHEMA:
        return _unused(path, f"has schema {shown(schema)}, not {_SCHEMA!r}", is_newer=_is_newer(schema))
    try:
        return LoadedSelection(Selection.model_validate(document))
    except ValidationError as error:
        return _unused(path, f"is damaged: {first_error(error)}")


def save_selection(selection: Selection) -> None:
    """Write what the user chose, under `selection_lock`; a damaged file is kept beside it.

    Raises:
        ValueError: the file cannot be written; then what was there still is.
    """
    path = selection_path()
    try:
        if load_selection().problem:
            path.replace(path.with_suffix(".damaged"))
        document = {"schema": _SCHEMA, **selection.model_dump(mode="json")}
        write_atomically(path, json.dumps(document, indent=1) + "\n", durable=True)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def selection_lock(timeout_s: float = 10.0) -> Iterator[None]:
    """Hold the choice: while one process is here, no other is.

    Raises:
        ValueError: the state directory cannot be written, or another process is here for longer than `timeout_s`.
    """
    from filelock import FileLock, Timeout  # noqa: PLC0415 - a reader does without it, and starts sooner

    path = selection_path()
    lock = FileLock(path.with_suffix(".lock"), timeout=timeout_s, poll_interval=0.002)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{shown_path(path)}: another process has held it for {timeout_s:g} s; end that one, then try again"
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{shown_path(path)}: cannot be written: {told(error)}; {_MEND}")


def _unused(path: Path, what: str, *, is_newer: bool = False) -> LoadedSelection:
    mend = "update this package, or remove the file" if is_newer else "switch-model writes it anew"
    return LoadedSelection(Selection(), f"{shown_path(path)}: {what}; {mend}; {SEED_FLAVOR} is used", is_newer)


def _is_newer(schema: object) -> bool:
    name, _, version = schema.partition("/") if isinstance(schema, str) else ("", "", "")
    return name == "selection" and version.isdecimal() and int(version) > 1
