"""A step log and its run record as a run: the run in the estimator's terms, and what of its log is evidence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from estimator.runs.measured import Run, refuse_impossible
from estimator.formulas.counts import model_flop
from estimator.runs.logs.steps import MOST_QUOTED, QUOTED_LENGTH, StepLine
from estimator.runs.pace import Pace, pace_of
from estimator.runs.record import RunRecord, read_run_record
from estimator.stack.stack import Startup
from estimator.runs.logs.read import FEWEST_INTERVALS, Log
from estimator.work.workload import Workload
from hardware.catalog import Catalog
from hardware.errors import shown

TOKENS_TOLERANCE = 0.05
"""A log's tokens per second times its seconds are the run's tokens within this, or the log is another run's."""

MEASURED_PEAK_SLACK = 4.0
"""How much faster than a peak that was itself measured a run may be: the machine may have been busy then.

assumed: with three other processes on its cores
"""

UNKNOWN_LOG_SE = 0.03
"""Standard error of the logarithm of a mean whose steps were timed all together.

assumed: a first step of ten in a run of several hundred, and a checkpoint or two
"""


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """A run that a log measured."""

    run: Run
    log: Log
    """Without the lines that contradict the run."""
    pace: Pace

    @property
    def log_se(self) -> float:
        """Standard error of the logarithm of the seconds per step."""
        return UNKNOWN_LOG_SE if self.pace.log_se is None else self.pace.log_se

    @property
    def first_step_s(self) -> float | None:
        """Seconds that the first step took beyond a usual one; None where the log does not time it."""
        first = self.log.records[0] if self.log.records else None
        if first is None or first.step != 1 or first.step_s is None:
            return None
        return max(first.step_s - self.pace.step_s, 0.0)


def logged_startup(startup: Startup, runs: Sequence[LoggedRun]) -> Startup:
    """Return a startup with the median first step of logs, where any times it."""
    first = [run.first_step_s for run in runs if run.first_step_s is not None]
    if not first:
        return startup
    evidence = f"first step: median over {len(first)} logs, of which 90 % took below {np.quantile(first, 0.9):.3g} s"
    return startup.model_copy(
        update={"first_step_s": float(np.median(first)), "evidence": f"{evidence}; the rest as premised"}
    )


def run_record_of(log: Log) -> RunRecord:
    """Return what a log says was trained, or else what lies beside it does.

    Raises:
        ValueError: neither does, or the latter breaks a rule.
    """
    return log.run or read_run_record(log.path)


def logged_run_of(log: Log, catalog: Catalog) -> LoggedRun:
    """Return the run that a log is of.

    Raises:
        ValueError: its run record cannot be read, they contradict each other, or no such run can have been.
    """
    record = run_record_of(log)
    try:
        return logged_run(log, record, catalog)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(log.name) else f"{log.name}: {text}") from error


def logged_run(log: Log, record: RunRecord, catalog: Catalog) -> LoggedRun:
    """Return the run that a log and a run record describe together.

    Raises:
        ValueError: they contradict each other, or no such run can have been.
    """
    workload, machine = record.workload(), record.machine(catalog)
    run = Run(
        name=str(log.path),
        source="step logs",
        trainer=record.trainer or ("reference" if log.form == "steps.jsonl" else log.form),
        model=workload.shape.name,
        shape=workload.shape,
        seq_len=workload.seq_len,
        machine=machine,
        plan=record.plan.plan,
        recipe=record.recipe(),
        step_s=None,
        reserved_bytes=log.reserved_bytes,
        allocated_bytes=log.allocated_bytes,
        fits=True,
        why_unhealthy=_doubt(record),
    )
    if why := refuse_impossible(run):
        raise ValueError(why)
    flop = float(model_flop(workload.tokens_per_step, workload.seq_len, workload.shape))
    is_bound = machine.accelerator.matmul_efficiency.value < 1
    peak = run.peak_flop_per_s * (1.0 if is_bound else MEASURED_PEAK_SLACK)
    log, pace = _evidence(_of_run(log, workload), workload, machine.num_devices, flop / peak)
    return LoggedRun(replace(run, step_s=pace.step_s), log, pace)


def _doubt(record: RunRecord) -> str:
    if record.attention == "eager":
        return "attention: eager writes its scores, and the stack is of fused attention"
    return ""


def _of_run(log: Log, workload: Workload) -> Log:
    """Return a log without the lines of steps that are not the run's."""
    kept, told = [], []
    for record in log.records:
        if why := _contradiction(record, workload):
            told.append(f"step {record.step}: {why}: {shown(record.line, QUOTED_LENGTH)}")
        else:
            kept.append(record)
    if log.records and not kept:
        raise ValueError(f"{told[0]}; no step of the log is the run record's, give the record of this run")
    return _with_refused(replace(log, records=tuple(kept)), told)


def _contradiction(record: StepLine, workload: Workload) -> str:
    if record.tokens not in (None, workload.tokens_per_step):
        return f"{record.tokens:.0f} tokens are not the run's {workload.tokens_per_step}"
    if record.rows not in (None, workload.global_batch):
        return f"{record.rows:.0f} rows are not the run's {workload.global_batch}"
    return ""


def _with_refused(log: Log, told: list[str]) -> Log:
    room = max(MOST_QUOTED - len(log.refused), 0)
    return replace(log, refused=(*log.refused, *told[:room]), num_refused=log.num_refused + len(told))


def _evidence(log: Log, workload: Workload, num_devices: int, least_s: float) -> tuple[Log, Pace]:
    """Return the log and its pace without intervals that are faster than the devices' peak.

    Args:
        log: of the run alone.
        workload: one step of the run.
        num_devices: that it ran on.
        least_s: seconds that a step takes at the devices' peak FLOP/s.
    """
    if log.whole:
        if log.whole[0] < least_s:
            raise ValueError(f"{_too_fast(log.whole[0], least_s)}; the log, or its run record, is not of this run")
        return log, log.pace()
    found = log.intervals()
    _refuse_other_tokens(log, found.seconds, workload.tokens_per_step / num_devices)
    possible = found.seconds >= least_s
    told = [
        f"{_too_fast(seconds, least_s)}: {shown(line, QUOTED_LENGTH)}"
        for seconds, line, fine in zip(found.seconds, found.lines, possible, strict=True)
        if not fine
    ]
    if told and possible.sum() < FEWEST_INTERVALS:
        raise ValueError(f"{told[0]}; the log, or its run record, is not of this run")
    log = _with_refused(log, told)
    return log, pace_of(found.seconds[possible], found.number[possible]) if told else log.pace()


def _too_fast(seconds: float, least_s: float) -> str:
    return f"{seconds:g} s per step imply {least_s / seconds:.0%} of the devices' peak FLOP/s"


def _refuse_other_tokens(log: Log, seconds: np.ndarray, device_tokens: float) -> None:
    """Refuse a log whose tokens per second and device, times its seconds per step, are not the run's tokens."""
    rates = [r.device_tokens_per_s for r in log.records if r.device_tokens_per_s is not None]
    if not rates or not len(seconds):
        return
    told = float(np.median(rates) * np.median(seconds))
    if abs(told / device_tokens - 1) > TOKENS_TOLERANCE:
        raise ValueError(
            f"tokens per second and device, times seconds per step, make {told:,.0f} tokens a step on each device; "
            f"the run record says {device_tokens:,.0f}: {shown(log.form)} counts the tokens of all its parallelism"
        )
