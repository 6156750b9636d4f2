"""A measured run: what its log says of each step, and what may be believed of it."""

import csv
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from estimator.counts import model_flop
from estimator.plan import Plan
from estimator.shape import load_shape
from estimator.workload import Workload
from hardware.errors import shown

_STEP = re.compile(
    r"^(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) \| INFO\b.*?\[Step (?P<step>\d+)/(?P<steps>\d+)\]"
    r"(?: \||) Loss: (?P<loss>[-+.\deE]+|nan|inf)"
    r"(?: \| Duration: (?P<timed>[.\d]+) \| Throughput: (?P<rate>[.\d]+) tokens/sec)?(?P<rest>.*)$"
)
_EVENT = re.compile(r"^\[(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+)\] \[info\] (?P<text>.*)$")
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"
_STARTUP_EVENTS = {
    "request": "Requesting resources",
    "ready": "Accelerator is ready",
    "train": "train: true",
}


class LoggedStep(NamedTuple):
    """One line of a step log."""

    step: int
    time_s: float
    """Seconds since the epoch at which the line was written."""
    timed_s: float | None
    """Seconds of the log's own timed window, where it prints them."""


@dataclass(frozen=True, slots=True)
class StepLog:
    """What a step log of the MoAI tutorials says."""

    steps: tuple[LoggedStep, ...]
    startup: dict[str, float]
    """Times of the events before training [seconds since the epoch]: request, ready, train."""
    refused: tuple[str, ...]
    """Lines, or parts of lines, that are no evidence, each with the reason."""

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of steps between consecutive lines, and the seconds per step of each interval.

        An interval ends with a line and starts with the line before, so that the first line's step, which holds
        compilation, is in none.
        """
        number = np.diff([s.step for s in self.steps])
        seconds = np.diff([s.time_s for s in self.steps])
        return number, seconds / number

    def steps_per_line(self) -> int:
        """Return how many steps lie between two lines, and so between two reads of the loss."""
        return int(np.median(self.intervals()[0]))

    def mean_step_s(self) -> tuple[float, float]:
        """Return the mean seconds per step, and the standard error of its logarithm.

        Intervals weigh by their steps; the variance of one step is sum n (x - mean)^2 / (k - 1) over k intervals.
        """
        number, seconds = self.intervals()
        mean = float(np.average(seconds, weights=number))
        variance = float((number * (seconds - mean) ** 2).sum() / max(len(number) - 1, 1))
        return mean, (variance / number.sum()) ** 0.5 / mean

    def timed_windows(self) -> np.ndarray:
        """Return the seconds of the timed windows, without the first line's."""
        return np.array([s.timed_s for s in self.steps[1:] if s.timed_s is not None])


def read_step_log(lines: Iterable[str]) -> StepLog:
    """Read a step log of the MoAI tutorials, line by line.

    Raises:
        ValueError: fewer than two usable step lines.
    """
    steps: list[LoggedStep] = []
    startup: dict[str, float] = {}
    refused: list[str] = []
    for line in lines:
        text = line.rstrip("\n")
        if event := _EVENT.match(text):
            for name, words in _STARTUP_EVENTS.items():
                if words in event["text"]:
                    startup[name] = _seconds(event["time"])
        elif found := _STEP.match(text):
            step = LoggedStep(
                int(found["step"]), _seconds(found["time"]), float(found["timed"]) if found["timed"] else None
            )
            if steps and (step.step <= steps[-1].step or step.time_s <= steps[-1].time_s):
                refused.append(f"steps or time run backward: {shown(text)}")
                continue
            steps.append(step)
            if found["rest"].strip():
                refused.append(f"two records in one line, the second is left out: {shown(found['rest'])}")
    if len(steps) < 2:
        raise ValueError(f"step log: {len(steps)} usable step lines; at least 2 are needed to time a step")
    return StepLog(tuple(steps), startup, tuple(refused))


def _seconds(text: str) -> float:
    return datetime.strptime(text, _TIME_FORMAT).timestamp()  # noqa: DTZ007 - only differences are used


@dataclass(frozen=True, slots=True)
class Run:
    """A run that was measured: what it trained, how, where, and what came out."""

    log_name: str
    sha256: str
    workload: Workload
    flavor: str
    plan: Plan
    num_candidates: int
    num_possible: int
    memory_mib: float | None
    stated_minutes: float | None
    """Training time as the page about the run states it."""
    log: StepLog


STATED_MINUTES_SD = 5 / 12**0.5
"""Standard deviation of a stated training time [minutes].

assumed: rounded to the nearest five minutes, so uniform over five. The three pages state 50, 40 and 160; where a log
can be held against one, it says 39.7 (the whole run) and 160.1 (1,121 steps at the mean of eight).
"""


def sustained_step_s(run: Run) -> tuple[float, float]:
    """Return a run's mean seconds per step and the standard error of its logarithm, from all that was measured of it.

    The log times some of the steps; the page's stated minutes, over all steps, are a second measurement of the same
    mean. They are averaged in log space by their inverse variances.
    """
    mean, log_se = run.log.mean_step_s()
    estimates = [(np.log(mean), max(log_se, 1e-3))]
    if run.stated_minutes is not None:
        stated_s = run.stated_minutes * 60 / run.workload.num_steps
        estimates.append((np.log(stated_s), STATED_MINUTES_SD / run.stated_minutes))
    weights = np.array([1 / sd**2 for _, sd in estimates])
    pooled = float(np.average([value for value, _ in estimates], weights=weights))
    return float(np.exp(pooled)), float(weights.sum() ** -0.5)


def refuse_impossible_speed(run: Run, peak_flop_per_s: float) -> str:
    """Return why a log's timed window is no evidence of speed, "" where it may be: it implies more than the peak.

    Args:
        run: the run.
        peak_flop_per_s: of all its devices together.
    """
    windows = run.log.timed_windows()
    if not len(windows):
        return ""
    flop = float(model_flop(run.workload.tokens_per_step, run.workload.seq_len, run.workload.shape))
    share = flop / float(windows.min()) / peak_flop_per_s
    if share <= 1:
        return ""
    step = next(s for s in run.log.steps[1:] if s.timed_s == windows.min())
    return (
        f"{run.log_name}: step {step.step}: {run.workload.tokens_per_step / windows.min():,.0f} tokens/s in the timed "
        f"window implies {share:.0%} of the devices' peak FLOP/s; the window is refused as evidence of speed"
    )


def read_runs(table: Path) -> list[Run]:
    """Read a table of measured runs (`runs.csv`), each with the step log that it names beside it.

    Raises:
        ValueError: the table or a log cannot be read, or a row breaks a rule: which one.
    """
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"runs table {shown(str(table))}: cannot be read as CSV; check the path") from error
    return [_read_run(row, table) for row in rows]


def _read_run(row: dict[str, str], table: Path) -> Run:
    try:
        path = table.parent / row["log"]
        content = path.read_bytes()
        return Run(
            log_name=row["log"],
            sha256=hashlib.sha256(content).hexdigest(),
            workload=Workload(
                load_shape(row["model"]), int(row["seq_len"]), int(row["global_batch"]), int(row["steps"])
            ),
            flavor=row["flavor"],
            plan=Plan(
                num_stages=int(row["num_stages"]),
                num_micro_batches=int(row["num_micro_batches"]),
                batch_per_device=int(row["batch_per_device"]),
                recomputation="none" if row["recomputation"].startswith(("false", "0")) else "full",
                zero_stage=3 if row["distribute_param"] == "true" else 0,
            ),
            num_candidates=int(row["candidates"]),
            num_possible=int(row["possible_candidates"]),
            memory_mib=float(row["memory_mib"]) if row["memory_mib"] else None,
            stated_minutes=float(row["stated_minutes"]) if row["stated_minutes"] else None,
            log=read_step_log(content.decode("utf-8").splitlines()),
        )
    except (KeyError, ValueError, OSError) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"runs table {shown(str(table))}: row {shown(row.get('log'))}: {what}") from error
