"""A step log and its run record as a run: the run in the estimator's terms, and what of its log is evidence."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from estimator.formulas.counts import model_flop
from estimator.runs.logs.read import FEWEST_INTERVALS, Log
from estimator.runs.logs.steps import MOST_QUOTED, QUOTED_LENGTH, StepLine
from estimator.runs.measured import Run, Startup, refuse_impossible
from estimator.runs.pace import Pace, pace_of, pooled
from estimator.runs.record import RunRecord, plan_of, read_run_record
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

STATED_MINUTES_SD = 5 / 12**0.5
"""Standard deviation of a stated training time [minutes].

assumed: rounded to the nearest five minutes, so uniform over five. Three pages of the MoAI tutorials state 50, 40 and
160; where a log can be held against one, it says 39.7 (the whole run) and 160.1 (1,121 steps at the mean of eight).
"""


TRAINERS = {"steps.jsonl": "reference", "composer": "llm-foundry", "nemo": "megatron"}
"""Whose logs are of a form, as stacks name the software, where that is not the form's own name."""


def trainer_of(form: str) -> str:
    """Return the software that is taken to have written a log of a form, where no record says which.

    >>> trainer_of("nemo"), trainer_of("torchtitan")
    ('megatron', 'torchtitan')
    """
    return TRAINERS.get(form, form)


def run_record_of(log: Log) -> RunRecord:
    """Return what a log says was trained, or else what lies beside it does.

    Raises:
        ValueError: neither does, or the latter breaks a rule.
    """
    return log.record or read_run_record(log.path)


def logged_run_of(log: Log, catalog: Catalog) -> Run:
    """Return the run that a log is of.

    Raises:
        ValueError: its run record cannot be read, they contradict each other, or no such run can have been.
    """
    record = run_record_of(log)
    try:
        return _run(replace(log, record=record), record, catalog)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(log.name) else f"{log.name}: {text}") from error


def _run(log: Log, record: RunRecord, catalog: Catalog) -> Run:
    workload, machine = record.workload(), record.machine(catalog)
    trainer = record.trainer or trainer_of(log.form)
    had_all = record.loss == "whole" or (record.loss is None and trainer == "reference")  # whose first logs say nothing
    run = Run(
        name=str(log.path),
        source="step logs",
        trainer=trainer,
        shape=workload.shape,
        seq_len=workload.seq_len,
        machine=machine,
        plan=plan_of(record.plan),
        recipe=replace(record.recipe(), has_all_logits=had_all),
        step_s=None,
        reserved_bytes=log.reserved_bytes,
        allocated_bytes=log.allocated_bytes,
        fits=True,
        why_unhealthy=_doubt(record),
        steps_per_read=log.steps_per_read,
        total_bytes=record.total_bytes,
    )
    if why := refuse_impossible(run):
        raise ValueError(why)
    flop = float(model_flop(workload.tokens_per_step, workload.seq_len, run.recipe.shape(workload.shape)))
    is_bound = machine.accelerator.matmul_efficiency.value < 1
    peak = run.peak_flop_per_s * (1.0 if is_bound else MEASURED_PEAK_SLACK)
    timed_log, assumes = _timed_by_rates(_of_run(log, workload), record)
    found = _evidence(timed_log, workload, record.logged_tokens_per_step, machine.num_devices, flop / peak)
    step_s, log_se = _sustained(found.pace, record)
    return replace(
        run,
        step_s=step_s,
        step_log_se=float(np.hypot(log_se, machine.drift_log_sd)),
        launch_windows_s=tuple(line.launch_s for line in found.lines if line.launch_s is not None),
        startup=_startup(log, record, found.pace),
        log=found.log,
        pace=found.pace,
        assumes=assumes,
    )


def _doubt(record: RunRecord) -> str:
    if record.attention == "eager":
        return "attention: eager writes its scores, and the stack is of fused attention"
    return ""


def _sustained(pace: Pace, record: RunRecord) -> tuple[float, float]:
    """Return the seconds per step, and the standard error of their logarithm, from all that was measured of them.

    The log times some of the steps. A stated training time, over all steps, is a second measurement of the same mean.
    """
    log_se = UNKNOWN_LOG_SE if pace.log_se is None else pace.log_se
    if record.stated_minutes is None or record.num_steps is None:
        return pace.step_s, log_se
    stated_s = record.stated_minutes * 60 / record.num_steps
    return pooled([(pace.step_s, log_se), (stated_s, STATED_MINUTES_SD / record.stated_minutes)])


def _startup(log: Log, record: RunRecord, pace: Pace) -> Startup | None:
    """Return the one-off seconds that a log tells, None where it tells none."""
    begun, first = log.beginning, log.records[0] if log.records else None
    search_s = None
    if begun.search_s is not None and record.num_candidates:
        search_s = begun.search_s / record.num_candidates
    first_step_s = None
    if first and first.step == 1 and first.step_s is not None:
        first_step_s = first.step_s
    elif first and first.clock_s is not None and begun.clock_s is not None:
        passed_s = first.clock_s - begun.clock_s - (first.step - 1) * pace.step_s
        first_step_s = passed_s if passed_s > 0 else None
    found = Startup(begun.request_s, search_s, first_step_s)
    return None if found == Startup() else found


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


def _timed_by_rates(log: Log, record: RunRecord) -> tuple[Log, str]:
    """Return a log whose steps take as long as their rates say where they tell nothing else, and what that assumes."""
    steps = log.records
    if not steps or any(
        one.step_s is not None or one.clock_s is not None or not one.device_tokens_per_s for one in steps
    ):
        return log, ""
    tokens = (record.logged_tokens_per_step or record.tokens_per_step) / record.num_devices
    timed = tuple(one._replace(step_s=tokens / one.device_tokens_per_s) for one in steps if one.device_tokens_per_s)
    if record.logged_tokens_per_step:
        return replace(log, records=timed), ""
    return replace(log, records=timed), "tokens of a step: the log's rates count all of them, none masked or padding"


def _contradiction(record: StepLine, workload: Workload) -> str:
    if record.tokens not in (None, workload.tokens_per_step):
        return f"{record.tokens:.0f} tokens are not the run's {workload.tokens_per_step}"
    if record.rows not in (None, workload.global_batch):
        return f"{record.rows:.0f} rows are not the run's {workload.global_batch}"
    return ""


def _with_refused(log: Log, told: list[str]) -> Log:
    room = max(MOST_QUOTED - len(log.refused), 0)
    return replace(log, refused=(*log.refused, *told[:room]), num_refused=log.num_refused + len(told))


class _Evidence(NamedTuple):
    """What of a log is evidence of its run's speed."""

    log: Log
    pace: Pace
    lines: tuple[StepLine, ...]
    """At the end of each interval that counts."""


def _evidence(log: Log, workload: Workload, logged_tokens: int | None, num_devices: int, least_s: float) -> _Evidence:
    """Return the log and its pace without intervals that are faster than the devices' peak.

    Args:
        log: of the run alone.
        workload: one step of the run.
        logged_tokens: tokens of a step as the log counts them, where not all.
        num_devices: that it ran on.
        least_s: seconds that a step takes at the devices' peak FLOP/s.
    """
    if log.whole:
        if log.whole[0] < least_s:
            raise ValueError(f"{_too_fast(log.whole[0], least_s)}; the log, or its run record, is not of this run")
        return _Evidence(log, log.pace(), ())
    found = log.intervals()
    _refuse_other_tokens(log, found.seconds, (logged_tokens or workload.tokens_per_step) / num_devices)
    possible = found.seconds >= least_s
    lines = tuple(line for line, fine in zip(found.ends, possible, strict=True) if fine)
    told = [
        f"{_too_fast(seconds, least_s)}: {shown(end.line, QUOTED_LENGTH)}"
        for seconds, end, fine in zip(found.seconds, found.ends, possible, strict=True)
        if not fine
    ]
    if not told:
        return _Evidence(log, log.pace(), lines)
    if possible.sum() < FEWEST_INTERVALS:
        raise ValueError(f"{told[0]}; the log, or its run record, is not of this run")
    return _Evidence(_with_refused(log, told), pace_of(found.seconds[possible], found.number[possible]), lines)


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
