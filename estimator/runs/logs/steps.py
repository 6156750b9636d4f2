"""What the step lines of a log say, whatever its format: gathered in bounded memory, whatever order they come in.

A step told several times (a log pasted twice, every rank's line) counts once: as it was told last, and of lines of one
time as the slowest told it, since a step takes as long as its slowest rank. Told at times over half a step apart (a run
that went back to a checkpoint, a wrong number) it is in doubt, and does not count. Of a run of over `MOST_RECORDS`
steps a sample is kept, the same for any order of the lines: those steps whose hash lies below a threshold, which
halves whenever they are too many.
"""

from bisect import bisect_right
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.work.workload import MAX_COUNT
from hardware.errors import shown

MOST_RECORDS = 2**16
MOST_QUOTED = 20
QUOTED_LENGTH = 160

SHORTEST_STEP_S, LONGEST_STEP_S = 1e-5, 1e6
"""No trainer times a step more finely, and none takes longer (11 days)."""

WARM_UP_STEPS = 2
"""First steps of a run that no pace counts: they compile, allocate, tune, and set up what later steps find."""

FEWEST_TICKS = 20
"""Of a clock's resolution, that an interval spans: read to within 5 %."""

_HASHES = 2**32


class StepLine(NamedTuple):
    """What one line says of a step."""

    step: int
    line: str
    """The line."""
    clock_s: float | None = None
    """When the step ended [seconds on the log's clock], where the log says that."""
    step_s: float | None = None
    """Seconds per step since the line before, where the log says those itself."""
    loss: float | None = None
    tokens: float | None = None
    """Tokens of a step."""
    rows: float | None = None
    """Rows of a step."""
    device_tokens_per_s: float | None = None
    """Tokens per second and device since the line before."""
    launch_s: float | None = None
    """Seconds that the host took to launch the step's work, where the line times just that."""


class Refused:
    """Lines that are no evidence, each with the reason: all counted, the first few kept."""

    def __init__(self) -> None:
        """Start with none."""
        self.count = 0
        self.told: list[str] = []

    def add(self, reason: str, line: str = "") -> None:
        """Count a line, and keep it with its reason while there is room."""
        self.count += 1
        if len(self.told) < MOST_QUOTED:
            self.told.append(f"{reason}: {shown(line, QUOTED_LENGTH)}" if line else reason)


def _hash(step: int) -> int:
    """Return a number below 2**32 that looks random and is always the step's."""
    return int.from_bytes(blake2b(step.to_bytes(8, "little"), digest_size=4).digest())


class StepLines:
    """Steps gathered from the lines of one log."""

    def __init__(self) -> None:
        """Start with none."""
        self._kept: dict[int, StepLine] = {}
        self._earliest: dict[int, float] = {}
        self._threshold = _HASHES
        self.count = 0
        """Lines that told a step, repetitions included."""
        self.latest_s = 0.0
        """The latest time on the log's clock."""
        self.reserved_bytes: float | None = None
        """Peak over ranks and steps."""
        self.allocated_bytes: float | None = None

    def hold(self, reserved_bytes: float | None, allocated_bytes: float | None) -> None:
        """Take what a line says of a rank's memory."""
        if reserved_bytes:
            self.reserved_bytes = max(self.reserved_bytes or 0.0, reserved_bytes)
        if allocated_bytes:
            self.allocated_bytes = max(self.allocated_bytes or 0.0, allocated_bytes)

    def add(self, record: StepLine) -> None:
        """Take what a line says of a step.

        Raises:
            ValueError: its numbers are no run's.
        """
        _refuse_impossible(record)
        self.count += 1
        self.latest_s = max(self.latest_s, record.clock_s or 0.0)
        if _hash(record.step) >= self._threshold:
            return
        clock = record.clock_s or 0.0
        self._earliest[record.step] = min(clock, self._earliest.get(record.step, clock))
        known = self._kept.get(record.step)
        if known is None or _order(record) > _order(known):
            self._kept[record.step] = record._replace(line=record.line[:QUOTED_LENGTH])
        while len(self._kept) > MOST_RECORDS:
            self._threshold //= 2
            self._kept = {step: r for step, r in self._kept.items() if _hash(step) < self._threshold}
            self._earliest = {step: self._earliest[step] for step in self._kept}

    @property
    def is_sampled(self) -> bool:
        """Whether steps were left out because they are too many."""
        return self._threshold < _HASHES

    def forward(self, refused: Refused, *, is_elapsed: bool = False) -> list[StepLine]:
        """Return the steps in their order, without those that the log's clock contradicts.

        On a clock of the day as few are refused as let it run forward. On one that starts with the run (`is_elapsed`)
        a fall is a run begun again from a checkpoint; the longest stretch between two falls is kept.
        """
        ordered = [self._kept[step] for step in sorted(self._kept)]
        if any(record.clock_s is None for record in ordered):
            return ordered
        ordered = self._undoubted(ordered, refused)
        clock = [record.clock_s or 0.0 for record in ordered]
        kept = _longest_stretch(clock) if is_elapsed else _longest_forward(clock)
        for i, record in enumerate(ordered):
            if i not in kept:
                refused.add(f"step {record.step}: time runs backward", record.line)
        return [record for i, record in enumerate(ordered) if i in kept]

    def _undoubted(self, ordered: list[StepLine], refused: Refused) -> list[StepLine]:
        """Return the steps that were told at one time."""
        clock = np.array([record.clock_s for record in ordered], dtype=np.float64)
        apart = clock - np.array([self._earliest[record.step] for record in ordered])
        usual = float(np.median(np.diff(clock))) if len(clock) > 1 else 0.0
        doubted = apart > max(usual, 0.0) / 2
        for i in np.flatnonzero(doubted):
            refused.add(f"step {ordered[i].step}: told at times {apart[i]:g} s apart", ordered[i].line)
        return [record for record, in_doubt in zip(ordered, doubted, strict=True) if not in_doubt]


def _order(record: StepLine) -> tuple[float, float, str]:
    return record.clock_s or 0.0, record.step_s or 0.0, record.line


def _refuse_impossible(record: StepLine) -> None:
    if not 0 <= record.step < MAX_COUNT:
        raise ValueError(f"step {shown(record.step)}: no run has so many")
    if record.step_s is not None and not SHORTEST_STEP_S <= record.step_s <= LONGEST_STEP_S:
        raise ValueError(f"step {record.step}: {record.step_s:g} s is no step's time")
    if record.clock_s is not None and not abs(record.clock_s) < 1e12:
        raise ValueError(f"step {record.step}: a time that no log has")
    for name in ("tokens", "rows", "device_tokens_per_s"):
        value = getattr(record, name)
        if value is not None and not 0 < value < 1e16:
            raise ValueError(f"step {record.step}: {name} = {value:g} is no run's")


def _longest_forward(times: list[float]) -> set[int]:
    """Return the indices of a longest subsequence that never falls (patience sorting, Fredman 1975).

    >>> sorted(_longest_forward([1, 9, 2, 3, 3]))
    [0, 2, 3, 4]
    """
    tops: list[float] = []
    ends: list[int] = []
    before = [-1] * len(times)
    for i, time in enumerate(times):
        pile = bisect_right(tops, time)
        before[i] = ends[pile - 1] if pile else -1
        if pile == len(tops):
            tops.append(time)
            ends.append(i)
        else:
            tops[pile], ends[pile] = time, i
    kept = set()
    at = ends[-1] if ends else -1
    while at >= 0:
        kept.add(at)
        at = before[at]
    return kept


def _longest_stretch(times: list[float]) -> set[int]:
    """Return the indices of the longest stretch in which times never fall; of equal ones the last.

    >>> sorted(_longest_stretch([5, 6, 1, 2, 3]))
    [2, 3, 4]
    """
    stretches: list[list[int]] = []
    for i, time in enumerate(times):
        if i == 0 or time < times[i - 1]:
            stretches.append([])
        stretches[-1].append(i)
    longest = max(map(len, stretches), default=0)
    return next((set(stretch) for stretch in reversed(stretches) if len(stretch) == longest), set())


class Timed(NamedTuple):
    """Intervals of a run after its warm-up: seconds per step, and over how many steps each."""

    seconds: Array
    number: Array
    ends: tuple[StepLine, ...]
    """The line at the end of each."""
    num_warm_up: int
    """Steps at the beginning that were left out."""


def usual_gap(records: list[StepLine]) -> int:
    """Return how many steps lie between most lines, the shorter of those that many have: of a sample most are longer.

    >>> usual_gap([StepLine(step, "") for step in (2, 4, 6, 139, 141)])
    2
    """
    if len(records) < 2:
        return 1
    gaps, times = np.unique(np.diff([record.step for record in records]), return_counts=True)
    return int(gaps[2 * times >= times.max()][0])


def timed(records: list[StepLine], resolution_s: float) -> Timed:
    """Return the seconds per step between lines, or as the lines themselves say, without the first steps.

    The first line may cover more than steps, so it is never counted; nor is a line that covers one of the first
    `WARM_UP_STEPS` steps. Where lines say seconds themselves, one says the mean since the line before it, over as
    many steps as lie between most lines, where some are missing. Where they say when they were written, an interval
    spans at least `FEWEST_TICKS` of their clock's resolution.
    """
    if len(records) < 2:
        return Timed(np.zeros(0), np.zeros(0, dtype=np.int64), (), 0)
    usual, start = usual_gap(records), records[0]
    passed = min(start.step, usual) if start.step > 1 else 1
    warm_up, seconds, number, ends = passed, [], [], []
    for record in records[1:]:
        if record.step_s is None and record.clock_s is None:
            continue  # it tells a rate alone
        if record.step_s is not None:
            count, each = min(record.step - start.step, usual), record.step_s
        else:
            span = (record.clock_s or 0.0) - (start.clock_s or 0.0)
            if span < FEWEST_TICKS * resolution_s and passed >= WARM_UP_STEPS:
                continue
            count = record.step - start.step
            each = span / count
        if passed >= WARM_UP_STEPS:
            seconds.append(each)
            number.append(count)
            ends.append(record)
        else:
            warm_up += count
        passed += count
        start = record
    return Timed(np.array(seconds), np.array(number, dtype=np.int64), tuple(ends), warm_up)
