"""A measured run: what its log says of each step, and what may be believed of it."""

import csv
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from estimator.formulas.counts import model_flop
from estimator.runs.pace import mean_and_log_se
from estimator.work.plan import Plan, parse_plan
from estimator.work.shape import load_shape
from estimator.work.workload import MAX_COUNT, Workload
from hardware.errors import first_error, shown

STEP_LINE = re.compile(
    r"^(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) \| INFO\b.*?\[Step (?P<step>\d+)/(?P<steps>\d+)\]"
    r"(?: \||) Loss: (?P<loss>[-+.\deE]+|nan|inf)"
    r"(?: \| Duration: (?P<timed>[.\d]+) \| Throughput: (?P<rate>[.\d]+) tokens/sec)?(?P<rest>.*)$",
    re.ASCII,
)
_EVENT = re.compile(r"^\[(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+)\] \[info\] (?P<text>.*)$", re.ASCII)
TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"
_STARTUP_EVENTS = {
    "request": "Requesting resources",
    "ready": "Accelerator is ready",
    "train": "train: true",
}
SHORTEST_WINDOW_S, LONGEST_GAP_S = 1e-3, 1e6
"""No log times a window more finely, and no two lines of a log lie further apart (11 days)."""


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
        """Return the mean seconds per step, and the standard error of its logarithm."""
        number, seconds = self.intervals()
        return mean_and_log_se(seconds, number)

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
        try:
            if event := _EVENT.match(text):
                named = [name for name, words in _STARTUP_EVENTS.items() if words in event["text"]]
                startup |= dict.fromkeys(named, _seconds(event["time"]))
            elif found := STEP_LINE.match(text):
                _add_step(found, steps, refused)
        except ValueError:
            refused.append(f"a date or a number that no log has: {shown(text)}")
    if len(steps) < 2:
        raise ValueError(f"step log: {len(steps)} usable step lines; at least 2 are needed to time a step")
    return StepLog(tuple(steps), startup, tuple(refused))


def _add_step(line: re.Match[str], steps: list[LoggedStep], refused: list[str]) -> None:
    """Add what a step line says to the steps, and what of it is no evidence to the refused.

    Raises:
        ValueError: none of it is.
    """
    number, time_s, timed = int(line["step"]), _seconds(line["time"]), line["timed"]
    timed_s = float(timed) if timed else None
    if number >= MAX_COUNT:
        raise ValueError("step: no run has so many")
    if steps and not (number > steps[-1].step and 0 < time_s - steps[-1].time_s <= LONGEST_GAP_S):
        refused.append(f"steps or time run backward, or leap: {shown(line[0])}")
        return
    if timed_s is not None and not SHORTEST_WINDOW_S <= timed_s <= LONGEST_GAP_S:
        refused.append(f"step {number}: a timed window of {timed_s:g} s is none; the line counts without it")
        timed_s = None
    if line["rest"].strip():
        refused.append(f"two records in one line, the second is left out: {shown(line['rest'])}")
    steps.append(LoggedStep(number, time_s, timed_s))


def _seconds(text: str) -> float:
    return datetime.strptime(text, TIME_FORMAT).replace(tzinfo=UTC).timestamp()  # only differences are used


@dataclass(frozen=True, slots=True)
class MoaiRun:
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


def sustained_step_s(run: MoaiRun) -> tuple[float, float]:
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


def refuse_impossible_speed(run: MoaiRun, peak_flop_per_s: float) -> str:
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


Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, lt=MAX_COUNT)]
Amount = Annotated[Annotated[float, Field(ge=1e-3, le=1e12)] | None, BeforeValidator(lambda cell: cell or None)]
"""A positive number; None where the cell is empty."""


class _Row(BaseModel, frozen=True, extra="forbid"):
    """A row of `runs.csv`, a field per column; those with a default are for the reader alone and may be left out."""

    log: Name
    model: Name
    seq_len: Count
    global_batch: Count
    steps: Count
    flavor: Name
    num_stages: Count
    num_micro_batches: Count
    batch_per_device: Count
    recomputation: Literal["false", "true", "none", "selective", "full", "0 (none)", "default(1)"]
    distribute_param: Literal["false", "true"]
    candidates: Count
    possible_candidates: int = Field(ge=0, lt=MAX_COUNT)
    stated_minutes: Amount
    memory_mib: Amount
    platform: str = ""
    dataset: str = ""
    dataset_rows: Amount = None
    epochs: Amount = None
    wall_s_per_step: Amount = None
    timed_s_per_step: Amount = None
    first_step_timed_s: Amount = None
    notes: str = ""

    @model_validator(mode="before")
    @classmethod
    def _one_cell_per_column(cls, row: Mapping[str | None, Any]) -> Mapping[str | None, Any]:
        if None in row or None in row.values():  # what csv makes of too many cells, and of too few
            raise ValueError("has not one cell per column; put quotes around a cell that holds a comma")
        return row

    def plan(self) -> Plan:
        """Return the plan that the run had."""
        recomputation = {"0 (none)": "none", "default(1)": "full"}.get(self.recomputation, self.recomputation)
        return parse_plan(
            f"num_stages={self.num_stages},num_micro_batches={self.num_micro_batches},"
            f"batch_per_device={self.batch_per_device},recomputation={recomputation},"
            f"distribute_param={self.distribute_param}"
        )


def read_runs(table: Path) -> list[MoaiRun]:
    """Read a table of measured runs (`runs.csv`), each with the step log that it names beside it.

    Raises:
        ValueError: the table or a log cannot be read, or a row breaks a rule: which row and column.
    """
    name = f"runs table {shown(str(table), 200)}"
    try:
        with table.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, header = list(reader), reader.fieldnames or ()
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{name}: cannot be read as CSV; check the path") from error
    if twice := [column for column in header if list(header).count(column) > 1]:
        raise ValueError(f"{name}: column {shown(twice[0])} is given twice; remove one")
    if not rows:
        raise ValueError(f"{name}: has no rows; add at least one run below the header")
    return [_read_run(row, table.parent, f"{name}: row {_label(row, i)}") for i, row in enumerate(rows, start=1)]


def _label(row: Mapping[str, Any], number: int) -> str:
    return shown(row["log"]) if row.get("log") else str(number)


def _read_run(row: Mapping[str | None, Any], folder: Path, where: str) -> MoaiRun:
    try:
        cells = _Row.model_validate(row)
        content = _read_log(folder / cells.log)
        return MoaiRun(
            log_name=cells.log,
            sha256=hashlib.sha256(content).hexdigest(),
            workload=Workload(load_shape(cells.model), cells.seq_len, cells.global_batch, cells.steps),
            flavor=cells.flavor,
            plan=cells.plan(),
            num_candidates=cells.candidates,
            num_possible=cells.possible_candidates,
            memory_mib=cells.memory_mib,
            stated_minutes=cells.stated_minutes,
            log=read_step_log(content.decode("utf-8").splitlines()),
        )
    except ValidationError as error:
        raise ValueError(f"{where}: {first_error(error)}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: log: not UTF-8 text; save it as UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _read_log(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"log: {shown(str(path), 200)} cannot be read; check the path") from error
