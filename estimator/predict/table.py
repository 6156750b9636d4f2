"""Plans and what is predicted of them as the columns of a table: one plan to a row, units in the names."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from estimator.arrays import Array
from estimator.formulas.counts import model_flop
from estimator.formulas.wall import SECONDS_PER_HOUR, energy_kwh, wall
from estimator.predict.evaluate import Evaluation, PlanEstimate, over_memory
from estimator.predict.interval import Range
from estimator.stack.fit import interval_ratio
from estimator.work.plan import PLAN_NAMES

RANGES = (
    "step_s",
    "tokens_per_s",
    "logged_tokens_per_s",
    "per_device_bytes",
    "total_bytes",
    "training_s",
    "wall_s",
    "usd",
)
"""Columns that have the ends of their 90 % intervals beside them, `_low` and `_high`; nan where nothing is known."""

COLUMNS = (
    "data_parallel",
    "possible",
    "risky",
    "reason",
    *(f"{name}{end}" for name in RANGES for end in ("", "_low", "_high")),
    "excess_bytes",
    "mfu",
    "kwh",
)
"""Columns that say what is predicted. A plan that breaks a rule of the layout has numbers in none."""

INTERVAL_COLUMNS = ("risky", *(name for name in COLUMNS if name.endswith(("_low", "_high"))))
"""Those of them that need the intervals."""


def row_of(found: PlanEstimate, peak_flop_per_s: float) -> dict[str, Any]:
    """Return the columns of one plan on devices of a peak rate [FLOP/s, each]."""
    ranges = {
        "step_s": found.step_s,
        "tokens_per_s": found.tokens_per_s,
        "logged_tokens_per_s": found.logged_tokens_per_s,
        "per_device_bytes": found.memory.per_device_bytes,
        "total_bytes": found.memory.total_bytes,
        "training_s": found.training_s,
        "wall_s": found.wall_s,
        "usd": found.usd or Range(np.nan, np.nan, np.nan),
    }
    numbers: dict[str, float] = {}
    for name, value in ranges.items():
        numbers |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    numbers |= {
        "excess_bytes": found.excess_bytes,
        "mfu": found.flop_per_device_s / peak_flop_per_s,
        "kwh": found.kwh,
    }
    return {
        **{name: getattr(found.plan, name) for name in PLAN_NAMES},
        "data_parallel": found.data_parallel,
        "possible": found.possible,
        "risky": found.is_risky and not found.is_illegal,
        "reason": found.reason,
        **(dict.fromkeys(numbers, np.nan) if found.is_illegal else numbers),
    }


def columns_of(found: Evaluation, prices: tuple[float, float, float] | None, longer: float = 1.0) -> dict[str, Any]:
    """Return the columns of plans that keep the rules of the layout, each an array of shape (plans,).

    Args:
        found: the plans, evaluated.
        prices: median, least and greatest price [USD per device and hour]; None where none is known.
        longer: factor of wall time, cost and energy, from failures.
    """
    work, machine, stack = found.workload, found.machine, found.stack
    predicted = found.prediction
    step = _ends(predicted.step.seconds, predicted.step_log_sd, predicted.degrees_of_freedom)
    used = _ends(found.device_bytes, predicted.memory_log_sd, predicted.degrees_of_freedom)
    duration = wall(step[0], work.num_steps, stack.startup, num_candidates=1)
    training = step * (work.num_steps - 1)
    whole = (duration.startup_s + duration.first_step_s + training) * longer
    hours = whole * machine.num_devices / SECONDS_PER_HOUR
    ranges = {
        "step_s": step,
        "tokens_per_s": work.tokens_per_step / step[[0, 2, 1]],
        "logged_tokens_per_s": _ends(found.logged_tokens_per_s, found.logged_log_sd, predicted.degrees_of_freedom),
        "per_device_bytes": used,
        "total_bytes": _ends(predicted.total_bytes, predicted.memory_log_sd, predicted.degrees_of_freedom),
        "training_s": training,
        "wall_s": whole,
        "usd": hours * np.array(prices or [np.nan] * 3)[:, None],
    }
    flop = float(model_flop(work.tokens_per_step, work.seq_len, work.shape)) / machine.num_devices
    usable = predicted.usable_bytes
    reasons = np.array(list(_misfits(used[0], usable, found)), dtype=object)
    numbers = {f"{name}{end}": row for name, three in ranges.items() for end, row in zip(_ENDS, three, strict=True)}
    return {
        "data_parallel": found.plans.data_parallel(machine.num_devices),
        "possible": reasons == "",
        "risky": used[2] > usable,
        "reason": reasons,
        **numbers,
        "excess_bytes": used[0] - usable,
        "mfu": flop / step[0] / machine.accelerator.usual_flop_per_s,
        "kwh": energy_kwh(whole[0], machine.num_devices, machine.accelerator),
    }


_ENDS = ("", "_low", "_high")


def _ends(values: Array, log_sd: Array, degrees_of_freedom: int) -> npt.NDArray[np.float64]:
    """Return medians, lower and upper ends of 90 % intervals, shape (3, plans)."""
    ratio = interval_ratio(log_sd, degrees_of_freedom)
    return np.stack(np.broadcast_arrays(values, values / ratio, values * ratio))


def _misfits(used: Array, usable: float, found: Evaluation) -> Iterator[str]:
    """Yield why each plan does not fit; "" where it does."""
    for device, host in zip(used.tolist(), found.host_bytes.tolist(), strict=True):
        yield over_memory(device, usable, host, found.machine)
