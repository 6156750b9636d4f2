"""A step log of any known format, which its content tells: read once, in bounded memory, and how long its steps take.

Every reader takes every line; the format is the one that most lines are of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path

from estimator.runs.logs.composer import ComposerReader
from estimator.runs.logs.deepspeed import DeepSpeedReader
from estimator.runs.logs.jsonl import JsonlReader
from estimator.runs.logs.lightning import LightningReader
from estimator.runs.logs.litgpt import LitgptReader
from estimator.runs.logs.llama_factory import LlamaFactoryReader
from estimator.runs.logs.megatron import MegatronReader
from estimator.runs.logs.moai import MoaiReader
from estimator.runs.logs.nanotron import NanotronReader
from estimator.runs.logs.nemo import NemoReader
from estimator.runs.logs.reader import Beginning, Coverage, Reader
from estimator.runs.logs.steps import WARM_UP_STEPS, StepLine, Timed, timed, usual_gap
from estimator.runs.logs.text import LogText, split_lines
from estimator.runs.logs.torchtitan import TorchtitanReader
from estimator.runs.logs.torchtune import TorchtuneReader
from estimator.runs.logs.transformers import TransformersReader, is_trainer_state, read_trainer_state
from estimator.runs.pace import Pace, pace_of
from estimator.runs.record import RunRecord

FEWEST_INTERVALS = 2
"""Timed intervals after the warm-up from which a pace is told."""


CONSOLES: tuple[type[Reader], ...] = (
    MegatronReader,
    TorchtitanReader,
    MoaiReader,
    TorchtuneReader,
    ComposerReader,
    LitgptReader,
    NemoReader,
    NanotronReader,
    LightningReader,
    LlamaFactoryReader,
    DeepSpeedReader,
)
"""Readers of lines; of those that as many lines are of, the first is taken: a trainer's own goes before DeepSpeed's."""


@dataclass(frozen=True, slots=True)
class Log:
    """What a log says of a run."""

    name: str
    """The log, as errors call it."""
    path: Path
    form: str
    """Its format."""
    coverage: Coverage
    record: RunRecord | None
    """What was trained, where the log itself says it."""
    sha256: str
    """Of the file; of several parts, of their digests in order."""
    records: tuple[StepLine, ...]
    """Its steps, in order."""
    whole: tuple[float, int] | None
    """Seconds per step, and steps, of the whole run, where the log times nothing else."""
    resolution_s: float
    reserved_bytes: float | None
    """Peak over ranks and steps."""
    allocated_bytes: float | None
    refused: tuple[str, ...]
    """Lines that are no evidence, each with the reason: the first few."""
    num_refused: int
    is_sampled: bool
    """The steps are a sample, since they are too many."""
    beginning: Beginning
    """What it tells of the time before the first step."""
    steps_per_read: int
    """Steps between two reads of the loss, 1 where the log does not tell."""

    @property
    def losses(self) -> tuple[float, float] | None:
        """Loss of the first and of the last step that tells one."""
        told = [record.loss for record in self.records if record.loss is not None]
        return (told[0], told[-1]) if told else None

    @property
    def tells_rates_alone(self) -> bool:
        """Whether its steps tell tokens per second and no time: they are timed once their tokens are known."""
        rated = [one.device_tokens_per_s for one in self.records if one.step_s is None and one.clock_s is None]
        return len(self.records) > 0 and len(rated) == len(self.records) and None not in rated

    def intervals(self) -> Timed:
        """Return the timed intervals after the warm-up."""
        return timed(list(self.records), self.resolution_s)

    def pace(self) -> Pace:
        """Return how long a step takes.

        Raises:
            ValueError: the log times too few steps.
        """
        if self.whole:
            return Pace(self.whole[0], None, self.whole[1], None, 0, 0.0)
        if self.tells_rates_alone:
            raise ValueError(f"{self.name}: tells tokens per second alone; its run record tells of how many tokens")
        found = self.intervals()
        if len(found.seconds) < FEWEST_INTERVALS:
            raise ValueError(
                f"{self.name}: {len(found.seconds)} timed intervals after the first {WARM_UP_STEPS} steps; give a "
                f"longer log, with at least {FEWEST_INTERVALS}"
            )
        return pace_of(found.seconds, found.number)


def read_log(path: Path, *further: Path) -> Log:
    """Read a step log of any known format, or the parts of one in any order.

    Raises:
        ValueError: it cannot be read, or no line of it is a whole step of a known format.
    """
    parts = [LogText(part) for part in (path, *further)]
    text = parts[0]
    jsonl, transformers = JsonlReader(text.name), TransformersReader()
    readers: tuple[Reader, ...] = (jsonl, *(reader() for reader in CONSOLES), transformers)
    for part in parts:
        _read(part, readers, transformers)
    found = max(readers, key=lambda reader: reader.count)
    if not found.count:
        known = ", ".join(reader.form for reader in readers)
        why = next((f" ({told})" for reader in readers for told in reader.refused.told), "")
        raise ValueError(f"{text.name}: no whole step of a known format in it, which are {known}{why}; check the file")
    for other in readers:
        if other is not found and other.count:
            found.refused.add(f"{other.count} lines of another format, {other.form}")
    digests = [part.sha256 for part in parts]
    digest = digests[0] if len(parts) == 1 else sha256(" ".join(sorted(digests)).encode()).hexdigest()
    return _log(path, text.name, digest, found, jsonl.run)


def _read(text: LogText, readers: Sequence[Reader], transformers: TransformersReader) -> None:
    pieces = text.texts()
    start = next(pieces, "")
    if is_trainer_state(start):
        read_trainer_state(chain([start], pieces), transformers)
        for _ in pieces:  # the digest is of the whole file
            pass
        return
    for line in split_lines(chain([start], pieces)):
        for reader in readers:
            reader.take(line)


def _log(path: Path, name: str, digest: str, reader: Reader, run: RunRecord | None) -> Log:
    gathered = reader.records
    whole = None
    try:
        records = reader.steps()
        if len(timed(records, reader.resolution_s).seconds) < FEWEST_INTERVALS:
            whole = reader.whole()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return Log(
        name=name,
        path=path,
        form=reader.form,
        coverage=reader.coverage,
        record=run,
        sha256=digest,
        records=tuple(records),
        whole=whole,
        resolution_s=reader.resolution_s,
        reserved_bytes=gathered.reserved_bytes,
        allocated_bytes=gathered.allocated_bytes,
        refused=tuple(reader.refused.told),
        num_refused=reader.refused.count,
        is_sampled=gathered.is_sampled,
        beginning=reader.beginning,
        steps_per_read=usual_gap(records) if reader.reads_loss_at_lines else 1,
    )
