"""Step logs of the MoAI platform, the seed's form: `[Step 4/144] | Loss: 0.8359 | Duration: 7.54 | Throughput: ...`.

Read in the five logs of `reports/measured/moai`. The time of a step is that between lines, each written once the loss
was read back. The line's own `Duration` covers only the launch of the work, since its clock stops before; its
`Throughput` is tokens over that, and may be more than the devices can do. Loops that write a line every second step
read the loss as often: the host launches a step while the devices run the one before. Before the first step the
platform says when it asked for the accelerators, when they were ready, and when its plan was chosen.
"""

import re
from datetime import UTC, datetime
from typing import ClassVar

from estimator.runs.logs.reader import Beginning, Coverage, Reader
from estimator.runs.logs.steps import StepLine

_STEP = re.compile(
    r"^(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) \| INFO\b.*?\[Step (?P<step>\d+)/\d+\]"
    r"(?: \||) Loss: (?P<loss>[-+.\deE]+|nan|inf)"
    r"(?: \| Duration: (?P<launch>[.\d]+) \| Throughput: [.\d]+ tokens/sec)?(?P<rest>.*)$",
    re.ASCII,
)
_EVENT = re.compile(r"^\[(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+)\] \[info\] (?P<text>.*)$", re.ASCII)
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"

_EVENTS = {"request": "Requesting resources", "ready": "Accelerator is ready", "train": "train: true"}
"""Words of the lines that tell when it asked for accelerators, had them, and began to train."""

SHORTEST_LAUNCH_S, LONGEST_LAUNCH_S = 1e-3, 1e6
"""No log times a launch more finely, and none takes longer (11 days)."""


class MoaiReader(Reader):
    """Reads the step lines of the MoAI tutorials, and the events before them."""

    form = "moai"
    coverage = Coverage("time between lines over the steps between them")
    clock_s = 1e-3
    reads_loss_at_lines: ClassVar[bool] = True

    def __init__(self) -> None:
        """Start before the first line."""
        super().__init__()
        self._events: dict[str, float] = {}

    @property
    def beginning(self) -> Beginning:
        """What the events tell of the time before the first step."""
        at = self._events.get
        return Beginning.between(at("request"), at("ready"), at("train"))

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "[Step " in line:
            self._take_step(line)
        elif found := _EVENT.match(line):
            self._take_event(found["time"], found["text"], line)

    def _take_event(self, time: str, text: str, line: str) -> None:
        for name, words in _EVENTS.items():
            if words in text:
                try:
                    self._events[name] = _seconds(time)
                except ValueError:
                    self.refused.add("a date or a number that no log has", line)

    def _take_step(self, line: str) -> None:
        found = _STEP.match(line)
        if found is None:
            if " | INFO" in line:
                self.refused.add("not whole", line)
            return
        if found["rest"].strip():
            is_whole = found["launch"] is not None
            self.refused.add("a second record in its line" if is_whole else "part of a line", line)
            if not is_whole:
                return
        try:
            launch = float(found["launch"]) if found["launch"] else None
            if launch is not None and not SHORTEST_LAUNCH_S <= launch <= LONGEST_LAUNCH_S:
                self.refused.add(f"a launch of {launch:g} s is none; the line counts without it", line)
                launch = None
            self.records.add(
                StepLine(
                    step=int(found["step"][:20]),
                    line=line,
                    clock_s=_seconds(found["time"]),
                    loss=float(found["loss"]),
                    launch_s=launch,
                )
            )
        except ValueError:
            self.refused.add("a date or a number that no log has", line)


def _seconds(text: str) -> float:
    return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC).timestamp()  # only differences are used
