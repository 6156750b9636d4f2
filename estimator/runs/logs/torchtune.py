"""Text logs of torchtune's metric loggers, on disk or on the console.

Read in the source: `DiskLogger.log_dict` and `StdoutLogger.log_dict` of torchtune/training/metric_logging.py, and what
recipes/full_finetune_distributed.py gives them (pytorch/torchtune, 2024 to 2026), every `log_every_n_steps`:

    Step 5 | loss:0.3511 lr:1e-06 tokens_per_second_per_gpu:9077.155 peak_memory_active:85.53 peak_memory_alloc:85.53
    peak_memory_reserved:104.05

No line tells a time: the rate is that of the step just done, its tokens over all devices and the seconds since the one
before was logged. What it counts are tokens that are trained on, labels that are not masked, all kinds of parallelism
taken together. Memory is this rank's peak since the last line, in 2**30 bytes (`_BYTES_IN_GIB` of training/memory.py).
"""

import re

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine
from hardware.units import GIB

_STEP = re.compile(r"^Step (?P<step>\d{1,12}) \| (?P<rest>.*)$", re.ASCII)
_NUMBER = r"\d{1,12}(?:\.\d{1,20})?(?:e[-+]?\d{1,3})?"
_RATE = re.compile(rf"(?:^| )tokens_per_second_per_gpu:({_NUMBER})(?= |$)", re.ASCII)
_LOSS = re.compile(rf"(?:^| )loss:(-?{_NUMBER}|nan|inf)(?= |$)", re.ASCII)
_PEAK = re.compile(rf"(?:^| )peak_memory_(?P<kind>alloc|reserved):(?P<gib>{_NUMBER})(?= |$)", re.ASCII)


class TorchtuneReader(Reader):
    """Reads the lines of torchtune's metric loggers."""

    form = "torchtune"
    coverage = Coverage("a step's tokens over its tokens per second and device, those not masked", pauses=False)
    clock_s = 1e-4

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "tokens_per_second_per_gpu:" not in line:
            return
        found = _STEP.match(line)
        if found is None or "| " in found["rest"]:
            self.refused.add("two records in one line" if found else "not whole", line)
            return
        rate, loss = _RATE.search(found["rest"]), _LOSS.search(found["rest"])
        if rate is None:
            self.refused.add("not whole", line)
            return
        with self.refusing(line):
            self.records.add(
                StepLine(
                    step=int(found["step"]),
                    line=line,
                    loss=float(loss[1]) if loss else None,
                    device_tokens_per_s=float(rate[1]),
                )
            )
            peaks = {peak["kind"]: float(peak["gib"]) * GIB for peak in _PEAK.finditer(found["rest"])}
            self.records.hold(peaks.get("reserved"), peaks.get("alloc"))
