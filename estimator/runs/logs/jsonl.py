"""The step log of the reference trainer, `steps.jsonl` of schema `steps/1`: a run record, then a record per step."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine
from estimator.runs.record import RunRecord, parse_run_record
from hardware.errors import first_error, shown

_KIND = re.compile(r'"record"\s*:\s*"(\w{1,40})"', re.ASCII)

PARTS_TOLERANCE = 1.02
"""Phases of a step take no longer than the step, but for the clock's own reading."""


def _seconds(value: Any) -> Any:
    """Return seconds since the epoch of a time in ISO 8601 or in seconds; where no zone is told, it is UTC."""
    if not isinstance(value, str):
        return value
    try:
        when = datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{shown(value)} is no time in ISO 8601") from error
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _most(value: Any) -> Any:
    """Return the largest of all ranks' values."""
    values = list(value.values()) if isinstance(value, dict) else value
    return max(values) if isinstance(values, list) and values else values


Seconds = Annotated[float, Field(strict=True, ge=0, le=1e6)]
Bytes = Annotated[Annotated[float, Field(strict=True, gt=0, le=1e15)] | None, BeforeValidator(_most)]
Tokens = Annotated[int, Field(strict=True, ge=0, lt=2**50)]


class StepRecord(BaseModel):
    """What a line says of a step; keys that are not fields are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    record: Literal["step"]
    step: Annotated[int, Field(strict=True, ge=0, lt=2**40)]
    step_s: Annotated[float, Field(strict=True, gt=0, le=1e6)]
    """Seconds from the end of the step before to the end of this one, the devices synchronized."""
    data_s: Seconds = 0.0
    compute_s: Seconds = 0.0
    optimizer_s: Seconds = 0.0
    log_s: Seconds = 0.0
    """Collecting what is logged, evaluation, checkpoints."""
    loss: Annotated[float, Field(strict=True)] | None = None
    tokens: Tokens | None = None
    useful_tokens: Tokens | None = None
    peak_allocated_bytes: Bytes = None
    peak_reserved_bytes: Bytes = None
    time: Annotated[Annotated[float, Field(strict=True, ge=0, lt=1e11)] | None, BeforeValidator(_seconds)] = None


class JsonlReader(Reader):
    """Reads `steps.jsonl`."""

    form = "steps.jsonl"
    coverage = Coverage("seconds from the end of a step to the end of the next, as the log says them")
    clock_s = 1e-6

    def __init__(self, where: str) -> None:
        """Start before the first line of a log, which errors call so."""
        super().__init__()
        self.run: RunRecord | None = None
        self._where = where

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not.

        Raises:
            ValueError: a run record breaks a rule, or is of another run than the one before.
        """
        if '"record"' not in line or not line.lstrip().startswith("{"):
            return
        kind = _KIND.search(line)
        if kind is None or kind[1] not in ("run", "step"):
            return
        if not line.rstrip().endswith("}"):
            self.refused.add("not whole", line)
        elif kind[1] == "run":
            self._take_run(line)
        else:
            self._take_step(line)

    def _take_run(self, line: str) -> None:
        run = parse_run_record(line, f"{self._where}: run record")
        if self.run and not self.run.is_same_run(run):
            raise ValueError(f"{self._where}: has records of two runs that differ; give a file per run")
        self.run = self.run or run

    def _take_step(self, line: str) -> None:
        try:
            step = StepRecord.model_validate_json(line)
        except ValidationError as error:
            is_json = error.errors()[0]["type"] != "json_invalid"
            self.refused.add(first_error(error) if is_json else "no JSON", line)
            return
        except RecursionError:
            self.refused.add("nested too deep", line)
            return
        parts = step.data_s + step.compute_s + step.optimizer_s + step.log_s
        if parts > PARTS_TOLERANCE * step.step_s:
            self.refused.add(f"phases of {parts:g} s do not fit into {step.step_s:g} s", line)
            return
        if step.useful_tokens is not None and step.tokens is not None and step.useful_tokens > step.tokens:
            self.refused.add(f"{step.useful_tokens} useful tokens are more than {step.tokens}", line)
            return
        with self.refusing(line):
            self.records.add(
                StepLine(
                    step=step.step,
                    line=line,
                    clock_s=step.time,
                    step_s=step.step_s,
                    loss=step.loss,
                    tokens=None if step.tokens is None else float(step.tokens),
                )
            )
            self.records.hold(step.peak_reserved_bytes, step.peak_allocated_bytes)
