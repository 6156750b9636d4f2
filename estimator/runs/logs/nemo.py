"""Console logs of NeMo 2: lines of its progress printer, or the progress bar of Lightning under it.

Read in its source and logs: `ProgressPrinter.on_train_batch_end` of nemo/lightning/pytorch/callbacks/
progress_printer.py (NVIDIA/NeMo, 2024 and 2025) prints every `log_interval` steps the means since the line before, with
four digits, and of `global_step` the last, which counts from 0,

    Training epoch 0, iteration 1/249 | lr: 3.922e-06 | global_batch_size: 8 | global_step: 1 | reduced_train_loss:
    1.653 | train_step_timing in s: 2.505 | consumed_samples: 16

and the bar shows the same numbers of its last step, `reduced_train_loss=0.0172, global_step=99.00,
consumed_samples=25600.0, train_step_timing in s=3.130]`. The time is that from the start of a step to its end, as the
host saw it (`TimingCallback`); validation and checkpoints lie between. No line tells memory.
"""

import re

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine

_NUMBER = r"\d{1,12}(?:\.\d{1,9})?(?:e[-+]\d\d)?"
_LINE = re.compile(r"\bTraining epoch \d{1,9}, iteration \d{1,12}/\d{1,12} \| (?P<rest>.*)$", re.ASCII)
_BAR = re.compile(r"\bEpoch \d{1,9}: [^\[]{0,400}\[\d[^\[\],]{0,40}(?P<rest>, [^\]]{1,600}\])", re.ASCII)


def _field(name: str, end: str = r" \||,|$") -> re.Pattern[str]:
    """Return what finds a number by its name, in a line or in a bar."""
    return re.compile(rf"(?:^|[|,] ?){name}(?:: |=)({_NUMBER})(?={end})", re.ASCII)


_SECONDS = _field("train_step_timing in s", r" \||,|\]")
"""Never at the end of a line, which may be cut there."""

_FIRST_SECONDS = _field("train_step_timing in s", "$")
"""Of the first step, whose line ends so; no pace counts it."""

_GLOBAL_STEP = _field("global_step")
_BATCH, _SAMPLES, _LOSS = _field("global_batch_size"), _field("consumed_samples"), _field("reduced_train_loss")


class NemoReader(Reader):
    """Reads the lines and bars of NeMo 2."""

    form = "nemo"
    coverage = Coverage(
        "mean of the steps since the line before, as the host saw them", synchronized=False, pauses=False
    )
    clock_s = 1e-3

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "train_step_timing in s" not in line:
            return
        found = _LINE.search(line) or _BAR.search(line)
        rest = found["rest"] if found else ""
        seconds, step = _SECONDS.search(rest), _GLOBAL_STEP.search(rest)
        if step and float(step[1]) == 0:
            seconds = seconds or _FIRST_SECONDS.search(rest)
        if seconds is None or step is None or not float(step[1]).is_integer():
            self.refused.add("not whole, or without its global_step", line)
            return
        if rest.count("train_step_timing in s") > 1:
            self.refused.add("two records in one line", line)
            return
        count = int(float(step[1])) + 1
        batch, samples, loss = (pattern.search(rest) for pattern in (_BATCH, _SAMPLES, _LOSS))
        rows = float(batch[1]) if batch else float(samples[1]) / count if samples else None
        with self.refusing(line):
            self.records.add(
                StepLine(
                    step=count,
                    line=line,
                    step_s=float(seconds[1]),
                    loss=float(loss[1]) if loss else None,
                    rows=rows if rows and rows.is_integer() else None,
                )
            )
