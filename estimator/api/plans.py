"""Plans of one's own, as many as one likes, as a pandas frame: what each needs and how fast it is."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from estimator.api.options import Model, OneFlavor, SubjectOptions, as_plan, subject
from estimator.arrays import Array
from estimator.formulas.machine import Machine
from estimator.formulas.wall import price_range
from estimator.predict.evaluate import evaluate, plan_reasons
from estimator.predict.table import COLUMNS, INTERVAL_COLUMNS, columns_of
from estimator.search.planner import run_endurance
from estimator.work.defaults import SEED_MODEL
from estimator.work.plan import MAX_DEGREE, PLAN_NAMES, RECOMPUTATIONS, SCHEDULES, Plan, Plans
from hardware.errors import shown, unknown_name

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 4096
"""Plans evaluated at once, each after every move of the parameters: the larger, the more memory; fewer are slower."""

CHOICES: dict[str, tuple[str | bool, ...]] = {"recomputation": RECOMPUTATIONS, "schedule": SCHEDULES}
MAY_BE_ZERO = ("recomputed_layers", "first_layers", "last_layers", "zero_stage")
"""Counts that are 0 where the plan does without."""


def evaluate_plans(
    plans: "pd.DataFrame | Iterable[Plan | str]",
    model: Model = SEED_MODEL,
    flavor: OneFlavor = None,
    *,
    intervals: bool = True,
    **options: Unpack[SubjectOptions],
) -> "pd.DataFrame":
    """Evaluate plans of one's own on a flavor: the same frame, with what is predicted of each plan beside it.

    All plans go through the formulas as arrays. A plan that breaks a rule of the layout is a row with a `reason` and no
    numbers; one that does not fit has both. Each is run by itself, so that its wall time has no search for it.

    Args:
        plans: a frame, a row a plan, whose columns are fields of `Plan`; those left out are as usual, and columns that
            an earlier call added are replaced. Or plans, or their texts.
        model: built-in name, directory, config.json, or a Shape.
        flavor: name of a flavor; None for the current one.
        intervals: without, the columns `_low`, `_high` and `risky` are left out, which takes a fortieth of the time.
        options: of `estimate`, those of the work, the software and the hardware.

    Returns:
        The frame with the columns of `estimator.predict.table.COLUMNS`, its index kept.

    Raises:
        ValueError: a column is no field of a plan, a value is not of its kind, or as `estimate`.
    """
    import pandas as pd  # noqa: PLC0415 - slow to import, and only a frame needs it

    frame = plans if isinstance(plans, pd.DataFrame) else pd.DataFrame([asdict(as_plan(plan)) for plan in plans])
    table = plans_of(frame)
    asked = subject(model, flavor, **options)
    if len(asked.on) > 1:
        raise ValueError(f"flavor: {shown(flavor)} is several; give one, and call for each")
    on = asked.on[0]
    machine = Machine.of(asked.catalog, on.flavor)
    own = asked.usd_per_device_h
    prices = price_range(asked.catalog.latest_prices(machine.accelerator.id)) if own is None else (own, own, own)
    longer = 1.0
    if asked.device_mtbf_s is not None:
        found = run_endurance(asked.workload, machine, on.stack, asked.device_mtbf_s)
        longer = 1.0 / float(found.goodput_fraction)
    kept = [name for name in COLUMNS if intervals or name not in INTERVAL_COLUMNS]
    columns = _empty_columns(kept, len(frame))
    for start in range(0, len(frame), CHUNK):
        block = _taken(table, np.arange(start, min(start + CHUNK, len(frame))))
        reasons = np.array(plan_reasons(block, asked.workload, machine, on.stack), dtype=object)
        columns["reason"][start : start + CHUNK] = reasons
        columns["data_parallel"][start : start + CHUNK] = block.data_parallel(machine.num_devices)
        legal = np.flatnonzero(reasons == "")
        if len(legal):
            evaluated = evaluate(_taken(block, legal), asked.workload, machine, on.stack, intervals=intervals)
            for name, values in columns_of(evaluated, prices, longer).items():
                if name in columns:
                    columns[name][start + legal] = values
    return frame.assign(**columns)


def _empty_columns(names: Iterable[str], count: int) -> dict[str, Array]:
    """Return columns of plans that break a rule: no numbers, not possible."""
    kinds: dict[str, Any] = {"possible": False, "risky": False, "reason": "", "data_parallel": 0}
    made = {name: kinds.get(name, np.nan) for name in names}
    return {
        name: np.full(count, value, dtype=object if isinstance(value, str) else type(value))
        for name, value in made.items()
    }


def _taken(plans: Plans, rows: Array) -> Plans:
    return Plans(**{name: getattr(plans, name)[rows] for name in PLAN_NAMES})


def plans_of(frame: "pd.DataFrame") -> Plans:
    """Return the plans that the rows of a frame describe, fields of shape (rows,).

    Raises:
        ValueError: a column is no field of a plan, or a value is not of its kind: which, and in which row.
    """
    names = list(map(str, frame.columns))
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"plans: column {shown(name)} is there more than once; keep one")
        if name not in PLAN_NAMES and name not in COLUMNS:
            told = unknown_name("column", name, PLAN_NAMES)
            raise ValueError(f"plans: {told}; columns of your own belong into the index")
    usual = asdict(Plan())
    columns: dict[str, Any] = {}
    for name, value in usual.items():
        choices = CHOICES.get(name, (False, True) if isinstance(value, bool) else ())
        if name not in names:
            columns[name] = np.full(len(frame), choices.index(value) if choices else value)
        else:
            columns[name] = _codes(frame[name], choices) if choices else _counts(frame[name])
        columns[name] = columns[name].astype(np.bool_ if isinstance(value, bool) else np.int64)
    return Plans(**columns)


def _codes(column: "pd.Series[Any]", choices: tuple[str | bool, ...]) -> Array:
    """Return the places of values among those that there are."""
    codes = column.map({value: i for i, value in enumerate(choices)}).to_numpy(dtype=np.float64, na_value=np.nan)
    _refuse(column, ~np.isnan(codes), f"one of {', '.join(map(str, choices))}")
    return codes


def _counts(column: "pd.Series[Any]") -> Array:
    """Return whole numbers."""
    import pandas as pd  # noqa: PLC0415 - slow to import, and only a frame needs it

    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    least, most = (0 if column.name in MAY_BE_ZERO else 1), (3 if column.name == "zero_stage" else MAX_DEGREE - 1)
    is_right = (least <= values) & (values <= most) & (values == np.floor(values))
    _refuse(column, is_right, f"a whole number from {least} to {most}")
    return values


def _refuse(column: "pd.Series[Any]", is_right: Array, what: str) -> None:
    wrong = np.flatnonzero(~is_right)
    if len(wrong):
        given = column.iloc[int(wrong[0])]
        value = shown(given.item() if isinstance(given, np.generic) else given)
        raise ValueError(f"plans: {column.name} = {value} in row {wrong[0]} is not {what}; correct it")
