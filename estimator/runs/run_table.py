"""Tables of measured runs, one a row, in the format `runs/1`: see docs/calibrate.md.

The columns of the model, the plan and the recipe are the fields of `Shape`, `Plan` and `Recipe`, by name. A blank cell
is the field's default.
"""

import csv
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from estimator.formulas.machine import Fabric, Machine
from estimator.runs.csv_rows import (
    Cells,
    Column,
    RowsRead,
    Skipped,
    choice,
    flag,
    label,
    note,
    number,
    numbers,
    read_rows,
    stated,
    whole,
)
from estimator.runs.measured import Run, Startup, impossible
from estimator.runs.record import plan_of
from estimator.stack.recipe import Recipe
from estimator.work.plan import PLAN_FIELDS
from estimator.work.shape import Shape, load_shape
from hardware.catalog import Catalog
from hardware.models import MOST_DEVICES

_OF_KIND: dict[Any, Column] = {int: whole(), bool: flag, str: label, str | None: label, bool | None: flag}
"""Columns of the kinds of fields: of their defaults, or of their annotations where those tell nothing."""

_FULLEST, _FIRST_STAGE = "fullest", "first stage"


class _Fields(NamedTuple):
    """Fields of a dataclass that are columns."""

    columns: dict[str, Column]
    needed: tuple[str, ...]
    """Those without a default."""
    usual: dict[str, Any]
    """Defaults of the others."""


def _fields_of(kind: type, *left_out: str) -> _Fields:
    hints = get_type_hints(kind)
    own = [field for field in fields(kind) if field.name not in left_out]
    return _Fields(
        columns={field.name: _OF_KIND.get(type(field.default)) or _OF_KIND[hints[field.name]] for field in own},
        needed=tuple(field.name for field in own if field.default is MISSING),
        usual={field.name: field.default for field in own if field.default is not MISSING},
    )


SHAPE = _fields_of(Shape, "name", "lora_rank")  # its name is the column `model`, its adapters are the recipe's
PLAN = _Fields(
    columns={own.name: _OF_KIND[type(own.usual)] for own in PLAN_FIELDS},
    needed=(),
    usual={own.name: own.usual for own in PLAN_FIELDS},
)
RECIPE = _fields_of(Recipe)

_SECONDS = number(1e-9, 1e6)
_BYTES = number(1, 1e15)

MEASURED: dict[str, Column] = {
    "step_s": _SECONDS,
    "step_log_se": number(0, 10),
    "reserved_bytes": _BYTES,
    "allocated_bytes": _BYTES,
    "total_bytes": _BYTES,
    "memory_of": choice(_FULLEST, _FIRST_STAGE),
    "fits": flag,
    "steps_per_read": whole(1),
    "launch_windows_s": numbers(_SECONDS),
    "request_s": number(0, 1e6),
    "search_s_per_candidate": number(0, 1e6),
    "first_step_s": number(0, 1e6),
    "hop_s": number(0, 1),
    "stalls": flag,
    "doubt": label,
    "assumes": label,
    "notes": note,
}
"""What was measured, of the run and of its machine, and what is to be known of it."""

COLUMNS: dict[str, Column] = {
    "id": note,
    "source": label,
    "software": label,
    "model": label,
    **SHAPE.columns,
    "seq_len": whole(1),
    "accelerator": label,
    "num_devices": whole(1, MOST_DEVICES + 1),
    "num_nodes": whole(1, MOST_DEVICES + 1),
    **PLAN.columns,
    **RECIPE.columns,
    **MEASURED,
}

OTHER_NAMES = {"tensor_parallel": "tp", "context_parallel": "cp", "expert_parallel": "ep"}
"""What `estimate --json` calls fields of a plan."""


def read_run_table(path: Path, catalog: Catalog) -> RowsRead[Run]:
    """Read a table of measured runs.

    Raises:
        ValueError: the table cannot be read, has a column that is not known, or has gone wrong: which file, row and
            column.
    """
    read = read_rows(path, "runs", COLUMNS, lambda cells, name: _run(cells, name, catalog), OTHER_NAMES)
    doubted = impossible(read.items)
    return RowsRead(
        tuple(run for run, why in zip(read.items, doubted, strict=True) if not why),
        (*read.skipped, *(Skipped(run.name, why) for run, why in zip(read.items, doubted, strict=True) if why)),
    )


def _run(cells: Cells, name: str, catalog: Catalog) -> Run:
    """Return the run of a row; a ValueError says why it is none."""
    source, software, seq_len = stated(cells, "source", "software", "seq_len")
    machine, plan = _machine(cells, catalog), plan_of({**PLAN.usual, **_own(cells, PLAN)})
    ways = plan.num_stages * plan.tp * plan.cp
    if machine.num_devices % ways:
        raise ValueError(f"plan: num_stages * tp * cp = {ways} does not divide num_devices = {machine.num_devices}")
    held = [cells.get(column) for column in ("reserved_bytes", "allocated_bytes", "total_bytes")]
    if not any((cells.get("step_s"), *held)) and "fits" not in cells:
        raise ValueError("step_s: neither a time nor memory was measured, nor whether it fits")
    startup = {column: cells[column] for column in Startup._fields if column in cells}
    return Run(
        name=name,
        source=source,
        trainer=software,
        shape=_shape(cells),
        seq_len=seq_len,
        machine=machine,
        plan=plan,
        recipe=Recipe(**_own(cells, RECIPE)),
        step_s=cells.get("step_s"),
        reserved_bytes=held[0],
        allocated_bytes=held[1],
        fits=cells.get("fits"),
        why_unhealthy=cells.get("doubt", ""),
        reads_first_stage=cells.get("memory_of") == _FIRST_STAGE,
        assumes=cells.get("assumes", ""),
        step_log_se=cells.get("step_log_se", 0.0),
        steps_per_read=cells.get("steps_per_read", 1),
        launch_windows_s=cells.get("launch_windows_s", ()),
        total_bytes=held[2],
        startup=Startup(**startup) if startup else None,
    )


def _own(cells: Cells, kind: _Fields) -> dict[str, Any]:
    return {name: cells[name] for name in kind.columns if name in cells}


def _shape(cells: Cells) -> Shape:
    """Return the model of a row: of a built-in name or a config where no size is stated, else of its sizes."""
    (model,) = stated(cells, "model")
    sizes = _own(cells, SHAPE)
    if not sizes:
        return load_shape(model)
    stated(cells, *SHAPE.needed)
    if nothing := [name for name in SHAPE.needed if sizes[name] == 0 and sizes[name] is not False]:
        raise ValueError(f"{nothing[0]}: 0 is no model's")
    shape = Shape(name=model, **sizes)
    if shape.num_heads % shape.num_kv_heads:
        raise ValueError(f"num_kv_heads: {shape.num_kv_heads} does not divide num_heads = {shape.num_heads}")
    if not (shape.num_experts == 0 or 0 < shape.num_experts_per_token <= shape.num_experts):
        raise ValueError(f"num_experts_per_token: not from 1 to num_experts = {shape.num_experts}")
    return shape


def _machine(cells: Cells, catalog: Catalog) -> Machine:
    """Return the devices, on as few of the catalog's nodes as hold them where the row does not say on how many."""
    accelerator, num_devices = stated(cells, "accelerator", "num_devices")
    device = catalog.accelerator(accelerator)
    node = catalog.node_of(device.id)
    num_nodes = cells.get("num_nodes", -(-num_devices // node.num_devices))
    if not num_nodes <= num_devices <= num_nodes * node.num_devices:
        raise ValueError(f"num_nodes: {num_nodes} nodes of {node.num_devices} do not hold {num_devices} devices")
    if ("hop_s" in cells) != ("stalls" in cells):
        raise ValueError("hop_s: is measured together with stalls; give both or none")
    fabric = Fabric(cells["hop_s"], cells["stalls"]) if "hop_s" in cells else None
    return Machine(device, node, num_devices, num_nodes, fabric)


def write_run_table(path: Path, runs: Iterable[Run]) -> None:
    """Write runs as a table that reads back as they are; columns that all rows leave blank are left out."""
    rows = [_cells(run) for run in runs]
    used = [name for name in COLUMNS if any(row.get(name) for row in rows)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, used, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _cells(run: Run) -> dict[str, str]:
    """Return the cells of a run's row, without those that are blank."""
    shape, machine = asdict(run.shape), run.machine
    usual = {**SHAPE.usual, **PLAN.usual, **RECIPE.usual, "step_log_se": 0.0, "steps_per_read": 1}
    values: dict[str, Any] = {
        "id": run.name,
        "source": run.source,
        "software": run.trainer,
        "model": run.model,
        **{name: shape[name] for name in SHAPE.columns},
        "seq_len": run.seq_len,
        "accelerator": machine.accelerator.id,
        "num_devices": machine.num_devices,
        "num_nodes": machine.num_nodes,
        **asdict(run.plan),
        **asdict(run.recipe),
        **{name: getattr(run, name) for name in MEASURED if hasattr(run, name)},
        "memory_of": _FIRST_STAGE if run.reads_first_stage else None,
        **(run.startup._asdict() if run.startup else {}),
        **(machine.fabric._asdict() if machine.fabric else {}),
        "doubt": run.why_unhealthy,
    }
    return {name: _text(value) for name, value in values.items() if name not in usual or value != usual[name]}


def _text(value: Any) -> str:
    """Return what a cell reads back as.

    >>> _text((7.5, 8.0)), _text(True), _text(None)
    ('7.5 8.0', 'true', '')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    return "" if value is None else str(value)
