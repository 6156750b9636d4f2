"""Logs of the Hugging Face Trainer: the console, and `trainer_state.json`.

Read in transformers 4.57 and 5.23 (trainer.py, trainer_utils.speed_metrics, trainer_callback.py) and in logs of them.
A dictionary is printed every `logging_steps`, `{'loss': 0.3381, 'grad_norm': 0.4666, 'learning_rate': 1.0e-05,
'epoch': 2.61}` (version 5 prints its numbers as strings of four digits), and at the end `{'train_runtime': 437.85,
'train_samples_per_second': 25.132, 'train_steps_per_second': 3.145, 'train_loss': 0.4564, 'epoch': 3.0}`. The file
holds the same dictionaries, each with its `step`, in `log_history`. Neither times a step. What does:

* `train_runtime` in every dictionary, where `include_num_input_tokens_seen` is on: seconds since training began;
* the progress bar of the console, `20/378 [08:10<2:31:47, 24.12s/it]`: the same, to the second; an evaluation is taken
  off where it is told between two bars that are as far apart, since bars and dictionaries may come out of order;
* else the last dictionary alone: the seconds of the whole loop, without evaluations (`eval_runtime`). The first step,
  checkpoints and logging stay in them, and a run that was resumed counts the steps before, too.

An evaluation is in the loop's seconds only where it is between its ends: one that is told after the last dictionary
came after training, and one that tells no epoch before it (`Trainer.log` adds the epoch once there is one).

What is built on the Trainer adds memory to its dictionaries: Axolotl `memory/max_allocated (GiB)` and `memory/
device_reserved (GiB)`, peaks since the last one (src/axolotl/core/trainers/base.py and utils/bench.py of
axolotl-ai-cloud/axolotl; 2025 `memory/max_mem_allocated(gib)`; where the device is none of CUDA's, the keys hold other
things, and the last is 0); optimum-habana `max_memory_allocated (GB)`, which are 2**30 bytes (`to_gb_rounded` of
optimum/habana/utils/misc.py, huggingface/optimum-habana). TRL adds numbers that are not read (`num_tokens`, ...).
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from estimator.runs.logs.reader import Coverage, Reader
from estimator.runs.logs.steps import StepLine, StepLines
from estimator.runs.logs.text import LONGEST_LINE
from hardware.units import GIB

_DICT = re.compile(r"\{'[^{}]{1,4000}\}", re.ASCII)
_PAIR = re.compile(r"'([\w/ ().-]{1,80})': '?([-+.\deE]{1,30}|nan|inf)'?(?=[,}])", re.ASCII)
_BAR = re.compile(r"(\d{1,12})/(\d{1,12}) \[(?:(\d{1,5}):)?(\d\d):(\d\d)<[^\]]*(?:s/it|it/s)[,\]]", re.ASCII)
_MAX_STEPS = re.compile(r'"max_steps":\s*(\d{1,12})\b', re.ASCII)
_HISTORY = re.compile(r'"log_history":\s*\[', re.ASCII)

STAMP_S = 1e-4
"""Resolution of `train_runtime` in a file."""

RESERVED_KEYS = ("memory/device_reserved (GiB)", "memory/device_mem_reserved(gib)")
ALLOCATED_KEYS = ("memory/max_allocated (GiB)", "memory/max_mem_allocated(gib)")
"""Of Axolotl, now and in 2025."""

HABANA_KEY = "max_memory_allocated (GB)"
"""Of optimum-habana, in 2**30 bytes."""

BARS_PER_LINE = 10
"""Progress bars that count as one line where there is no dictionary: most programs draw them, and often."""

MOST_BARS = 8
"""Progress bars of different lengths that are followed; the longest-running one is the training's."""

LEAST_DIGITS = 0.02
"""Most relative rounding of a rate that is believed."""


class TransformersReader(Reader):
    """Reads the dictionaries and progress bars of the Hugging Face Trainer."""

    form = "transformers"
    coverage = Coverage(
        "time between lines of a progress bar or a dictionary, or the whole loop over its steps", synchronized=False
    )
    clock_s = 1.0
    is_elapsed = True

    def __init__(self) -> None:
        """Start before the first line."""
        super().__init__()
        self._bars: dict[int, StepLines] = {}
        self._bar_s: dict[int, tuple[float, float]] = {}
        self._untaken_s = 0.0
        self._evaluations: dict[tuple[float, float], float] = {}
        self._summary: tuple[float, float | None] | None = None
        self._max_steps: int | None = None
        self._losses: dict[float, float] = {}
        self._num_entries = 0
        self._num_bars = 0

    @property
    def records(self) -> StepLines:
        """Steps with the seconds since training began."""
        if self.gathered.count or not self._bars:
            return self.gathered
        wanted = self._bars.get(self._max_steps or -1)
        found = wanted or max(self._bars.values(), key=lambda bar: (bar.latest_s, bar.count))
        found.hold(self.gathered.reserved_bytes, self.gathered.allocated_bytes)
        return found

    @property
    def resolution_s(self) -> float:
        """Of `train_runtime` where entries have it, else of a progress bar."""
        return STAMP_S if self.gathered.count else self.clock_s

    @property
    def count(self) -> int:
        """Dictionaries with a loss or a runtime, and steps of progress bars, so far."""
        if self._num_entries:
            return self._num_entries + self._num_bars
        return -(-self._num_bars // BARS_PER_LINE)

    def take(self, line: str) -> None:
        """Take a line of the log, of this format or not."""
        if "/it" in line or "it/s" in line:
            self._take_bars(line)
        if "{'" in line:
            for found in _DICT.finditer(line):
                self.take_entry({k: float(v) for k, v in _PAIR.findall(found[0]) if _is_number(v)}, found[0])

    def take_entry(self, entry: Mapping[str, float], line: str) -> None:
        """Take what a dictionary says."""
        runtime, step = entry.get("train_runtime"), entry.get("step")
        if "eval_runtime" in entry:
            self._take_evaluation(entry, line)
            return
        if runtime is None and "loss" not in entry:
            return
        self._num_entries += 1
        self._hold(entry)
        if runtime is not None and "train_loss" in entry:
            self._take_summary(runtime, entry, line)
        elif runtime is not None and step is not None:
            training_s = runtime - sum(self._evaluations.values())  # entries come in their order
            self._add(self.gathered, int(step), training_s, entry.get("loss"), line)

    def _take_evaluation(self, entry: Mapping[str, float], line: str) -> None:
        """Take the seconds of an evaluation that lies between the ends of the training loop."""
        if self._summary or not entry.keys() & {"step", "epoch"}:
            return
        runtime = entry["eval_runtime"]
        samples, steps = (entry.get(f"eval_{kind}_per_second") for kind in ("samples", "steps"))
        whole = [_is_whole(rate, runtime) for rate in (samples, steps) if rate is not None]
        if samples is None or not all(whole):
            self.refused.add("an evaluation of no whole number of samples or steps, or of no time", line)
        else:
            key = (entry.get("step") or entry.get("epoch", 0.0), runtime)
            self._untaken_s += 0.0 if key in self._evaluations else runtime
            self._evaluations[key] = runtime

    def _hold(self, entry: Mapping[str, float]) -> None:
        """Take what an entry of the training says of memory."""
        reserved, allocated = (
            next((entry[key] for key in keys if key in entry), 0.0) for keys in (RESERVED_KEYS, ALLOCATED_KEYS)
        )
        if reserved > 0:
            self.gathered.hold(reserved * GIB, allocated * GIB)
        self.gathered.hold(None, entry.get(HABANA_KEY, 0.0) * GIB)

    def _take_summary(self, runtime: float, entry: Mapping[str, float], line: str) -> None:
        if not 0 < runtime < 1e9:
            self.refused.add("a runtime that no run has", line)
            return
        rate = entry.get("train_steps_per_second")
        if self._summary and self._summary != (runtime, rate):
            self.refused.add("a second run's end; the first counts", line)
            return
        self._summary = (runtime, rate)

    def take_max_steps(self, steps: int) -> None:
        """Take the number of steps that the run is to have."""
        self._max_steps = steps

    def _take_bars(self, line: str) -> None:
        for step, total, hours, minutes, seconds in _BAR.findall(line):
            if total not in self._bars and len(self._bars) >= MOST_BARS and int(total) not in self._bars:
                continue
            elapsed = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
            if 0 < int(step) <= int(total):
                self._num_bars += 1
                training_s = self._without_evaluations(int(total), float(elapsed))
                self._add(self._bars.setdefault(int(total), StepLines()), int(step), training_s, None, line.strip())

    def _without_evaluations(self, total: int, elapsed_s: float) -> float:
        """Return the seconds of a bar without the evaluations that were told between it and one before, if they fit."""
        before_s, evaluating_s = self._bar_s.get(total, (elapsed_s, 0.0))
        if elapsed_s < before_s:  # begun again
            evaluating_s = 0.0
        elif self._untaken_s and elapsed_s - before_s + self.clock_s >= self._untaken_s:
            evaluating_s += self._untaken_s
            self._untaken_s = 0.0
        self._bar_s[total] = (elapsed_s, evaluating_s)
        return elapsed_s - evaluating_s

    def _add(self, records: StepLines, step: int, clock_s: float, loss: float | None, line: str) -> None:
        with self.refusing(line):
            records.add(StepLine(step=step, line=line, clock_s=clock_s, loss=loss))

    def whole(self) -> tuple[float, int] | None:
        """Return the seconds per step of the whole loop without evaluations, and its steps; None where it has no end.

        Raises:
            ValueError: the end of the log says it too coarsely, or contradicts itself.
        """
        if self._summary is None:
            return None
        runtime, rate = self._summary
        training_s = runtime - sum(self._evaluations.values())
        steps = self._max_steps or max(self._bars, default=0)
        if training_s <= 0:
            raise ValueError(f"train_runtime: {runtime:g} s are less than the evaluations in them")
        if not rate and not steps:
            raise ValueError("train_steps_per_second: not in the last dictionary; give trainer_state.json instead")
        if rate and steps and abs(rate * runtime / steps - 1) > LEAST_DIGITS + 5e-4 / rate:
            raise ValueError(f"train_steps_per_second: {rate:g} over {runtime:g} s are not {steps} steps")
        if rate and not steps:
            if 5e-4 / rate > LEAST_DIGITS:
                raise ValueError(f"train_steps_per_second: {rate:g} is too coarse; give trainer_state.json instead")
            steps = max(round(rate * runtime), 1)
        return training_s / steps, steps


def _is_whole(rate: float, runtime_s: float) -> bool:
    """Whether a rate and seconds make a count: printed to four significant digits, or to three and four decimals."""
    if not (0 < runtime_s < 1e9 and 0 < rate < 1e9):
        return False
    of_rate, of_runtime = (
        max(10.0 ** (math.floor(math.log10(value)) - 3), decimals)
        for value, decimals in ((rate, 1e-3), (runtime_s, 1e-4))
    )
    # rounded to decimals and then to digits, a number is off by up to 0.55 of the last
    return abs(rate * runtime_s - round(rate * runtime_s)) <= 0.55 * (of_rate * runtime_s + of_runtime * rate) + 1e-6


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_trainer_state(start: str) -> bool:
    """Whether a text begins as a `trainer_state.json` does."""
    return start.lstrip().startswith("{") and _HISTORY.search(start) is not None


def read_trainer_state(texts: Iterator[str], reader: TransformersReader) -> None:
    """Read a `trainer_state.json`, entry by entry; one that breaks off is read up to there."""
    decoder = json.JSONDecoder()
    text, at = "", -1
    for piece in texts:
        text += piece
        if found := _HISTORY.search(text):
            at = found.end()
            break
    _take_max_steps(text[: max(at, 0)], reader)
    while at >= 0:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if text[at : at + 1] == "]":
            _take_max_steps(text[at:] + next(texts, ""), reader)
            return
        try:
            entry, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            more = next(texts, "")
            if not more or len(text) - at > LONGEST_LINE:
                reader.refused.add("breaks off, or is no JSON", text[at : at + LONGEST_LINE])
                return
            text, at = text[at:] + more, 0
            continue
        if isinstance(entry, dict):
            reader.take_entry(_numbers(entry), text[at:end])
        at = end


def _take_max_steps(text: str, reader: TransformersReader) -> None:
    if (found := _MAX_STEPS.search(text)) and int(found[1]):
        reader.take_max_steps(int(found[1]))


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an entry, those too that are written as text."""
    numbers = {}
    for key, value in entry.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
        if is_number or (isinstance(value, str) and len(value) < 30 and _is_number(value)):
            numbers[key] = float(value)
    return numbers
