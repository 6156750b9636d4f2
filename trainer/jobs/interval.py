"""How often a job that nobody watches writes a checkpoint."""

from estimator.formulas.failures import DEVICE_MTBF_S
from estimator.formulas.machine import Machine
from estimator.search.planner import run_endurance
from estimator.stack.stack import Stack
from estimator.work.workload import Workload

MOST_LOST_S = 1800.0
"""Seconds of steps that a failure may cost at most.

assumed: the interval that makes runs shortest on average is hours where failures are rare (5.6 h on 32 devices), and
whoever waits for one run would rather spend a hundredth of it on checkpoints than lose an afternoon.
"""


def checkpoint_steps(workload: Workload, machine: Machine, stack: Stack, step_s: float) -> int:
    """Return the steps between two checkpoints of a run.

    Those of the interval that makes the run shortest (Daly 2006, `estimator.formulas.failures`), or of half an hour
    where that is less, or half the run where it ends before.

    Args:
        workload: the work.
        machine: the devices.
        stack: the software, which says what a checkpoint holds.
        step_s: predicted seconds of a step.
    """
    best_s = run_endurance(workload, machine, stack, DEVICE_MTBF_S).interval_s
    steps = round(min(float(best_s), MOST_LOST_S) / step_s)
    return max(min(steps, workload.num_steps // 2), 1)
