"""Tables of measured runs, one a row, in the format `runs/1`: see docs/calibrate.md.

The columns of the model, the plan and the recipe are the fields of `Shape`, `Plan` and `Recipe`, by name. A blank cell
is the field's default. Of the plan, the recipe, the accelerator and the length of rows, a cell may hold several values
with "/" between: the source does not say which; the run is then predicted as each of them.
"""

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from estimator.formulas.machine import Fabric, Machine
from estimator.runs.csv_rows import (
    Cells,
    Column,
    RowsRead,
    Several,
    Skipped,
    choice,
    flag,
    label,
    note,
    number,
    numbers,
    or_several,
    read_rows,
    stated,
    whole,
    words,
)
from estimator.runs.measured import Run, Startup, impossible
from estimator.runs.record import plan_of
from estimator.stack.optimizers import OPTIMIZERS
from estimator.stack.recipe import LOSSES, PRECISIONS, QUANTIZED_BYTES, Recipe
from estimator.work.plan import PLAN_FIELDS, RECOMPUTATIONS, SCHEDULES, Plan
from estimator.work.shape import Shape, load_shape
from hardware.catalog import Catalog
from hardware.errors import unknown_name
from hardware.models import MOST_DEVICES

_OF_KIND: dict[Any, Column] = {
    int: whole(), bool: flag, str: label, str | None: label, bool | None: flag, tuple: words,
}  # fmt: skip
"""Columns of the kinds of fields: of their defaults, or of their annotations where those tell nothing."""

_FULLEST, _FIRST_STAGE = "fullest", "first stage"

MEMORY = ("reserved_bytes", "allocated_bytes", "held_bytes", "used_bytes", "total_bytes")
"""Columns of memory."""


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


OF_CONFIGS: dict[str, Any] = {
    field.name: field.default for field in fields(Shape) if not field.repr and not field.name.startswith("lora_")
}
"""Fields of a shape that only a config or a built-in name tells, and what they are of a model of plain layers."""

SHAPE = _fields_of(
    Shape, "name", "lora_rank", "lora_targets", "lora_modules", *OF_CONFIGS
)  # its name is the column `model`, its adapters the recipe's
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
    "tokens_per_s": number(1e-3, 1e12),
    "step_log_se": number(0, 10),
    "reserved_bytes": _BYTES,
    "allocated_bytes": _BYTES,
    "held_bytes": _BYTES,
    "used_bytes": _BYTES,
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
    "seq_len": or_several(whole(1)),
    "longest_row": whole(1),
    "accelerator": or_several(label),
    "num_devices": whole(1, MOST_DEVICES + 1),
    "num_nodes": whole(1, MOST_DEVICES + 1),
    "global_batch": whole(1),
    **{name: or_several(column) for name, column in (PLAN.columns | RECIPE.columns).items()},
    **MEASURED,
}

_WORDS: dict[str, Collection[str]] = {
    "recomputation": RECOMPUTATIONS, "schedule": SCHEDULES, "precision": PRECISIONS, "optimizer": OPTIMIZERS,
    "quantize": QUANTIZED_BYTES, "loss": LOSSES,
}  # fmt: skip
"""What columns of names know."""

MOST_ALTERNATIVES = 256
"""Runs that a row may stand for."""

OTHER_NAMES = {"tensor_parallel": "tp", "context_parallel": "cp", "expert_parallel": "ep"}
"""What `estimate --json` calls fields of a plan."""


def read_run_table(path: Path, catalog: Catalog) -> RowsRead[Run]:
    """Read a table of measured runs.

    Raises:
        ValueError: the table cannot be read, has a column that is not known, or has gone wrong: which file, row and
            column.
    """
    read = read_rows(path, "runs", COLUMNS, lambda cells, name: _run(cells, name, catalog), OTHER_NAMES)
    doubted = iter(impossible([one for run in read.items for one in run.all_it_may_be]))
    items: list[Run] = []
    skipped = list(read.skipped)
    for run in read.items:
        told = [(one, next(doubted)) for one in run.all_it_may_be]
        if possible := [one for one, why in told if not why]:
            items.append(one_of(possible) if run.alternatives else run)
        else:
            skipped.append(Skipped(run.name, told[0][1]))
    return RowsRead(tuple(items), tuple(skipped))


def run_of(told: Mapping[str, str], name: str, catalog: Catalog) -> Run:
    """Return the run of a row's cells, by column.

    Raises:
        ValueError: a cell is not of its column, or the row is no run: which column, and why.
    """
    cells: dict[str, Any] = {}
    for column, text in told.items():
        if column not in COLUMNS:
            raise ValueError(unknown_name("column", column, COLUMNS, OTHER_NAMES))
        try:
            cells |= {column: COLUMNS[column](text)} if text else {}
        except ValueError as error:
            raise ValueError(f"{column}: {error}") from error
    return _run(cells, name, catalog)


def _run(cells: Cells, name: str, catalog: Catalog) -> Run:
    """Return the run of a row, with all that it may be where that is open; a ValueError says why it is none.

    A combination that cannot be is left out.
    """
    open_cells = {name: cell.values for name in COLUMNS if isinstance(cell := cells.get(name), Several)}
    _refuse_unknown(open_cells, catalog)
    found, why = [], ""
    for number_, values in enumerate(product(*open_cells.values())):
        if number_ == MOST_ALTERNATIVES:
            raise ValueError(f"{', '.join(open_cells)}: leave open more than {MOST_ALTERNATIVES} runs; say more of it")
        try:
            found.append(_one_run({**cells, **dict(zip(open_cells, values, strict=True))}, name, catalog))
        except ValueError as error:
            why = why or str(error)
    if not found:
        raise ValueError(why)
    return one_of(found)


def _refuse_unknown(open_cells: Mapping[str, tuple[Any, ...]], catalog: Catalog) -> None:
    """Refuse a word that is none of its column's, which else would count as a run that cannot have been."""
    for column, values in open_cells.items():
        for value in values:
            if column == "accelerator":
                catalog.accelerator(value)
            elif column in _WORDS and not {value} & {*_WORDS[column]}:
                raise ValueError(unknown_name(column, value, _WORDS[column]))


def one_of(runs: Sequence[Run]) -> Run:
    """Return the first of several runs, one of which was measured, with the others beside it."""
    first, *others = (replace(run, alternatives=()) for run in runs)
    return replace(first, alternatives=tuple(others), fits=first.fits)


def _one_run(cells: Cells, name: str, catalog: Catalog) -> Run:
    """Return the run of a row that leaves nothing open; a ValueError says why it is none."""
    source, software, seq_len = stated(cells, "source", "software", "seq_len")
    machine = _machine(cells, catalog)
    plan = _plan(cells, machine.num_devices)
    rows = machine.num_devices // (plan.num_stages * plan.tp * plan.cp) * plan.num_micro_batches * plan.batch_per_device
    held: dict[str, Any] = {name: cells.get(name) for name in MEMORY}
    if not any((cells.get("step_s"), cells.get("tokens_per_s"), *held.values())) and "fits" not in cells:
        raise ValueError("step_s: neither a time nor a rate nor memory was measured, nor whether it fits")
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
        step_s=_step_s(cells, rows * seq_len),
        longest_row=_longest_row(cells, seq_len),
        **held,
        fits=cells.get("fits"),
        why_unhealthy=cells.get("doubt", ""),
        reads_first_stage=cells.get("memory_of") == _FIRST_STAGE,
        assumes=cells.get("assumes", ""),
        step_log_se=cells.get("step_log_se", 0.0),
        steps_per_read=cells.get("steps_per_read", 1),
        launch_windows_s=cells.get("launch_windows_s", ()),
        startup=Startup(**startup) if startup else None,
    )


def _plan(cells: Cells, num_devices: int) -> Plan:
    """Return the plan of a row; where a global batch is stated, the micro-batches follow from it, or agree with it."""
    told = _own(cells, PLAN)
    plan = plan_of({**PLAN.usual, **told})
    ways = plan.num_stages * plan.tp * plan.cp
    if num_devices % ways:
        raise ValueError(f"plan: num_stages * tp * cp = {ways} does not divide num_devices = {num_devices}")
    batch, rows = cells.get("global_batch"), num_devices // ways * plan.batch_per_device
    if batch is None:
        return plan
    if batch % rows:
        raise ValueError(f"global_batch: {batch} rows are no whole micro-batches: one on all devices is {rows} rows")
    if told.get("num_micro_batches", batch // rows) != batch // rows:
        raise ValueError(
            f"num_micro_batches: {plan.num_micro_batches} are stated, {batch // rows} follow from the rest"
        )
    return replace(plan, num_micro_batches=batch // rows)


def _step_s(cells: Cells, tokens: int) -> float | None:
    """Return the seconds of a step, of its own cell or of a rate."""
    rate: float | None = cells.get("tokens_per_s")
    if rate is None:
        return cells.get("step_s")
    if "step_s" in cells:
        raise ValueError("tokens_per_s: is given beside step_s; give one of them")
    return tokens / rate


def _longest_row(cells: Cells, seq_len: int) -> int | None:
    """Return the tokens of the longest row, None where all are as long."""
    longest: int | None = cells.get("longest_row")
    if longest is not None and longest < seq_len:
        raise ValueError(f"longest_row: {longest} tokens are fewer than seq_len = {seq_len}, the mean")
    return longest


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
    rows = [_told(run) for run in runs]
    used = [name for name in COLUMNS if any(row.get(name) for row in rows)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, used, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _told(run: Run) -> dict[str, str]:
    """Return the cells of a run's row, those that leave something open with all that it may be."""
    all_cells = [_cells(one) for one in run.all_it_may_be]
    batches = {one.workload.global_batch for one in run.all_it_may_be}
    told = {name: "/".join(dict.fromkeys(cells.get(name, "") for cells in all_cells)) for name in COLUMNS}
    if run.alternatives:  # a column's usual value is written out where others stand beside it
        usual = {**PLAN.usual, **RECIPE.usual}
        told |= {
            name: "/".join(dict.fromkeys(cells.get(name) or _text(usual[name]) for cells in all_cells))
            for name, cell in told.items()
            if "/" in cell and name in usual
        }
        rates = [one.tokens_per_s for one in run.all_it_may_be if one.tokens_per_s]
        if "/" in told["step_s"]:
            told |= {"step_s": "", "tokens_per_s": _text(rates[0])}
        if len(batches) == 1:
            told["global_batch"] = str(batches.pop())
            told["num_micro_batches"] = ""
    return {name: cell for name, cell in told.items() if cell}


def _cells(run: Run) -> dict[str, str]:
    """Return the cells of a run's row, without those that are blank."""
    shape, machine = asdict(run.shape), run.machine
    is_plain = run.shape == replace(run.shape, **OF_CONFIGS)  # else its name has to tell it
    usual = {**SHAPE.usual, **PLAN.usual, **RECIPE.usual, "step_log_se": 0.0, "steps_per_read": 1}
    values: dict[str, Any] = {
        "id": run.name,
        "source": run.source,
        "software": run.trainer,
        "model": run.model,
        **({name: shape[name] for name in SHAPE.columns} if is_plain else {}),
        "seq_len": run.seq_len,
        "longest_row": run.longest_row,
        "accelerator": machine.accelerator.id,
        "num_devices": machine.num_devices,
        "num_nodes": machine.num_nodes,
        **asdict(run.plan),
        **asdict(run.recipe),
        **{name: getattr(run, name) for name in MEASURED if hasattr(run, name) and name != "tokens_per_s"},
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
