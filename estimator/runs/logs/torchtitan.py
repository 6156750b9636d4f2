"""Console logs of torchtitan.

Read in its source and logs: `MetricsProcessor.log` of torchtitan/components/metrics.py (pytorch/torchtitan, train.py
before 2025) prints, at step 1 and then every `log_freq` steps, on rank 0 or on every rank that is asked for,

    [rank0]:[titan] 2025-12-17 01:18:42,407 - root - INFO - step:  3  loss: 12.3513  grad_norm:  7.9040  memory:
    116.16GiB(83.14%)  tps: 6,585  tflops: 332.35  mfu: 33.60%

without `[titan]` before 2025, without `grad_norm` or `tflops` in several versions, and with `wps` for `tps` in 2024.
`memory` is the most that this rank reserved since the last line (2**30 bytes); `tps` are tokens per second and device,
all kinds of parallelism taken together, since the last line. The loss is read before the line is written, so the
devices have finished the step; everything between two lines counts, checkpoints and garbage collection too.
"""

import re
from datetime import UTC, datetime

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine
from hardware.units import GIB

_STEP = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - \S+ - INFO - step:\s*(?P<step>\d{1,12})\s+"
    r"loss:\s*(?P<loss>-?\d{1,12}\.\d{1,8}|nan|inf)\s(?P<rest>.*)",
    re.ASCII,
)
_MEMORY = re.compile(r"\bmemory:\s*(\d{1,6}\.\d\d)GiB\(", re.ASCII)
_RATE = re.compile(r"\b(?:tps|wps): (\d{1,3}(?:,\d{3}){0,4})(?=\s|$)", re.ASCII)


class TorchtitanReader(Reader):
    """Reads the lines of torchtitan's `MetricsProcessor.log`."""

    form = "torchtitan"
    coverage = Coverage("time between lines over the steps between them")
    clock_s = 1e-3

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "step:" in line and "loss:" in line:
            self._take_step(line)

    def _take_step(self, line: str) -> None:
        if "validate step:" in line or "evaluation:" in line:
            return
        found = _STEP.search(line)
        if found is None:
            if "tps:" in line or "wps:" in line:
                self.refused.add("not whole", line)
            return
        memory, rate = _MEMORY.search(found["rest"]), _RATE.search(found["rest"])
        if not rate or _STEP.search(found["rest"]):
            self.refused.add("two records in one line" if rate else "not whole", line)
            return
        try:
            when = datetime.strptime(found["time"], "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC)
            self.records.add(
                StepLine(
                    step=int(found["step"]),
                    line=line,
                    clock_s=when.timestamp(),  # only differences are used
                    loss=float(found["loss"]),
                    device_tokens_per_s=float(rate[1].replace(",", "")) or None,
                )
            )
            if memory:
                self.records.hold(float(memory[1]) * GIB, None)
        except ValueError:
            self.refused.add("a date or a number that no log has", line)
