"""Step logs of the MoAI platform, the seed's form: `[Step 4/144] | Loss: 0.8359 | Duration: 7.54 | Throughput: ...`.

Read in the five logs of `reports/measured/moai`. The time is that between lines, each written once the loss was read
back; the line's own `Duration` covers only the launch of the work, and is not read here (`moai_runs.py` does).
"""

from datetime import UTC, datetime

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine
from estimator.runs.moai_runs import STEP_LINE, TIME_FORMAT


class MoaiReader(Reader):
    """Reads the step lines of the MoAI tutorials."""

    form = "moai"
    coverage = Coverage("time between lines over the steps between them")
    clock_s = 1e-3

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "[Step " not in line:
            return
        found = STEP_LINE.match(line)
        if found is None:
            if " | INFO" in line:
                self.refused.add("not whole", line)
            return
        if found["rest"].strip():
            self.refused.add("two records in one line, or part of one", line)
            return
        try:
            when = datetime.strptime(found["time"], TIME_FORMAT).replace(tzinfo=UTC)
            self.records.add(
                StepLine(
                    step=int(found["step"][:20]),
                    line=line,
                    clock_s=when.timestamp(),  # only differences are used
                    loss=float(found["loss"]),
                )
            )
        except ValueError:
            self.refused.add("a date or a number that no log has", line)
