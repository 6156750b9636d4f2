"""What logs tell of a stack's host: the one-off seconds of a run, and the two paces at which it launches work."""

from collections.abc import Sequence

import numpy as np

from estimator.runs.measured import Run
from estimator.stack.stack import Startup

LEAST_RATIO = 1.1
"""Mean of the windows after their widest gap over that of those before it, from which on there are two paces."""

FEWEST_WINDOWS = 3


def host_paces(runs: Sequence[Run]) -> tuple[float, float]:
    """Return the fraction of steps at the host's slow pace, and the slow pace's launch time over the fast one's.

    In each log, the timed windows are split at their widest gap, if the means on its two sides differ by more than
    10 %; a log without such a gap shows one pace and says nothing of the other. The fraction is pooled over windows,
    the ratio is the geometric mean over logs.
    """
    slow, total, ratios = 0, 0, []
    for run in runs:
        windows = np.sort(run.launch_windows_s)
        if len(windows) < FEWEST_WINDOWS:
            continue
        split = int(np.argmax(np.diff(windows))) + 1
        ratio = windows[split:].mean() / windows[:split].mean()
        if ratio > LEAST_RATIO:
            slow, total = slow + len(windows) - split, total + len(windows)
            ratios.append(np.log(ratio))
    if not ratios:
        return 0.0, 1.0
    return slow / total, float(np.exp(np.mean(ratios)))


def startup_of(runs: Sequence[Run], load_s: float) -> Startup:
    """Return the one-off seconds of a run: medians over the runs that tell them, 0 of what none does."""
    told = {
        field: [value for run in runs if run.startup and (value := getattr(run.startup, field)) is not None]
        for field in ("request_s", "search_s_per_candidate")
    }
    told["first_step_excess_s"] = [
        max(run.startup.first_step_s - run.step_s, 0.0)
        for run in runs
        if run.startup and run.startup.first_step_s is not None and run.step_s is not None
    ]
    known = {name.replace("_s_", " ").removesuffix("_s").replace("_", " "): values for name, values in told.items()}
    evidence = [
        f"{words}: median over {len(values)} logs, of which 90 % took below {np.quantile(values, 0.9):.3g} s"
        for words, values in known.items()
        if values
    ]
    return Startup(
        load_s=load_s,
        **{field: float(np.median(values)) if values else 0.0 for field, values in told.items()},
        evidence="; ".join([*evidence, "the rest as premised"]) if evidence else "assumed: the runs say nothing of it",
    )
