"""What a reader of one format is, and what the times of a format include."""

from typing import ClassVar, NamedTuple

from estimator.runs.logs.steps import StepLines, Refused


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


class Reader:
    """Takes the lines of a log one by one, and gathers from those of its own format."""

    form: ClassVar[str]
    coverage: ClassVar[Coverage]
    clock_s: ClassVar[float]
    """Resolution of the clock that its lines show."""
    is_elapsed: ClassVar[bool] = False
    """The clock starts with the run; else it is that of the day."""

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
    def resolution_s(self) -> float:
        """Resolution of the clock by which steps are timed."""
        return self.clock_s

    @property
    def count(self) -> int:
        """Lines of this format so far."""
        return self.records.count

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        raise NotImplementedError

    def whole(self) -> tuple[float, int] | None:
        """Return seconds per step and steps of the whole run, where the log ends with them."""
        return None
