"""A whole run: startup and steps to wall time, and what that costs in money and energy."""

from collections.abc import Sequence
from typing import NamedTuple

from estimator.arrays import Num
from estimator.stack.stack import Startup
from hardware.models import Accelerator, Price

SECONDS_PER_HOUR = 3600.0


class Wall(NamedTuple):
    """Seconds of a run, from the start of the program to the end of its last step; of one plan, or of many."""

    startup_s: float
    """Until the first step begins: imports, checkpoint, request, plan search."""
    first_step_s: Num
    later_steps_s: Num

    @property
    def seconds(self) -> Num:
        """Seconds of all of it."""
        return self.startup_s + self.first_step_s + self.later_steps_s


def wall(step_s: Num, num_steps: int, startup: Startup, num_candidates: int) -> Wall:
    """Return the wall time of a run: startup + first step + (n - 1) steps.

    The first step takes longer than the others by what it does once, whatever they take: lazy compilation, weights to
    the devices. Evaluation, checkpoints and failures are not
    part of it.
    """
    search_s = startup.search_s_per_candidate * num_candidates
    return Wall(
        startup_s=startup.load_s + startup.request_s + search_s,
        first_step_s=startup.first_step_excess_s + step_s,
        later_steps_s=step_s * (num_steps - 1),
    )


def price_range(prices: Sequence[Price]) -> tuple[float, float, float] | None:
    """Return the median, least and greatest price [USD per device and hour], None where none is known.

    A price whose unit its source leaves unclear counts with its mean, and spans both readings.
    """
    if not prices:
        return None
    readings = [(p.usd_per_device_h, p.usd_per_device_h_high or p.usd_per_device_h) for p in prices]
    middles = sorted((low + high) / 2 for low, high in readings)
    count = len(middles)
    median = (middles[(count - 1) // 2] + middles[count // 2]) / 2
    return median, min(low for low, _ in readings), max(high for _, high in readings)


def energy_kwh(seconds: Num, num_devices: int, accelerator: Accelerator) -> Num:
    """Energy of the devices at their design power, hosts and network not counted [kWh]."""
    return accelerator.tdp_w * num_devices * seconds / SECONDS_PER_HOUR / 1000
