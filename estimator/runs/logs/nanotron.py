"""Console logs of nanotron.

Read in its source and logs: `DistributedTrainer.train_step_logs` of src/nanotron/trainer.py, through
`LoggerWriter.add_scalars_from_list` of src/nanotron/logging/base.py (huggingface/nanotron, 2024 to 2026), logs every
`iteration_step_info_interval` steps, `elapsed_time_per_iteration_ms` before 2025,

    08/31/2024 14:37:31 [INFO|DP=0|PP=0|TP=0]: iteration: 5 / 500 | consumed_tokens: 1.28M | time_per_iteration_ms:
    1.29K | tokens_per_sec: 203K | tokens_per_sec_per_gpu: 25.4K | global_batch_size: 262K | lm_loss: 8.35 | ...

Numbers have three digits and a power of 1,000 (`human_format`); the time is that of the iteration just done, after a
barrier, data loading included. `cuda_max_memory_reserved` was there until 2024, in bytes; beside it stand, of the first
steps, lines `Memory usage: 64.26MiB. Peak allocated 64.26MiB. Peak reserved: 496.00MiB` (`log_memory`, 2**20 bytes).
What `global_batch_size` counts, rows or tokens, depends on the version: it is not read.
"""

import re

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine
from hardware.units import MIB

_SIZES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_HUMAN = r"(\d{1,3}(?:\.\d{1,6})?|0\.\d{1,9})([KMGBT]?)"
_STEP = re.compile(
    rf"\biteration: (?P<step>\d{{1,12}}) / \d{{1,12}} \| (?P<rest>(?:.*?\| )?(?:elapsed_)?time_per_iteration_ms: "
    rf"{_HUMAN} \| tokens_per_sec: .*)$",
    re.ASCII,
)
_TIME = re.compile(rf"\btime_per_iteration_ms: {_HUMAN} \|", re.ASCII)
_OLD_TIME = re.compile(rf"\belapsed_time_per_iteration_ms: {_HUMAN} \|", re.ASCII)
_RATE = re.compile(rf"\| tokens_per_sec_per_gpu: {_HUMAN}(?= \||$)", re.ASCII)
_LOSS = re.compile(rf"\| lm_loss: {_HUMAN}(?= \||$)", re.ASCII)
_RESERVED = re.compile(rf"\| cuda_max_memory_reserved: {_HUMAN}(?= \||$)", re.ASCII)
_PEAK = re.compile(
    r"Memory usage: \d{1,9}\.\d\dMiB\. Peak allocated (\d{1,9}\.\d\d)MiB\.? Peak reserved: (\d{1,9}\.\d\d)MiB", re.ASCII
)


class NanotronReader(Reader):
    """Reads the lines of nanotron's `train_step_logs`."""

    form = "nanotron"
    coverage = Coverage("the iteration that a line is of, to three digits, after a barrier", pauses=False)
    clock_s = 1e-4

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "time_per_iteration_ms: " in line:
            self._take_step(line)
        elif "Peak reserved: " in line and (peak := _PEAK.search(line)):
            self.records.hold(float(peak[2]) * MIB, float(peak[1]) * MIB)

    def _take_step(self, line: str) -> None:
        found = _STEP.search(line)
        rest = found["rest"] if found else ""
        time = _OLD_TIME.search(rest) or _TIME.search(rest)
        if found is None or time is None:
            self.refused.add("not whole, or not in milliseconds", line)
            return
        if "time_per_iteration_ms" in rest[time.end() :]:
            self.refused.add("two records in one line", line)
            return
        rate, loss, reserved = (pattern.search(rest) for pattern in (_RATE, _LOSS, _RESERVED))
        with self.refusing(line):
            self.records.add(
                StepLine(
                    step=int(found["step"]),
                    line=line,
                    step_s=_value(time) / 1e3,
                    loss=_value(loss) if loss else None,
                    device_tokens_per_s=(_value(rate) or None) if rate else None,
                )
            )
            self.records.hold(_value(reserved) if reserved else None, None)


def _value(found: re.Match[str]) -> float:
    return float(found[1]) * _SIZES[found[2]]
