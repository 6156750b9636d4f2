"""What a step takes: seconds by phase, peak memory of every rank, and the step log that holds them.

The log follows the contract `steps/1` that `calibrate` reads; beside it go lines as the seed run prints them.
"""

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.step_log import kept, repairs, rewrite, step_of_line, step_of_record

SCHEMA = "steps/1"


class Stopwatch:
    """Seconds of the phases of a step, each with its own work on the device, which nothing here waits for.

    A device's phases lie between events that it passes in turn; they are read at the end of a step, which has waited
    for the loss.
    """

    def __init__(self, device: torch.device, entered: Callable[[str], None] = lambda _: None) -> None:
        """Start the first step.

        Args:
            device: of this rank.
            entered: is told each phase's name as it begins.
        """
        self.device, self._entered = device, entered
        self.seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self.started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what runs inside to a phase."""
        self._entered(name)
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            begun = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - begun)

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def end_step(self) -> tuple[float, dict[str, float]]:
        """Return the seconds since the last step ended, and those of each phase; the next step starts."""
        for name, begin, end in self._events:
            end.synchronize()
            self._add(name, begin.elapsed_time(end) / 1e3)
        self._events = []
        now = time.perf_counter()
        total, phases = now - self.started, self.seconds
        self.started, self.seconds = now, {}
        return total, phases


@dataclass(frozen=True)
class Peak:
    """Most bytes that a rank held."""

    allocated_bytes: int
    reserved_bytes: int


def peak_memory(device: torch.device) -> Peak:
    """Return the peak since the process began; on a CPU both are the process's resident memory.

    The peak is not reset between steps: steps are alike, and the largest decides whether a plan fits.
    """
    if device.type == "cuda":
        return Peak(torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Peak(resident, resident)


@dataclass(frozen=True)
class Step:
    """A step as the log has it; seconds and bytes as all ranks together saw them."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    useful_tokens: int
    step_s: float
    """From the end of the step before: everything between is in it. Of rank 0, as are the phases."""
    data_s: float
    """Waiting for the batch, and moving it to the device."""
    compute_s: float
    """Forward and backward passes, and the reduction of gradients."""
    optimizer_s: float
    """Norm, clipping, update."""
    log_s: float
    """Collecting what is logged, evaluation, checkpoints."""
    peak_allocated_bytes: int
    """Of the fullest rank."""
    peak_reserved_bytes: int
    peak_allocated_bytes_by_rank: tuple[int, ...]
    peak_reserved_bytes_by_rank: tuple[int, ...]

    @property
    def tokens_per_s(self) -> float:
        """Sustained: tokens over the whole step, padding included."""
        return self.tokens / self.step_s


@dataclass(frozen=True)
class Gathered:
    """What the ranks told each other after a step."""

    loss: float
    stop: bool
    allocated_bytes: tuple[int, ...]
    """Peak of each rank."""
    reserved_bytes: tuple[int, ...]


def gather(loss_part: torch.Tensor, *, stop: bool, peak: Peak) -> Gathered:
    """Sum the parts of the loss, and collect every rank's peak and whether it was asked to stop; all ranks call it.

    Tensor-parallel ranks hold the same part, of which the first one's counts.
    """
    own = torch.tensor([0.0, float(stop), peak.allocated_bytes, peak.reserved_bytes], dtype=torch.float64)
    own = own.to(loss_part.device)
    own[0] = loss_part
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    losses, stops, allocated, reserved = torch.stack(every).T.tolist()
    return Gathered(sum(losses), any(stops), tuple(map(int, allocated)), tuple(map(int, reserved)))


class StepLog:
    """`steps.jsonl`, and `train.log` beside it; a continued run appends, after dropping what it does again."""

    def __init__(self, folder: Path, run: dict[str, Any], num_steps: int, done: int) -> None:
        """Open the logs.

        Args:
            folder: of the run.
            run: the first record, as the contract has it.
            num_steps: of the whole run.
            done: steps done before; later ones in the logs are dropped, since they will be done again.
        """
        self.num_steps = num_steps
        steps = kept(folder / "steps.jsonl", done, step_of_record)
        lines = kept(folder / "train.log", done, step_of_line)
        self.repairs = [
            text for text in (repairs("steps.jsonl", steps, done), repairs("train.log", lines, done)) if text
        ]
        """What was wrong with an earlier part's logs, a line for each."""
        header = json.dumps({"record": "run", "schema": SCHEMA, **run, "started": _now()})
        begins = bool(steps.lines) and json.loads(steps.lines[0])["record"] == "run"
        rewrite(folder / "steps.jsonl", steps.lines if begins else [header, *steps.lines])
        rewrite(folder / "train.log", lines.lines)
        self._steps, self._lines = (
            (folder / name).open("a", encoding="utf-8") for name in ("steps.jsonl", "train.log")
        )

    def write(self, step: Step) -> str:
        """Append a step, and return its line."""
        line = (
            f"[Step {step.step}/{self.num_steps}] | Loss: {step.loss:.4f} | Duration: {step.step_s:.2f} | "
            f"Throughput: {step.tokens_per_s:.2f} tokens/sec"
        )
        self.record("step", asdict(step))
        print(line, file=self._lines, flush=True)
        return line

    def record(self, kind: str, values: dict[str, Any]) -> None:
        """Append a record of another kind, such as an evaluation."""
        print(json.dumps({"record": kind, **values, "time": _now()}), file=self._steps, flush=True)

    def sync(self) -> None:
        """Wait until what is written is on the disk, so that no checkpoint outlives the log of its steps."""
        for file in (self._steps, self._lines):
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the logs."""
        self._steps.close()
        self._lines.close()


def read_records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the records of a kind, such as "step", of a run's log."""
    lines = (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["record"] == kind]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
