"""Logs of LLaMA-Factory, `trainer_log.jsonl`.

Read in the source and in logs of it: `LogCallback.on_log` of src/llamafactory/train/callbacks.py (hiyouga/
LLaMA-Factory, 2024 to 2026) appends, every `logging_steps`,

    {"current_steps": 10, "total_steps": 93, "loss": 4.169, "lr": 2.25e-06, "epoch": 0.329, "percentage": 10.75,
    "elapsed_time": "0:04:02", "remaining_time": "0:33:29", "throughput": 13174.21, "total_tokens": 3189568}

whose `elapsed_time` is since training began, in whole seconds; an evaluation writes a line of its own after that of its
step, with `eval_loss`, and what passed between the two is no training. Lines without a loss are of predictions after
training, or of its end. With RECORD_VRAM, `vram_reserved` and `vram_allocated` are this rank's peaks, in 2**30 bytes.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine
from hardware.units import GIB

_ELAPSED = re.compile(r"(?:(\d{1,4}) days?, )?(\d{1,5}):(\d\d):(\d\d)", re.ASCII)


class LlamaFactoryReader(Reader):
    """Reads the lines of a `trainer_log.jsonl`."""

    form = "llama-factory"
    coverage = Coverage("time between lines over the steps between them, without evaluations", synchronized=False)
    clock_s = 1.0
    is_elapsed = True

    def __init__(self) -> None:
        """Start before the first line."""
        super().__init__()
        self._last: tuple[int, float] = (0, 0.0)
        self._evaluating_s = 0.0

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if '"current_steps"' not in line or '"elapsed_time"' not in line:
            return
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            self.refused.add("not whole, or no JSON", line)
            return
        step, elapsed = (
            (entry.get("current_steps"), _seconds(entry.get("elapsed_time"))) if _is_one(entry) else (0, None)
        )
        if not isinstance(step, int) or isinstance(step, bool) or elapsed is None:
            self.refused.add("no step, or no time", line)
        elif "loss" in entry:
            self._take_step(step, elapsed, entry, line)
        elif "eval_loss" in entry and step == self._last[0]:
            self._evaluating_s += max(elapsed - self._last[1], 0.0)
            self._last = (step, elapsed)

    def _take_step(self, step: int, elapsed: float, entry: Mapping[str, Any], line: str) -> None:
        if elapsed < self._last[1]:  # begun again
            self._evaluating_s = 0.0
        self._last = (step, elapsed)
        with self.refusing(line):
            self.records.add(
                StepLine(step=step, line=line, clock_s=elapsed - self._evaluating_s, loss=_number(entry["loss"]))
            )
            reserved, allocated = (_number(entry.get(f"vram_{kind}")) or 0.0 for kind in ("reserved", "allocated"))
            self.records.hold(max(reserved, 0.0) * GIB, max(allocated, 0.0) * GIB)


def _is_one(entry: object) -> bool:
    return isinstance(entry, dict)


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    return float(value) if is_number and isinstance(value, int | float) else None


def _seconds(value: object) -> float | None:
    """Return the seconds that Python prints of a `timedelta`.

    >>> _seconds("0:04:02"), _seconds("1 day, 2:00:00"), _seconds("4:02")
    (242.0, 93600.0, None)
    """
    found = _ELAPSED.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
