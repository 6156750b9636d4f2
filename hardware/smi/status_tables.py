"""What `smi` shows, as tables in the form of the platform's own tool, and as JSON."""

import socket
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.box import Box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hardware.smi.devices import MachineDevice
from hardware.smi.selection import Selection
from hardware.smi.status import MachineStatus, ProcessStatus, RunStatus, Status
from hardware.units import MIB

NAME = "MoAI Accelerator"

_FRAME = Box("+--+\n| ||\n+==+\n| ||\n+--+\n+--+\n| ||\n+--+\n", ascii=True)
_NAME_WIDTH = 17
"""Characters of a name in the platform's tables."""

_PROCESS_COLUMNS = ("Device", "Job ID", "PID", "Process", "Memory Usage")
_RUN_COLUMNS = ("Device", "Job ID", "Step", "Step Time (Predicted)", "Device Memory (Predicted)", "Minutes Left")

Rows = Sequence[Sequence[str]]


def status_tables(console: Console, status: Status) -> RenderableType:
    """Return the time, the accelerators, and what trains on them; on a narrow console the tables close up."""
    parts: list[RenderableType] = [_clock(status.time), _accelerators(console, status)]
    if status.processes:
        processes = [_process_row(process) for process in status.processes]
        runs = [_run_row(run) for run in status.runs]
        parts += [Text("\nProcesses:"), _table(console, _PROCESS_COLUMNS, processes)]
        parts += [Text("\nTraining:"), _table(console, _RUN_COLUMNS, runs)]
    return Group(*parts)


def selection_table(console: Console, selection: Selection) -> RenderableType:
    """Return the accelerators of an environment by their numbers."""
    rows = [
        (_device(chosen.device, is_current=chosen.device == selection.current), NAME, chosen.flavor)
        for chosen in selection.accelerators
    ]
    return _table(console, ("Device", "Name", "Model"), rows)


def machine_table(console: Console, machine: MachineStatus) -> RenderableType:
    """Return the devices of this machine, each with the ranks on it."""
    columns = ("Dev", "Location", "Dev Temp", "Mem Temp", "Dev Util", "Mem Util", "Mem Usage", "PID")
    rows = [
        (
            str(index).rjust(3),
            f"{socket.gethostname()}:{index}",
            _celsius(device.temperature_c),
            _celsius(device.memory_temperature_c),
            _percent(device.busy_fraction),
            _percent(device.memory_busy_fraction),
            _percent(_full_fraction(device)),
            ", ".join(map(str, pids)) or "-",
        )
        for index, (device, pids) in enumerate(machine.devices)
    ]
    return Group(_clock(machine.time), _table(console, columns, rows))


def _version() -> str:
    try:
        return version("foretrain")
    except PackageNotFoundError:  # run from its tree
        return "not installed"


def status_document(status: Status) -> dict[str, Any]:
    """Return all of it as an object of JSON, `smi/1`: memory in MiB, times in seconds, utilization from 0 to 1."""
    return {
        "schema": "smi/1",
        "version": _version(),
        "time": _time(status.time).isoformat(timespec="seconds"),
        "accelerators": [_with_mib(record._asdict()) for record in status.accelerators],
        "processes": [_with_mib(record._asdict()) for record in status.processes],
        "runs": [_with_mib(record._asdict()) for record in status.runs],
        "problems": list(status.problems),
    }


def machine_document(machine: MachineStatus) -> dict[str, Any]:
    """Return the devices of this machine as an object of JSON, `smi-devices/1`, in the units of `smi/1`."""
    return {
        "schema": "smi-devices/1",
        "time": _time(machine.time).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "devices": [
            {"index": index, **_with_mib(device._asdict()), "pids": list(pids)}
            for index, (device, pids) in enumerate(machine.devices)
        ],
        "problems": list(machine.problems),
    }


def _accelerators(console: Console, status: Status) -> RenderableType:
    columns = ("Device", "Name", "Model", "Memory Usage", "Total Memory", "Utilization")
    rows = [
        (
            _device(a.device, is_current=a.is_current),
            NAME,
            a.flavor,
            _mib(a.memory_bytes),
            _mib(a.total_bytes),
            _percent(a.utilization),
        )
        for a in status.accelerators
    ]
    table = _table(console, columns, rows)
    if _natural_width(console, table) > console.width:  # the name is the same in each row
        table = _table(console, ("Device", *columns[2:]), [(row[0], *row[2:]) for row in rows])
    inner = min(_natural_width(console, table), console.width) - 2
    head = f"Current Version: {version('foretrain')}  ".rjust(inner)[:inner]
    return Group(Text(f"+{'-' * inner}+\n|{head}|"), table)


def _table(console: Console, columns: Sequence[str], rows: Rows) -> Table:
    """Return a table in the platform's frame, closed up where the console is narrow; nothing is cut off."""
    wide, narrow = _padded(columns, rows, 2), _padded(columns, rows, 1)
    return wide if _natural_width(console, wide) <= console.width else narrow


def _padded(columns: Sequence[str], rows: Rows, padding: int) -> Table:
    table = Table(box=_FRAME, padding=(0, padding), header_style="none")
    for column in columns:
        is_name = column == "Name"
        table.add_column(
            Text(column, justify="center"),
            justify="right" if is_name else "left",
            min_width=_NAME_WIDTH if is_name else None,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    return table


def _natural_width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def _process_row(process: ProcessStatus) -> tuple[str, ...]:
    return (
        str(process.device).rjust(6),
        _plain(process.job_id),
        str(process.pid),
        _plain(process.process),
        _mib(process.memory_bytes),
    )


def _run_row(run: RunStatus) -> tuple[str, ...]:
    return (
        str(run.device).rjust(6),
        _plain(run.job_id),
        f"{run.step}/{run.total_steps}{', stopping' if run.is_stopping else ''}",
        _beside(run.step_s, run.predicted_step_s, 1, ".3g", "s"),
        _beside(run.memory_bytes, run.predicted_memory_bytes, MIB, ".0f", "MiB"),
        "-" if run.left_s is None else f"{run.left_s / 60:.1f}",
    )


def _device(device: int, *, is_current: bool) -> str:
    return f"{'*' if is_current else ' '} {device}"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value / MIB:.0f} MiB"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.0f} %"


def _celsius(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} C"


def _beside(measured: float | None, predicted: float | None, unit: float, form: str, name: str) -> str:
    """Return a measured quantity with the predicted one in brackets; what is not known is a dash."""
    first, second = ("-" if value is None else format(value / unit, form) for value in (measured, predicted))
    return f"{first} ({second}) {name}"


def _full_fraction(device: MachineDevice) -> float | None:
    return device.used_bytes / device.total_bytes if device.used_bytes is not None and device.total_bytes else None


def _plain(text: str) -> str:
    """Return a trainer's own word, without what would steer the terminal."""
    return text if text.isprintable() else ascii(text)


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at).astimezone()


def _clock(at: float) -> Text:
    return Text(_time(at).strftime("%H:%M:%S %B %d, %Y"))


def _with_mib(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields with their bytes in MiB, under names that say so."""
    return {
        key.replace("_bytes", "_mib"): value / MIB if key.endswith("_bytes") and value is not None else value
        for key, value in fields.items()
        if key != "process_bytes"
    }
