"""Console logs of Megatron-LM and what is built on it: Megatron-Bridge, Megatron-DeepSpeed, Primus, ms-swift.

Read in the source and in logs of them: `training_log` of megatron/training/training.py (NVIDIA/Megatron-LM, 2022 to
2026) prints, every `--log-interval` iterations and since 2024 with a time before it,

    [2024-09-14 19:44:29] iteration       30/     200 | consumed samples:          480 | elapsed time per iteration
    (ms): 464.2 | learning rate: 7.031250E-07 | global batch size:    16 | lm loss: 1.077634E+01 | ...

where the time of an iteration is the mean since the last such line, between barriers; evaluation and checkpoints stop
the timer. Primus (AMD) writes `13100.0/13240.9`: this line's mean, then a longer one's. The memory of each rank follows
the second such line: `[Rank 2] (after 20 iterations) memory (MB) | allocated: ... | max allocated: ... | reserved: ...
| max reserved: ...`, in units of 2**20 bytes. Megatron-Bridge (`training_log` of src/megatron/bridge/training/utils/
train_utils.py, NVIDIA-NeMo/Megatron-Bridge, 2025 and 2026) writes `memory (GB) | mem-allocated-gigabytes: ... |
mem-max-allocated-gigabytes: ... | ... | mem-max-reserved-gigabytes: ... |` there, in units of 1e9 bytes.
"""

import re

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine
from hardware.units import MIB

_NUMBER = r"\d{1,15}(?:\.\d{1,12})?"
_ITERATION = re.compile(
    r"iteration\s+(?P<step>\d{1,12})/\s*\d{1,12} \|.*? elapsed time per iteration \(ms\):\s*"
    rf"(?P<ms>{_NUMBER})(?:/{_NUMBER})? \|(?P<rest>.*)",
    re.ASCII,
)
_BATCH = re.compile(r" global batch size:\s*(\d{1,12}) \|", re.ASCII)
_LOSS = re.compile(r" lm loss:\s*([-+.\deE]{1,20}|nan|inf) \|", re.ASCII)
_SKIPPED = re.compile(r" number of (skipped|nan) iterations:\s*(\d{1,9})", re.ASCII)
_MEMORY = re.compile(
    r"after (?P<step>\d{1,12}) iterations\)? memory \(MB\) \| allocated: .*?\| max allocated: "
    rf"(?P<allocated>{_NUMBER}) \| reserved: .*?\| max reserved: (?P<reserved>{_NUMBER})(?: \||\s|$)",
    re.ASCII,
)
_BRIDGE_MEMORY = re.compile(
    r"after \d{1,12} iterations\) memory \(GB\) \| .*?mem-max-allocated-gigabytes: "
    rf"(?P<allocated>{_NUMBER}) \| .*?mem-max-reserved-gigabytes: (?P<reserved>{_NUMBER})(?: \||\s|$)",
    re.ASCII,
)


class MegatronReader(Reader):
    """Reads the lines of Megatron-LM's `training_log`."""

    form = "megatron"
    coverage = Coverage("mean of the iterations since the line before, between barriers", pauses=False)
    clock_s = 1e-4

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "elapsed time per iteration" in line:
            self._take_iteration(line)
        elif "memory (MB)" in line and (memory := _MEMORY.search(line)):
            self.records.hold(float(memory["reserved"]) * MIB, float(memory["allocated"]) * MIB)
        elif "memory (GB)" in line and (memory := _BRIDGE_MEMORY.search(line)):
            self.records.hold(float(memory["reserved"]) * 1e9, float(memory["allocated"]) * 1e9)

    def _take_iteration(self, line: str) -> None:
        found = _ITERATION.search(line)
        if found is None:
            self.refused.add("not whole, or not in milliseconds", line)
            return
        if skipped := next((s for s in _SKIPPED.finditer(found["rest"]) if int(s[2])), None):
            self.refused.add(f"{skipped[2]} {skipped[1]} iterations, which do not update", line)
            return
        if "elapsed time per iteration" in found["rest"]:
            self.refused.add("two records in one line", line)
            return
        batch, loss = _BATCH.search(found["rest"]), _LOSS.search(found["rest"])
        with self.refusing(line):
            self.records.add(
                StepLine(
                    step=int(found["step"]),
                    line=line,
                    step_s=float(found["ms"]) / 1e3,
                    loss=float(loss[1]) if loss else None,
                    rows=float(batch[1]) if batch else None,
                )
            )
