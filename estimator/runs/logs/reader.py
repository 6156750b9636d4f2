"""What a reader of one format is, and what the times of a format include."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple, Self

from estimator.runs.logs.steps import Refused, StepLine, StepLines


class Coverage(NamedTuple):
    """What the seconds per step of a format include."""

    about: str
    data_loading: bool = True
    synchronized: bool = True
    """The devices have finished the step when the clock is read."""
    pauses: bool = True
    """Evaluation, checkpoints and the like between steps count too."""

    def __str__(self) -> str:
        """Return what the times include, in words.

        >>> print(Coverage("time between lines", pauses=False))
        time between lines; with data loading, synchronized, without pauses
        """
        loading = "with data loading" if self.data_loading else "without data loading"
        synchronized = "synchronized" if self.synchronized else "not synchronized"
        return f"{self.about}; {loading}, {synchronized}, {'with' if self.pauses else 'without'} pauses"


LONGEST_BEGINNING_S = 1e6
"""No run waits longer for its first step (11 days)."""


class Beginning(NamedTuple):
    """What a log tells of the time before the first step; None where it does not."""

    request_s: float | None = None
    """Seconds from asking for the accelerators until they were ready."""
    search_s: float | None = None
    """Seconds of choosing a plan, once they were."""
    clock_s: float | None = None
    """When the first step began [seconds on the log's clock]."""

    @classmethod
    def between(cls, request: float | None, ready: float | None, train: float | None) -> Self:
        """Return what the times of the request, of its answer and of the choice tell, as far as there are any."""
        return cls(_span(request, ready), _span(ready, train), train)


def _span(start: float | None, end: float | None) -> float | None:
    """Return the seconds between two times, None where one is not known or they are in no order."""
    span = -1.0 if start is None or end is None else end - start
    return span if 0 <= span <= LONGEST_BEGINNING_S else None


class Reader:
    """Takes the lines of a log one by one, and gathers from those of its own format."""

    form: ClassVar[str]
    coverage: ClassVar[Coverage]
    clock_s: ClassVar[float]
    """Resolution of the clock that its lines show."""
    is_elapsed: ClassVar[bool] = False
    """The clock starts with the run; else it is that of the day."""
    reads_loss_at_lines: ClassVar[bool] = False
    """The host waits for the devices, and reads the loss, at its lines alone."""

    def __init__(self) -> None:
        """Start before the first line."""
        self.gathered = StepLines()
        self.refused = Refused()
        """Lines of its format that are no evidence."""

    @property
    def records(self) -> StepLines:
        """What was gathered."""
        return self.gathered

    @property
    def beginning(self) -> Beginning:
        """What its lines tell of the time before the first step."""
        return Beginning()

    @property
    def resolution_s(self) -> float:
        """Resolution of the clock by which steps are timed."""
        return self.clock_s

    @property
    def count(self) -> int:
        """Lines of this format so far."""
        return self.records.count

    @contextmanager
    def refusing(self, line: str) -> Iterator[None]:
        """Count a line as no evidence where what is taken of it inside is no run's."""
        try:
            yield
        except ValueError as error:
            self.refused.add(str(error), line)

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        raise NotImplementedError

    def steps(self) -> list[StepLine]:
        """Return what was gathered, in order, without what the log's clock contradicts.

        Raises:
            ValueError: what they were timed by is not known.
        """
        return self.records.forward(self.refused, is_elapsed=self.is_elapsed)

    def whole(self) -> tuple[float, int] | None:
        """Return seconds per step and steps of the whole run, where the log ends with them."""
        return None
