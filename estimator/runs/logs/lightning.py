"""CSV logs of Lightning, `metrics.csv`, that time steps.

Read in the source of Lightning-AI/pytorch-lightning, 2024 to 2026: `CSVLogger` writes a header, and a row for each
call, most of whose cells are blank. Steps are timed where a callback adds that: `ThroughputMonitor` of src/lightning/
pytorch/callbacks/throughput_monitor.py `train/time`, seconds since training began, the device synchronized, without
validation; or NeMo's `TimingCallback` `train_step_timing in s`. `DeviceStatsMonitor` of device_stats_monitor.py beside
it adds `.../allocated_bytes.all.peak` and `.../reserved_bytes.all.peak` of `torch.cuda.memory_stats`. `step` counts
optimizer steps from 0. litgpt's `metrics.csv` counts micro-batches there, and is not read.
"""

import csv
import re

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine

CLOCKS = ("train/time", "train|time")
SECONDS = "train_step_timing in s"
TIMES = (*CLOCKS, SECONDS)
LOSSES = ("train_loss", "train/loss", "loss", "reduced_train_loss", "train_loss_step")
RESERVED, ALLOCATED = "/reserved_bytes.all.peak", "/allocated_bytes.all.peak"
"""Ends of the columns of memory."""

_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,20})?(?:[eE][-+]?\d{1,3})?|nan|inf", re.ASCII)


class LightningReader(Reader):
    """Reads the rows of a `metrics.csv` below its header."""

    form = "lightning"
    coverage = Coverage("seconds since training began, or of each step, as a callback logs them", pauses=False)
    clock_s = 1e-4
    is_elapsed = True

    def __init__(self) -> None:
        """Start before the header."""
        super().__init__()
        self._header: list[str] = []

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "step" in line and any(name in line for name in TIMES) and "step" in (cells := _cells(line)):
            self._header = cells if len({*cells}) == len(cells) and {*cells} & {*TIMES} else []
        elif self._header and "," in line:
            self._take_row(line)

    def _take_row(self, line: str) -> None:
        cells = _cells(line)
        if len(cells) != len(self._header):
            self.refused.add("has not one cell for each column", line)
            return
        row = {name: cell.strip() for name, cell in zip(self._header, cells, strict=True)}
        told = {name: float(cell) for name, cell in row.items() if _NUMBER.fullmatch(cell)}
        for name, value in told.items():
            is_one = name.startswith("DeviceStatsMonitor.") and 0 < value < 1e15
            self.records.hold(value if is_one and name.endswith(RESERVED) else None, None)
            self.records.hold(None, value if is_one and name.endswith(ALLOCATED) else None)
        clock = next((name for name in CLOCKS if row.get(name)), "")
        if not clock and not row.get(SECONDS):
            return
        wrong = next((name for name in ("step", clock or SECONDS) if name not in told), "")
        if wrong or not told["step"].is_integer():
            self.refused.add(f"{wrong or 'step'} is no number of its kind", line)
            return
        with self.refusing(line):
            self.records.add(
                StepLine(
                    step=int(told["step"]) + 1,
                    line=line,
                    clock_s=told[clock] if clock else None,
                    step_s=None if clock else told[SECONDS],
                    loss=next((told[name] for name in LOSSES if name in told), None),
                )
            )


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []
