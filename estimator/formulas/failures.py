"""Failures of a long run: how often they come, how often to write a checkpoint, and how much of the time is useful.

The wall time is that of Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart dumps"
(doi:10.1016/j.future.2004.11.016). It is exact for failures that come at random with a constant mean time between them,
also during a checkpoint, a restart and repeated work. It breaks down

- where failures come in bursts, from one part that was not replaced or early in a machine's life: they cost less than
  the formula says, by a few percent where their times are Weibull of shape 0.5;
- where no spare is at hand: the wait belongs to the restart;
- where checkpoints are written while training goes on: only the seconds for which it stops belong to the checkpoint;
- in runs of less than a few intervals, which end before they lose what a long one does.
"""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.stack.habits import Habits
from hardware.errors import shown

DEVICE_MTBF_S = 16384 * 54 * 86400 / 419
"""Mean seconds between interruptions of a run, times its devices: 50,677 h.

All that stops a run unexpectedly, a device's share of network, host and software included.
"""
# paper: Grattafiori et al. 2024, arXiv:2407.21783, section 3.3.4 and Table 5: 419 unexpected interruptions in 54 days
# of Llama 3 405B on 16,384 H100. Other fleets differ: Kokolis et al. 2024, arXiv:2410.21680, project 1.8 h at 16,384
# A100, where this gives 3.1 h, and measure 7.9 h at 1,024, where this gives 49.5 h.

NODE_WRITE_BYTES_PER_S = 273e9 / 384
"""Bytes per second that one node writes of a checkpoint, all writing at once: 0.71 GB/s."""
# paper: Narayanan et al. 2021, arXiv:2104.04473, section 5.10: "Checkpoint saves reach 40% of peak write bandwidth
# (273 GB/s)" from 384 nodes of 8 A100 to an all-NVMe parallel file system.
# assumed: 273 GB/s is what they reach, not the peak; and it grows with the nodes, though a file system has its limit.

RESTART_S = 600.0
"""Seconds from a failure until steps go on from the last checkpoint."""
# assumed: MegaScale finds and diagnoses a failure in less than 10 minutes on average, and starts its processes in less
# than 30 s (Jiang et al. 2024, arXiv:2402.15627, sections 6 and 3.5); reading a checkpoint is faster than writing it.
# Without such automation it is hours.

_NEWTON_STEPS = 8


class Endurance(NamedTuple):
    """How a long run fares with failures, as numbers or arrays."""

    mtbf_s: Num
    """Mean seconds between failures of the whole run."""
    checkpoint_s: Num
    """Seconds to write one checkpoint."""
    interval_s: Num
    """Seconds of steps between two checkpoints that make the run shortest."""
    goodput_fraction: Num
    """Seconds of steps that are never repeated, over those of the run."""


def endurance(
    num_devices: Num,
    checkpoint_bytes: Num,
    write_bytes_per_s: Num,
    restart_s: Num = RESTART_S,
    device_mtbf_s: Num = DEVICE_MTBF_S,
) -> Endurance:
    """Return how a run on so many devices fares with the best checkpoint interval.

    Args:
        num_devices: devices of the run; any one's failure stops it.
        checkpoint_bytes: bytes of one checkpoint, of all devices together.
        write_bytes_per_s: rate at which all nodes together write it.
        restart_s: from a failure until steps go on, reading the checkpoint included.
        device_mtbf_s: mean seconds between failures that one device accounts for.

    Raises:
        ValueError: a quantity is not positive and finite.

    >>> llama = endurance(16384, 405e9 * 14, 2e12)  # its storage sustains 2 TB/s: section 3.3.1
    >>> print(f"{llama.mtbf_s / 3600:.1f} h, {llama.interval_s:.0f} s, {llama.goodput_fraction:.3f}")
    3.1 h, 249 s, 0.926
    """
    _refuse("num_devices", num_devices)
    _refuse("checkpoint_bytes", checkpoint_bytes)
    _refuse("write_bytes_per_s", write_bytes_per_s)
    _refuse("restart_s", restart_s)
    _refuse("device_mtbf_s", device_mtbf_s)
    mtbf_s = device_mtbf_s / num_devices
    checkpoint_s = checkpoint_bytes / write_bytes_per_s
    interval_s = best_interval_s(checkpoint_s, mtbf_s)
    return Endurance(mtbf_s, checkpoint_s, interval_s, goodput_fraction(interval_s, checkpoint_s, restart_s, mtbf_s))


def checkpoint_bytes(num_params: Num, habits: Habits) -> Num:
    """Bytes of one checkpoint: compute copy, master copy and optimizer state of the parameters that are trained.

    Data loader, random states and frozen parameters are not part of it.
    """
    return num_params * (habits.weight_bytes + habits.master_bytes + habits.optimizer_bytes)


def best_interval_s(checkpoint_s: Num, mtbf_s: Num) -> Array:
    """Seconds of steps between two checkpoints that make the run shortest.

    The minimum over tau of Daly's wall time, M (e^((tau + delta)/M) - 1)/tau, where its derivative is 0:
    t = 1 - e^-(t + x) with t = tau/M and x = delta/M. Newton's method starts from Young's first-order sqrt(2 delta M)
    (Young 1974, doi:10.1145/361147.361115), or M where that is less: both are above the root, where the difference is
    convex, so it comes down to it without overshooting. Daly's Eq. 37, sqrt(2 delta M) (1 + sqrt(delta/2M)/3 +
    delta/18M) - delta below delta = 2M, else M, is a series of the same root, 6 % off near delta = 2M.

    >>> best_interval_s(60.0, np.array([3600.0, 86400.0])).round(1)
    array([ 617.9, 3180.1])
    """
    x = np.asarray(checkpoint_s / mtbf_s)
    t = np.minimum(np.sqrt(2 * x), 1.0)
    for _ in range(_NEWTON_STEPS):
        t = t + (t + np.expm1(-(t + x))) / np.expm1(-(t + x))
    return np.asarray(t * mtbf_s)


def goodput_fraction(interval_s: Num, checkpoint_s: Num, restart_s: Num, mtbf_s: Num) -> Array:
    """Seconds of steps that are never repeated, over those of the run: T_s / T_w.

    T_w = M e^(R/M) (e^((tau + delta)/M) - 1) T_s/tau (Daly 2006, the complete model): T_s/tau intervals, each repeated
    until tau + delta seconds pass without a failure, with a restart of R before each repetition, itself repeated alike.

    >>> goodput_fraction(600.0, 60.0, 600.0, np.array([3600.0, 86400.0])).round(3)
    array([0.701, 0.899])
    """
    exponent = np.asarray((interval_s + checkpoint_s) / mtbf_s)
    return np.asarray(interval_s / mtbf_s * np.exp(-(restart_s / mtbf_s + exponent)) / -np.expm1(-exponent))


def _refuse(name: str, value: Num) -> None:
    """Refuse what is not positive and finite, by its name."""
    values = np.asarray(value, dtype=float).ravel()
    wrong = values[~((values > 0) & np.isfinite(values))]
    if len(wrong):
        raise ValueError(f"failures: {name} = {shown(float(wrong[0]))} is not a positive number; give one")
