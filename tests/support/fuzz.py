"""Mutated logs and tables over every reader: no traceback, no silent wrong unit, no fault that changes other rows.

`python -m tests.support.fuzz --count 100000 --seed 0` (`make fuzz`) prints how many inputs it tried, how long it took,
and what it found; a finding names the target and the number of the input, which makes it again.

What must hold of each input:

* reading ends in a result or in a ValueError of one printable line; what is quoted is printable;
* a result has a finite, positive time and memory that is none or positive;
* a log of which one stretch was changed tells its pace within `TOLERANCE`, or is refused;
* a log or table whose unit was changed is refused, or tells nothing of what has that unit;
* a table of which one cell was changed tells every other row as before.
"""

import argparse
import csv
import io
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from estimator.calibrate.microbench import read_timings
from estimator.runs.logged import logged_run_of
from estimator.runs.logs.read import read_log
from estimator.runs.measured import Run
from estimator.runs.read import read_runs
from estimator.runs.record import parse_run_record, read_run_record, record_path
from hardware.catalog import load_catalog
from tests.support.paths import GOLDEN, MEASURED
from tests.support.tables import RUNS, TIMINGS

LOGS = GOLDEN / "logs"
MOAI = MEASURED / "moai"
CATALOG = load_catalog()

TOLERANCE = 0.1
"""Most that one changed stretch may move the pace of a log of `ENOUGH` intervals."""

ENOUGH = 20

TOKENS = (
    "", "0", "-1", "nan", "inf", "1e400", "9" * 400, "0.0000001", "1,000", "\u0663", "1_0", "0x1f", "true", "null",
    "\x00", "\r", "\n", "\r\n", "\t", " ", "\ufeff", "\x1b[31m", "\x1b]0;", "\udc80",
    "{", "}", "[", "]", '"', "'", "\\", ",", "|", ":", "[" * 3000,
    "{'a':" * 500, "step:", "loss:", "iteration", "(ms)", "(s)", "GiB", "GB", "tokens/sec", "/it",
    "2024-13-45 99:99:99.999", "9999-12-31 23:59:59.999999", "0001-01-01",
    "elapsed time per iteration (ms): 1.0 |",
    '{"record": "run"}', '{"record": "step", "step": 1}', '"log_history": [', "[Step 1/2]", "1/2 [00:01<00:01, 1it/s]",
)  # fmt: skip
"""What is written into the middle of things."""

UNITS = (
    ("(ms)", "(s)", "time"), ("(ms)", "(us)", "time"), ('"step_s"', '"step_ms"', "time"), ("tps:", "ktps:", "time"),
    ("tokens/sec", "tokens/min", "time"), ("train_runtime", "train_runtime_ms", "time"), ("wps:", "wpm:", "time"),
    (",step_s", ",step_ms", "time"), (",reserved_bytes", ",reserved_gib", "time"), ("flop_per_s", "tflops", "time"),
    ("memory (MB)", "memory (GB)", "memory"), ("memory (MB)", "memory (MiB)", "memory"), ("GiB(", "GB(", "memory"),
    ("GiB(", "MiB(", "memory"), ('_bytes"', '_mib"', "memory"),
    ("tokens_per_second_per_gpu", "tokens_per_minute_per_gpu", "time"), ("time/train", "time/train_s", "time"),
    (" ms (step)", " s (step)", "time"), ("train_step_timing in s", "train_step_timing in ms", "time"),
    ("time_per_iteration_ms", "time_per_iteration_s", "time"), ("train/time", "train/time_ms", "time"),
    ('"elapsed_time"', '"elapsed_ms"', "time"), ("iter time (s)", "iter time (ms)", "time"),
    ("memory (GB)", "memory (MB)", "memory"), ("-gigabytes", "-gibibytes", "memory"), ("MiB. ", "GiB. ", "memory"),
    ("mem: ", "mem_mib: ", "memory"), ("peak_memory_reserved", "peak_memory_reserved_mib", "memory"),
    ("_bytes.all.peak", "_mib.all.peak", "memory"), ("vram_reserved", "vram_reserved_mb", "memory"),
)  # fmt: skip
"""A unit, another that may stand there, and what can no longer be known then: the time (it is refused), or memory."""


TORCHTUNE_RECORD = json.dumps({
    "schema": "steps/1", "model": "meta-llama/Meta-Llama-3-8B", "accelerator": "h100-sxm-80gb", "num_devices": 8,
    "num_nodes": 1, "tokens_per_step": 65536, "precision": "bf16",
    "plan": {"num_stages": 1, "num_micro_batches": 1, "batch_per_device": 1, "zero_stage": 3},
})  # fmt: skip

TORCHTUNE = "torchtune.txt"
"""The golden log that tells rates alone."""

KINDS = ("runs", "items", "skipped")
"""Of the rows of what a reader of tables says."""


class Told(NamedTuple):
    """What a reader says of a log."""

    step_s: float
    memory: float | None
    num_intervals: int


class Target(NamedTuple):
    """A text and what reads it."""

    name: str
    text: str
    read: Callable[[Path], object]
    is_table: bool = False


def log_told(path: Path) -> Told:
    """Read a log alone."""
    log = read_log(path)
    pace = log.pace()
    assert all(line.isprintable() and line.isascii() for line in log.refused)
    return Told(pace.step_s, log.reserved_bytes, pace.num_steps if log.whole else len(log.intervals().seconds))


def run_told(path: Path) -> Told:
    """Read a log with its run record."""
    run = logged_run_of(read_log(path), CATALOG)
    assert run.step_s is not None
    assert run.log is not None
    assert all(line.isprintable() and line.isascii() for line in run.log.refused)
    _refuse_odd(run)
    return Told(run.step_s, run.reserved_bytes, len(run.log.intervals().seconds))


def moai_told(path: Path) -> Told:
    """Read a log with the run record of one of MoAI's beside it."""
    record_path(path).write_bytes(record_path(MOAI / "qwen1.5_7b_4xlarge.log").read_bytes())
    return run_told(path)


def torchtune_told(path: Path) -> Told:
    """Read a log of torchtune, which tells rates alone, with a run record beside it."""
    record_path(path).write_text(TORCHTUNE_RECORD, encoding="utf-8")
    return run_told(path)


def record_told(path: Path) -> object:
    """Read a run record that lies beside a log."""
    record_path(path).write_bytes(path.read_bytes())
    return read_run_record(path)


def _refuse_odd(run: Run) -> None:
    """Raise where the seconds of a run are none."""
    told = [seconds for seconds in run.startup or () if seconds is not None]
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in (*told, *run.launch_windows_s, run.step_log_se))
    assert run.steps_per_read >= 1


def targets() -> list[Target]:
    """Return every golden log, those of MoAI, tables of runs and of microbenchmarks, and run records."""
    logs = [path for path in sorted(LOGS.iterdir()) if path.suffix != ".md"] + sorted(MOAI.glob("*.log"))
    steps, record = text_of(LOGS / "steps.jsonl"), text_of(record_path(MOAI / "qwen1.5_7b_4xlarge.log"))
    return [
        *(Target(path.name, text_of(path), torchtune_told if path.name == TORCHTUNE else log_told) for path in logs),
        Target("steps.jsonl as a run", steps, run_told),
        Target("qwen1.5_7b_4xlarge.log as a run", text_of(MOAI / "qwen1.5_7b_4xlarge.log"), moai_told),
        Target("run record", steps.partition("\n")[0], lambda path: parse_run_record(read_text(path), "run record")),
        Target("run record beside a log", record, record_told),
        Target("runs/1", RUNS, lambda path: read_runs([path], CATALOG), is_table=True),
        Target("timings/1", TIMINGS, lambda path: read_timings(path, CATALOG), is_table=True),
    ]


def text_of(path: Path) -> str:
    """Return a file as it is, line ends too."""
    return path.read_bytes().decode()


def read_text(path: Path) -> str:
    """Return a file of any bytes as text."""
    return path.read_bytes().decode(errors="replace")


def stretch(text: str, draw: np.random.Generator) -> tuple[int, int]:
    """Return the ends of a stretch of a text, most often a short one."""
    start = int(draw.integers(0, len(text) + 1))
    return start, min(start + int(draw.choice([0, 1, 2, 5, 20, 80, 400])), len(text))


def changed(text: str, draw: np.random.Generator) -> str:
    """Return a text of which one stretch was deleted, overwritten, flipped, repeated or moved, or that breaks off."""
    start, end = stretch(text, draw)
    at, _ = stretch(text, draw)
    digits = [i for i in range(start, end) if text[i].isdigit()] or [start]
    digit = digits[int(draw.integers(len(digits)))]
    ways = (
        text[:start] + text[end:],
        text[:start] + _token(draw) + text[end:],
        text[:start] + _token(draw) + text[start:],
        text[:start] + chr(int(draw.integers(0, 256))) + text[start + 1 :],
        text[:digit] + str(int(draw.integers(10))) + text[digit + 1 :],
        text[:end] + text[start:],
        text[:at] + text[start:end] + text[at:],
        text[: max(start, len(text) // 2)],
    )
    return ways[int(draw.integers(len(ways)))]


def _token(draw: np.random.Generator) -> str:
    return TOKENS[int(draw.integers(len(TOKENS)))]


def recelled(text: str, draw: np.random.Generator) -> tuple[str, int]:
    """Return a table with another text in one cell, and the number of its row."""
    rows = list(csv.reader(io.StringIO(text)))
    row, column = int(draw.integers(1, len(rows))), int(draw.integers(len(rows[0])))
    rows[row][column] = _token(draw) if draw.integers(2) else changed(rows[row][column], draw)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue(), row


class Fuzzer:
    """Tries inputs one by one, and keeps what is wrong."""

    def __init__(self, folder: Path, seed: int, only: str = "") -> None:
        """Read every target as it is, or those alone whose name has a word in it."""
        self.folder, self.seed = folder, seed
        self.targets = [target for target in targets() if only in target.name]
        self.ends: Counter[str] = Counter()
        self.findings: list[str] = []
        self.known = [self._read(target, target.text) for target in self.targets]
        assert not any(isinstance(told, ValueError) for told in self.known)

    def _read(self, target: Target, text: str) -> object:
        """Return what a reader says of a text, or the error that it ends in."""
        path = self.folder / "input"
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        try:
            return target.read(path)
        except ValueError as error:
            return error

    def try_input(self, number: int) -> None:
        """Make the input of a number, read it, and keep what is wrong with the end."""
        draw = np.random.default_rng([self.seed, number])
        which = number % len(self.targets)
        target = self.targets[which]
        kind = str(draw.choice(["one stretch", "many stretches", "unit", "cell"]))
        text, row = target.text, None
        if kind == "cell" and target.is_table:
            text, row = recelled(text, draw)
        elif kind == "unit" and (units := [pair for pair in UNITS if pair[0] in text]):
            unit, other, what = units[int(draw.integers(len(units)))]
            text, kind = text.replace(unit, other), f"unit of {what}"
        else:
            kind = kind if kind == "many stretches" else "one stretch"
            for _ in range(1 if kind == "one stretch" else int(draw.integers(2, 20))):
                text = changed(text, draw)
        try:
            told = self._read(target, text)
            wrong = self._wrong(self.known[which], told, kind, row)
        except Exception as error:  # noqa: BLE001 - whatever else it is, it is a finding
            told, wrong = error, f"{type(error).__name__}: {error}"
        self.ends["refused" if isinstance(told, ValueError) else "read"] += 1
        if wrong:
            self.findings.append(f"seed {self.seed}, input {number}, {target.name}, {kind}: {wrong[:300]}")

    def _wrong(self, known: object, told: object, kind: str, row: int | None) -> str:
        if isinstance(told, ValueError):
            text = str(told)
            return "" if text.isprintable() and text.isascii() and text and len(text) < 2000 else f"error {text!r}"
        if isinstance(told, Told) and isinstance(known, Told):
            return _wrong_log(known, told, kind)
        if kind == "unit of time":
            return "another unit, and read"
        if row is not None and hasattr(told, "skipped") and hasattr(known, "skipped"):
            return _wrong_rows(known, told, row)
        return ""


def _wrong_log(known: Told, told: Told, kind: str) -> str:
    if not (math.isfinite(told.step_s) and told.step_s > 0 and (told.memory is None or told.memory > 0)):
        return f"{told}"
    ratio = told.step_s / known.step_s
    enough = min(known.num_intervals, told.num_intervals) >= ENOUGH
    if kind == "one stretch" and enough and abs(ratio - 1) > TOLERANCE:
        return f"{told.step_s:g} s instead of {known.step_s:g}"
    if kind == "unit of time" or (kind == "unit of memory" and (told.memory or abs(ratio - 1) > TOLERANCE)):
        return f"another unit, and read: {told} instead of {known}"
    return ""


def _wrong_rows(known: object, told: object, row: int) -> str:
    """Compare by name; the changed row's name, or number, may be any."""
    before = {item.name: item for kind in KINDS for item in getattr(known, kind, ())}
    after = [item for kind in KINDS for item in getattr(told, kind, ())]
    others = [item for item in after if before.get(item.name) != item]
    return f"row {row} changed {[item.name for item in others]}" if len(others) > 1 else ""


def main() -> int:
    """Try as many inputs as asked for, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name has this in it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer, started = Fuzzer(Path(folder), options.seed, options.only), time.monotonic()
        for number in range(options.count):
            fuzzer.try_input(number)
    ends = ", ".join(f"{count:,} {end}" for end, count in sorted(fuzzer.ends.items()))
    print(f"{options.count:,} inputs of {len(fuzzer.targets)} targets in {time.monotonic() - started:.0f} s: {ends}")
    print(f"{len(fuzzer.findings)} findings")
    for finding in fuzzer.findings[:50]:
        print(json.dumps(finding))
    return 1 if fuzzer.findings else 0


if __name__ == "__main__":
    sys.exit(main())
