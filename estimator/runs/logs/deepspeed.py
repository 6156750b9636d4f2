"""Console logs of DeepSpeed's engines.

Read in the source: `ThroughputTimer.stop` of deepspeed/utils/timer.py (deepspeedai/DeepSpeed, 2023 to 2026) logs, every
`steps_per_print` optimizer steps and once the device has finished,

    [2023-11-07 01:55:23,714] [INFO] [timer.py:260:stop] epoch=0/micro_step=40/global_step=10,
    RunningAvgSamplesPerSec=25.02, CurrSamplesPerSec=25.70, MemAllocated=4.32GB, MaxMemAllocated=38.49GB

and `PipelineEngine.train_batch` of deepspeed/runtime/pipe/engine.py prints the mean of the steps since the line before,

    steps: 200 loss: 5.5508 iter time (s): 0.936 samples/sec: 136.706

The rates of the first leave out what lies between two steps, so its steps are timed by when its lines were written;
memory is this rank's, in 2**30 bytes. Versions before 2022 write `0/10, SamplesPerSec=...`, of which it is not told
whether steps or micro-batches are counted: they are not read.
"""

import re
from datetime import UTC, datetime

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine
from hardware.units import GIB

_TIMER = re.compile(
    r"\[(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})\] \[INFO\] \[timer\.py:\d{1,5}:stop\] "
    r"epoch=\d{1,9}/micro_step=\d{1,12}/global_step=(?P<step>\d{1,12}), RunningAvgSamplesPerSec=[\w.+-]{1,40}, "
    r"CurrSamplesPerSec=[\w.+-]{1,40}, MemAllocated=[\d.]{1,12}GB, MaxMemAllocated=(?P<peak>\d{1,6}\.\d{1,2})GB",
    re.ASCII,
)
_PIPELINE = re.compile(
    r"(?<![A-Za-z_])steps: (?P<step>\d{1,12}) loss: (?P<loss>-?\d{1,9}\.\d{1,9}|nan|inf) .{0,200}?"
    r"iter time \(s\): (?P<step_s>\d{1,7}\.\d{3}) samples/sec: \d{1,9}\.\d{3}",
    re.ASCII,
)


class DeepSpeedReader(Reader):
    """Reads the lines of DeepSpeed's throughput timer, or those of its pipeline engine."""

    form = "deepspeed"
    coverage = Coverage("time between lines over the steps between them, or the mean that a pipeline tells")
    clock_s = 1e-3

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "SamplesPerSec=" in line:
            self._take(_TIMER, line)
        elif "iter time (s): " in line and "steps: " in line:
            self._take(_PIPELINE, line)

    def _take(self, pattern: re.Pattern[str], line: str) -> None:
        found = pattern.search(line)
        if found is None:
            self.refused.add("not whole, or of a form that does not tell its steps", line)
            return
        if pattern.search(line, found.end()):
            self.refused.add("two records in one line", line)
            return
        told = found.groupdict()
        with self.refusing(line):
            step = StepLine(
                step=int(found["step"]),
                line=line,
                clock_s=_seconds(told["time"]) if "time" in told else None,
                step_s=float(told["step_s"]) if "step_s" in told else None,
                loss=float(told["loss"]) if "loss" in told else None,
            )
            self.records.add(step)
            self.records.hold(None, float(told.get("peak", 0.0)) * GIB)


def _seconds(text: str) -> float:
    try:
        when = datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC)
    except ValueError as error:
        raise ValueError("a date that no log has") from error
    return when.timestamp()  # only differences are used
