"""Console logs of litgpt.

Read in the source: `fit` of litgpt/finetune/full.py and lora.py, and of litgpt/pretrain.py (Lightning-AI/litgpt, 2024
to 2026), print every `log_interval` micro-batches, once the loss was read,

    Epoch 1 | iter 2 step 1 | loss train: 1.660, val: n/a | iter time: 548.72 ms (step)

where an iteration is a micro-batch, and `(step)` marks one that ends with an update. A step takes as long as its
iterations together, so only those are timed of which the log has every iteration: pretraining logs only the last of
each step, and tells a step's time where it has one micro-batch. Evaluations and checkpoints lie between iterations. At
the end stands the most that tensors held on this rank, in 1e9 bytes: `| - Memory Used : 21.30 GB`, before 2025 `Memory
used: 21.30 GB`.
"""

import re

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine

_ITERATION = re.compile(
    r"Epoch \d{1,9} \| iter (?P<iter>\d{1,12}) step (?P<step>\d{1,12}) \| "
    r"loss train: (?P<loss>-?\d{1,9}\.\d{3}|nan|inf), ?val: \S{1,20} \| "
    r"iter time: (?P<ms>\d{1,12}\.\d\d) ms(?P<end> \(step\))?(?P<rest>.*)$",
    re.ASCII,
)
_MEMORY = re.compile(r"\bMemory [Uu]sed\s{0,40}: {1,4}(\d{1,6}\.\d\d) GB\b", re.ASCII)


class LitgptReader(Reader):
    """Reads the iterations of litgpt, and adds up those of each step."""

    form = "litgpt"
    coverage = Coverage("seconds of a step's micro-batches together, without what lies between", pauses=False)
    clock_s = 1e-5

    def __init__(self) -> None:
        """Start before the first line."""
        super().__init__()
        self._last = 0
        self._sum_s = 0.0
        self._has_all = True

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "iter time: " in line and "| iter " in line:
            self._take_iteration(line)
        elif "Memory" in line and (memory := _MEMORY.search(line)):
            self.records.hold(None, float(memory[1]) * 1e9)

    def _take_iteration(self, line: str) -> None:
        found = _ITERATION.search(line)
        if found is None or "iter time" in found["rest"]:
            self.refused.add("two records in one line" if found else "not whole, or not in milliseconds", line)
            self._has_all = False
            return
        number = int(found["iter"])
        if number == self._last:  # another rank's, or told twice
            return
        if number != self._last + 1:
            self._has_all, self._sum_s = number == 1, 0.0
        self._last = number
        self._sum_s += float(found["ms"]) / 1e3
        if found["end"]:
            self._end_step(int(found["step"]), float(found["loss"]), line)

    def _end_step(self, step: int, loss: float, line: str) -> None:
        step_s, has_all = self._sum_s, self._has_all
        self._sum_s, self._has_all = 0.0, True
        if not has_all:
            self.refused.add("the log has not every iteration of the step", line)
            return
        with self.refusing(line):
            self.records.add(StepLine(step=step, line=line, step_s=step_s, loss=loss))
