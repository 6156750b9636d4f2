"""Tables of microbenchmarks, a kernel or a collective a row, in the format `timings/1`: see docs/calibrate.md."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from estimator.runs.csv_rows import Cells, Column, RowsRead, choice, label, note, number, read_rows, stated, whole
from hardware.catalog import Catalog
from hardware.models import MOST_DEVICES, Accelerator

SETTINGS = ("training", "inference", "standalone", "best shape")
"""Where a kernel was timed, nearest to a training step first; the last, as the best of a search, made the catalog."""

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter")

KINDS = ("product", "8-bit product", "attention forward", "attention backward", "element-wise", "stream", *COLLECTIVES)
"""What was timed: products of 16 and of 8 bits, fused attention, element-wise ops and norms, copies, collectives."""

ATTENTION_KERNELS = ("cudnn", "flash")
"""Fused attention of cuDNN, and torch's own."""

_SIZE, _SECONDS, _RATE = whole(1), number(1e-9, 1e6), number(1, 1e21)


@dataclass(frozen=True, slots=True)
class Timed:
    """A kernel or a collective that was timed; None where a row does not say."""

    name: str
    """Id of its row, or its number."""
    source: str
    """The trace, or the publication."""
    setting: str
    kind: str
    accelerators: tuple[Accelerator, ...]
    """The device; several, where its name leaves open which."""
    m: int | None = None
    n: int | None = None
    k: int | None = None
    """Rows, columns and inner size of a product."""
    positions: int | None = None
    """Of an attention, the fewer of queries and keys."""
    sequences: int | None = None
    """Of an attention: one for each row and head."""
    head_dim: int | None = None
    kernel: str | None = None
    """Of an attention, where it is one that is known alone."""
    message_bytes: int | None = None
    """Of a collective: of the whole tensor that is reduced or gathered."""
    num_devices: int | None = None
    num_nodes: int | None = None
    seconds: float | None = None
    flop_per_s: float | None = None
    bytes_per_s: float | None = None
    """Moved by each device's memory; of a collective, the bus bandwidth that nccl-tests define."""


COLUMNS: dict[str, Column] = {
    "id": note,
    "source": label,
    "setting": choice(*SETTINGS),
    "kind": choice(*KINDS),
    "accelerator": label,
    "m": _SIZE,
    "n": _SIZE,
    "k": _SIZE,
    "positions": _SIZE,
    "sequences": _SIZE,
    "head_dim": _SIZE,
    "kernel": choice(*ATTENTION_KERNELS),
    "message_bytes": whole(1, 2**50),
    "num_devices": whole(1, MOST_DEVICES + 1),
    "num_nodes": whole(1, MOST_DEVICES + 1),
    "seconds": _SECONDS,
    "flop_per_s": _RATE,
    "bytes_per_s": _RATE,
    "notes": note,
}


def read_timing_table(path: Path, catalog: Catalog) -> RowsRead[Timed]:
    """Read a table of microbenchmarks.

    Raises:
        ValueError: the table cannot be read, has a column that is not known, or has gone wrong: which file, row and
            column.
    """
    return read_rows(path, "microbenchmarks", COLUMNS, lambda cells, name: _timed(cells, name, catalog))


def _timed(cells: Cells, name: str, catalog: Catalog) -> Timed:
    source, setting, kind, accelerators = stated(cells, "source", "setting", "kind", "accelerator")
    measured = {field.name: cells[field.name] for field in fields(Timed) if field.name in cells}
    known = {"source": source, "setting": setting, "kind": kind}
    devices = tuple(catalog.accelerator(each) for each in accelerators.split("/"))
    return Timed(**{**measured, **known}, name=name, accelerators=devices)


def write_timing_table(path: Path, timings: Iterable[Timed]) -> None:
    """Write timings as a table that reads back as they are."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [name for name in COLUMNS if name != "notes"], lineterminator="\n")
        writer.writeheader()
        for timed in timings:
            measured = {name: getattr(timed, name) for name in writer.fieldnames if hasattr(timed, name)}
            ids = "/".join(accelerator.id for accelerator in timed.accelerators)
            writer.writerow(measured | {"id": timed.name, "accelerator": ids})
