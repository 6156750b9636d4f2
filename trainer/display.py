"""What a person sees of a run: a line per step, how long it will take, and the picture of its loss."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from estimator.predict.evaluate import PlanEstimate
from hardware.files import told
from trainer.measure import Step, StepLog, read_records

WARM_UP = 2
"""First steps that say nothing of the pace: kernels are compiled, memory is allocated, connections are made."""


_bars: list[Progress] = []
"""On this process's terminal."""


def clear_terminal() -> None:
    """Take away the bar, so that what a failure says stands on a line of its own."""
    for bar in _bars:
        bar.stop()


class Display:
    """Lines to standard output; on a terminal a bar with tokens/s, and the time left as measured and as predicted."""

    def __init__(self, num_steps: int, done: int, forecast: PlanEstimate | None) -> None:
        """Begin after so many steps done."""
        self.num_steps, self.forecast = num_steps, forecast
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._seconds: list[float] = []
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            redirect_stdout=sys.stdout.isatty(),  # above the bar; to a file they go as they are
        )
        self._task = self._bar.add_task("waiting for the first step", total=num_steps, completed=done)
        self._bar.start()
        _bars.append(self._bar)

    def step(self, step: Step, line: str) -> None:
        """Show a step."""
        self._seconds.append(step.step_s)
        print(line, flush=True)
        self._bar.update(self._task, completed=step.step, description=self._pace(step))

    def _pace(self, step: Step) -> str:
        left = self.num_steps - step.step
        text = f"{step.tokens_per_s:,.0f} tokens/s, {spoken(left * steady(self._seconds))} left"
        if self.forecast is not None:
            text += f" ({spoken(left * self.forecast.step_s.value)} predicted)"
        return text

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        print(line, file=sys.stdout, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


class Reporter:
    """Where the first rank's steps go: the logs, the display, the picture at the end; the other ranks' go nowhere."""

    def __init__(
        self,
        folder: Path,
        run: dict[str, Any],
        num_steps: int,
        done: int,
        forecast: PlanEstimate | None,
        *,
        is_main: bool,
    ) -> None:
        """Open what is written to.

        Args:
            folder: of the run.
            run: the first record of the step log.
            num_steps: of the whole run.
            done: steps done by an earlier part of it.
            forecast: what the estimator says of the plan.
            is_main: whether this is the first rank.
        """
        self._folder, self._num_steps = folder, num_steps
        self.seconds: list[float] = []
        """Of each step reported."""
        self._log = StepLog(folder, run, num_steps, done) if is_main else None
        self._display = Display(num_steps, done, forecast) if is_main else None
        for line in self._log.repairs if self._log else ():
            self.say(line)

    def step(self, step: Step) -> None:
        """Report a step."""
        self.seconds.append(step.step_s)
        if self._log and self._display:
            self._display.step(step, self._log.write(step))

    def say(self, line: str) -> None:
        """Print a line beside those of the steps."""
        if self._display:
            self._display.say(line)

    def sync(self) -> None:
        """Have the logs on the disk before a checkpoint is."""
        if self._log:
            self._log.sync()

    def evaluation(self, step: int, loss: float) -> None:
        """Report the loss on the held-out rows."""
        line = f"[Step {step}/{self._num_steps}] | Loss on held-out rows: {loss:.4f}"
        self._note("evaluation", {"step": step, "loss": loss}, line)

    def continued(self, step: int, line: str, values: dict[str, Any]) -> None:
        """Report from which checkpoint the run continues, what was passed over, and what is changed."""
        self._note("continued", {"step": step, **values}, line)

    def checkpoint(self, step: int, line: str, values: dict[str, Any]) -> None:
        """Report what became of a checkpoint, or of the exported model."""
        self._note("checkpoint", {"step": step, **values}, f"[Step {step}/{self._num_steps}] | {line}")

    def _note(self, kind: str, values: dict[str, Any], line: str) -> None:
        if self._log and self._display:
            self._log.record(kind, values)
            self._display.say(line)

    def close(self) -> None:
        """Close the logs, and draw the loss."""
        if self._log and self._display:
            lost = self._log.close()
            self._display.close()
            if lost:
                self._display.say(f"logs: the disk is full, the last {lost:,} bytes are lost")
            try:
                draw_loss(self._folder)
            except OSError as error:
                (self._folder / "loss.png").unlink(missing_ok=True)
                self._display.say(f"loss.png not written: {told(error)}")


def spoken(seconds: float) -> str:
    """Return a span of time in words.

    >>> spoken(42.4), spoken(3000), spoken(9000)
    ('42 s', '50.0 min', '2.50 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"


def steady(seconds: Sequence[float]) -> float:
    """Return the mean of the last seconds per step, without the first ones."""
    last = seconds[WARM_UP:][-20:] or seconds
    return sum(last) / len(last)


def draw_loss(folder: Path) -> None:
    """Draw the loss over the steps of a run's log, and on the held-out rows, as `loss.png` beside it."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, and only the end needs it

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    looks = {"step": ("-", "#33658a", "training"), "evaluation": ("o-", "#f26419", "held-out rows")}
    for kind, (line, color, label) in looks.items():
        if records := read_records(folder, kind):
            where, loss = [r["step"] for r in records], [r["loss"] for r in records]
            axes.plot(where, loss, line, color=color, linewidth=1.2, markersize=4, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    figure.savefig(folder / "loss.png", dpi=120)
