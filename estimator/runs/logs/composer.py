"""Console logs of Composer and what is built on it: llm-foundry.

Read in the source and in logs of it: `ConsoleLogger.log_to_console` of composer/loggers/console_logger.py
(mosaicml/composer, 2023 to 2026) prints a block every `console_log_interval` batches,

    [batch=20/20]:
         Train time/batch: 19
         Train time/sample: 38
         Train memory/peak_reserved_mem: 4.0643
         Train loss/train/total: 0.0051
         Train throughput/batches_per_sec: 0.1085
         Train time/train: 0.0536

`time/batch` and `time/sample` are as the batch began, so a block is of one more. `time/train` (callbacks/
speed_monitor.py) is the time of all batches so far, evaluations left out, in hours unless `time_unit` says otherwise:
the unit is that of seconds, minutes, hours and days which comes nearest to `throughput/batches_per_sec`, a mean of the
last batches; both come with the callback `speed_monitor`. Memory (callbacks/memory_monitor.py) is in 1e9 bytes.
"""

import re
from collections import Counter
from math import log

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine

_METRIC = re.compile(r"\bTrain ([a-z_]{1,20}/[a-z_/]{1,60}): (-?\d{1,15}(?:\.\d{1,6})?)(?=\s|$)", re.ASCII)
_READ = frozenset({
    "time/batch", "time/sample", "time/train", "loss/train/total", "throughput/batches_per_sec",
    "memory/peak_reserved_mem", "memory/peak_allocated_mem",
})  # fmt: skip
"""What of a block is read."""

UNITS_S = (1.0, 60.0, 3600.0, 86400.0)
"""That `time/train` may be in."""

PRINTED = 1e-4
"""Last digit of a number in a block."""

NEAR = 4.0
"""Factor within which the unit explains the rate; two units differ by at least 24."""


class ComposerReader(Reader):
    """Reads the blocks of Composer's console logger."""

    form = "composer"
    coverage = Coverage("time of the batches between two blocks, without evaluations")
    clock_s = PRINTED
    is_elapsed = True

    def __init__(self) -> None:
        """Start before the first block."""
        super().__init__()
        self._block: dict[str, float] = {}
        self._first: tuple[int, float] | None = None
        self._units: Counter[float] = Counter()

    @property
    def unit_s(self) -> float:
        """Of `time/train` [seconds]; hours, where no rate tells it."""
        return self._units.most_common(1)[0][0] if self._units else 3600.0

    @property
    def resolution_s(self) -> float:
        """Of `time/train`."""
        return PRINTED * self.unit_s

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "[batch=" in line or "[epoch=" in line or "[token=" in line or "[sample=" in line:
            self._block = {}
        if "Train " not in line:
            return
        for name, value in _METRIC.findall(line):
            if name in _READ:
                self._take_metric(name, float(value), line)

    def _take_metric(self, name: str, value: float, line: str) -> None:
        if name == "memory/peak_reserved_mem":
            self.records.hold(max(value, 0.0) * 1e9, None)
        elif name == "memory/peak_allocated_mem":
            self.records.hold(None, max(value, 0.0) * 1e9)
        elif name in self._block:
            self.refused.add(f"{name} is told twice in a block", line)
        else:
            self._block[name] = value
            if name == "time/train":
                self._end_block(line)

    def _end_block(self, line: str) -> None:
        """Take the step of a block, whose time is told last."""
        told = self._block
        batch, passed = told.get("time/batch"), told["time/train"]
        if batch is None or not batch.is_integer() or batch < 0 or passed < 0:
            self.refused.add("a block without its time/batch", line)
            return
        rows = told.get("time/sample", 0.0) / max(batch, 1.0)
        with self.refusing(line):
            self.records.add(
                StepLine(
                    step=int(batch) + 1,
                    line=line.strip(),
                    clock_s=passed,
                    loss=told.get("loss/train/total"),
                    rows=rows if rows > 0 and rows.is_integer() else None,
                )
            )
            self._weigh_units(int(batch) + 1, passed, told.get("throughput/batches_per_sec", 0.0))

    def _weigh_units(self, step: int, passed: float, rate: float) -> None:
        """Count the unit in which the time since the first block makes the rate."""
        if self._first is None or passed < self._first[1]:
            self._first = (step, passed)
        steps, span = step - self._first[0], passed - self._first[1]
        if steps > 0 and span > 0 and rate > 0:
            off = {unit: abs(log(steps / rate / (span * unit))) for unit in UNITS_S}
            unit = min(off, key=lambda one: off[one])
            if off[unit] <= log(NEAR):
                self._units[unit] += 1

    def steps(self) -> list[StepLine]:
        """Return the steps with the seconds since training began.

        Raises:
            ValueError: nothing tells the unit of their time.
        """
        found = super().steps()
        if found and not self._units:
            raise ValueError(
                "time/train: its unit is not known, since no block has a throughput/batches_per_sec to tell it; give a "
                "log of more batches than the window of speed_monitor"
            )
        return [step._replace(clock_s=(step.clock_s or 0.0) * self.unit_s) for step in found]
