"""Runs that are killed, stopped or damaged at a random moment, and go on: `make faults`.

Each is a run of two processes under the launcher of `train`. After the fault it is continued; it has survived where the
model that it then exports is that of the uninterrupted run, to the last bit.
"""

import argparse
import itertools
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch

from hardware.command import run_command
from tests.support.ranks import Ranks
from tests.support.tiny import write_work
from trainer.cli import train_app
from trainer.jobs.status import BAD_INPUT, DONE, FAILED, HUNG, STOPPED
from trainer.measure import read_records

REPORT = Path("reports/validation/faults.md")
STEPS, EVERY = 20, 3
"""Of a run, and between its checkpoints."""
FIRST, LAST = 8, 16
"""Steps within which a fault falls: after two checkpoints, of which one may be damaged, and before the end."""
HANG_S = 3.0
PATIENCE_S = 120.0
PLAN = "num_micro_batches=1,batch_per_device=4,zero_stage=3"


class Victim:
    """A run under way, and its processes."""

    def __init__(self, output: Path, launcher: psutil.Process, ranks: list[psutil.Process]) -> None:
        """Take what was started."""
        self.output, self.launcher, self.ranks = output, launcher, ranks

    def end_all(self) -> None:
        """Kill everything at once, as a machine that is lost does."""
        for process in (*self.ranks, self.launcher):
            process.kill()

    def newest(self) -> Path:
        """Return the newest checkpoint."""
        return max((self.output / "checkpoints").glob("step-*"))


def kill_rank(victim: Victim, draw: random.Random) -> None:
    """Kill one rank, or what the kernel kills when memory runs out."""
    draw.choice(victim.ranks).kill()


def kill_launcher(victim: Victim, _: random.Random) -> None:
    """Kill the launcher, and leave its ranks."""
    victim.launcher.kill()


def terminate(victim: Victim, draw: random.Random) -> None:
    """Ask the launcher or a rank to end, as a scheduler does."""
    draw.choice([victim.launcher, *victim.ranks]).terminate()


def stop_rank(victim: Victim, draw: random.Random) -> None:
    """Stop one rank for good."""
    draw.choice(victim.ranks).suspend()


def lose_machine(victim: Victim, _: random.Random) -> None:
    """Kill all processes at once."""
    victim.end_all()


def _after_loss(damage: Callable[[Victim, random.Random], None]) -> Callable[[Victim, random.Random], None]:
    """Return a fault: the machine is lost, and something on its disk with it."""

    def fault(victim: Victim, draw: random.Random) -> None:
        victim.end_all()
        psutil.wait_procs([victim.launcher, *victim.ranks], timeout=10)
        damage(victim, draw)

    return fault


def _cut_log(victim: Victim, draw: random.Random) -> None:
    path = victim.output / "steps.jsonl"
    os.truncate(path, path.stat().st_size - draw.randint(1, 200))


def _zero_log(victim: Victim, draw: random.Random) -> None:
    path = victim.output / "steps.jsonl"
    content, lost = path.read_bytes(), draw.randint(1, 200)
    path.write_bytes(content[:-lost] + bytes(lost))


def _shard(victim: Victim, draw: random.Random) -> Path:
    return draw.choice(sorted(victim.newest().glob("*.distcp")))


def _cut_shard(victim: Victim, draw: random.Random) -> None:
    path = _shard(victim, draw)
    os.truncate(path, draw.randrange(path.stat().st_size))


def _flip_shard(victim: Victim, draw: random.Random) -> None:
    path = _shard(victim, draw)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _lose_metadata(victim: Victim, draw: random.Random) -> None:
    (victim.newest() / draw.choice([".metadata", "run.json"])).unlink()


@dataclass(frozen=True)
class Kind:
    """A way in which a run is broken off."""

    name: str
    fault: Callable[[Victim, random.Random], None]
    statuses: tuple[int | None, ...]
    """Of the launcher; None where it is killed itself."""


KINDS = (
    Kind("kill -9 of a rank", kill_rank, (FAILED,)),
    Kind("kill -9 of the launcher", kill_launcher, (None,)),
    Kind("SIGTERM to the launcher or a rank", terminate, (STOPPED,)),
    Kind("SIGSTOP of a rank", stop_rank, (HUNG,)),
    Kind("all processes killed", lose_machine, (None,)),
    Kind("killed, last line of the log cut", _after_loss(_cut_log), (None,)),
    Kind("killed, end of the log zeros", _after_loss(_zero_log), (None,)),
    Kind("killed, a shard of the newest checkpoint cut", _after_loss(_cut_shard), (None,)),
    Kind("killed, a bit of the newest checkpoint flipped", _after_loss(_flip_shard), (None,)),
    Kind("killed, metadata of the newest checkpoint lost", _after_loss(_lose_metadata), (None,)),
)


@dataclass(frozen=True)
class Outcome:
    """How one run fared."""

    kind: str
    problem: str
    """Why it has not survived; "" where it has."""
    lost: int
    """Steps that were done again."""
    said_s: float
    """From the fault until no process of the run was left; what had to be said was said by then."""
    recovered_s: float
    """From the start of the continued run until its first step."""


def arguments(work: Path, output: Path, *more: str) -> list[str]:
    """Return the command line of a run on what `write_work` wrote."""
    options = {
        "--model": work / "checkpoint",
        "--tokenizer": work / "tokenizer",
        "--dataset": work / "rows.jsonl",
        "--seq-len": 72,
        "--batch": 8,
        "--steps": STEPS,
        "--lr": 1e-3,
        "--precision": "fp32",
        "--plan": PLAN,
        "--nproc": 2,
        "--checkpoint-every": EVERY,
        "--keep": 3,
        "--hang-timeout": HANG_S,
        "--output": output,
    }
    return [*(str(part) for option in options.items() for part in option), *more]


def command(words: list[str]) -> int:
    """Be the launcher, at the head of a session of its own, or one of the ranks."""
    if "RANK" not in os.environ:
        os.setsid()
    torch.set_num_threads(1)
    sys.argv = ["train", *words]
    return run_command(train_app, "train", words)


def steps_logged(output: Path) -> int:
    """Return the last step that a run has told of."""
    log = output / "train.log"
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.is_file() else []
    return int(lines[-1].removeprefix("[Step ").partition("/")[0]) if lines else 0


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    """Wait for something.

    Raises:
        TimeoutError: it does not come.
    """
    end = time.monotonic() + PATIENCE_S
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} after {PATIENCE_S:.0f} s")
        time.sleep(0.02)


def break_off(kind: Kind, work: Path, output: Path, draw: random.Random) -> tuple[float, int]:
    """Begin a run and let the fault fall; return the seconds until it was over, and the step then reached.

    Raises:
        AssertionError: it ended otherwise than it should.
        TimeoutError: it did not end.
    """
    started = Ranks(1, command, arguments(work, output), environment={"XDG_CACHE_HOME": str(work / "cache")})
    launcher = psutil.Process(started.processes[0].pid)
    moment, delay_s = draw.randint(FIRST, LAST), draw.uniform(0.0, 0.3)
    ranks: list[psutil.Process] = []
    try:
        wait_until(lambda: steps_logged(output) >= moment, f"step {moment} was not reached")
        ranks = [child for child in launcher.children() if "RANK" in child.environ()]
        assert len(ranks) == 2, "the run was over before the fault"
        time.sleep(delay_s)
        began = time.monotonic()
        kind.fault(Victim(output, launcher, ranks), draw)
        wait_until(lambda: not psutil.wait_procs([launcher, *ranks], timeout=0)[1], "processes were left")
        seconds = time.monotonic() - began
        (ended,) = started.end()
    finally:
        for process in (*ranks, launcher):
            if process.is_running():
                process.kill()
    assert kind.statuses == (None,) or ended.value in kind.statuses, f"{ended.value}: {last_line(ended.output)}"
    said = [line for line in ended.output.splitlines() if not line.startswith("[Step ")]
    assert kind.statuses not in ((FAILED,), (HUNG,)) or len(said) == 1, f"lines: {said}"
    return seconds, steps_logged(output)


def go_on(work: Path, output: Path) -> tuple[float, int]:
    """Continue a run to its end; return the seconds until its first step, and the step that it continued from.

    Raises:
        AssertionError: it failed.
    """
    began = time.monotonic()
    words = arguments(work, output, "--resume", "auto")
    ranks = Ranks(2, command, words, environment={"XDG_CACHE_HOME": str(work / "cache")})
    with suppress(AssertionError):  # it has ended without a step
        ranks.wait_for("[Step ", PATIENCE_S)
    seconds, first_said = time.monotonic() - began, ranks.output(0)
    ended = ranks.end(PATIENCE_S)
    assert [rank.value for rank in ended] == [DONE, DONE], f"not continued: {last_line(ended[0].output)}"
    firsts = [line for line in first_said.splitlines() if line.startswith("[Step ")]
    if not firsts:  # it was done before the fault was noticed
        return seconds, STEPS
    return seconds, int(firsts[0].removeprefix("[Step ").partition("/")[0]) - 1


def last_line(said: str) -> str:
    """Return the last of what a command said, without the places of files."""
    line = said.strip().rpartition("\n")[2]
    return line.partition("; traceback in ")[0]


def model_of(output: Path) -> bytes:
    """Return the exported weights."""
    return b"".join(path.read_bytes() for path in sorted((output / "model").glob("*.safetensors")))


def survive(kind: Kind, work: Path, output: Path, whole: bytes, draw: random.Random) -> Outcome:
    """Break a run off, continue it, and hold what it exports against the uninterrupted run's."""
    said_s = recovered_s = float("nan")
    reached = resumed = 0
    try:
        said_s, reached = break_off(kind, work, output, draw)
        recovered_s, resumed = go_on(work, output)
        assert model_of(output) == whole, "the model is another"
        steps = [record["step"] for record in read_records(output, "step")]
        assert steps == sorted(set(steps)), f"steps of the log: {steps}"
    except (AssertionError, TimeoutError) as error:
        problem = " ".join(str(error).split()).replace(f"{output}/", "")
        return Outcome(kind.name, problem[:200] or "failed", 0, said_s, recovered_s)
    return Outcome(kind.name, "", max(reached - resumed, 0), said_s, recovered_s)


def outcomes(num_runs: int, seed: int) -> Iterator[Outcome]:
    """Yield how each run fares, the kinds in turn."""
    with TemporaryDirectory(prefix="foretrain-faults-") as folder:
        work = Path(folder)
        write_work(work)
        ended = Ranks(
            2, command, arguments(work, work / "whole"), environment={"XDG_CACHE_HOME": f"{work}/cache"}
        ).end()
        assert [rank.value for rank in ended] == [DONE, DONE], ended[0].output
        whole = model_of(work / "whole")
        for number, kind in zip(range(num_runs), itertools.cycle(KINDS), strict=False):
            draw = random.Random(f"{seed} {number}")  # noqa: S311 - of a test's moments
            found = survive(kind, work, work / str(number), whole, draw)
            print(f"{number + 1}/{num_runs} {kind.name}: {found.problem or 'survived'}", flush=True)
            yield found


def report(found: list[Outcome], seed: int) -> str:
    """Return the report as a page."""
    survived = sum(not outcome.problem for outcome in found)
    lines = [
        "# Runs that were broken off",
        "",
        f"`make faults` of {datetime.now(UTC):%Y-%m-%d}: {len(found)} runs of two processes and {STEPS} steps, a",
        f"checkpoint every {EVERY}, each broken off at a random moment of steps {FIRST} to {LAST}, then continued",
        f"(seed {seed}, --hang-timeout {HANG_S:g}, torch {torch.__version__}, {os.cpu_count()} cores).",
        "",
        f"{survived} of {len(found)} survived: the exported model is that of the uninterrupted run to the last bit,",
        "the launcher's status is the fault's, and its words are one line. Seconds until no process was left, and from",
        "the next start to its first step (ranks forked, without their imports): median and most.",
        "",
        "| fault | tried | survived | steps lost | s to end | s to go on |",
        "|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        those = [outcome for outcome in found if outcome.kind == kind.name]
        good = [outcome for outcome in those if not outcome.problem]
        cells = [_middle(values) for values in zip(*((o.lost, o.said_s, o.recovered_s) for o in good), strict=True)]
        lines.append(f"| {kind.name} | {len(those)} | {len(good)} | {' | '.join(cells or ['', '', ''])} |")
    problems = [f"- {outcome.kind}: {outcome.problem}" for outcome in found if outcome.problem]
    return "\n".join([*lines, *(["", "Not survived:", "", *problems] if problems else [])]) + "\n"


def _middle(values: tuple[float, ...]) -> str:
    return f"{statistics.median(values):.3g}, {max(values):.3g}"


def main() -> int:
    """Try as many runs as asked, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.runs < 1:
        print(f"runs: {given.runs} is no number of runs; give 1 or more", file=sys.stderr)
        return BAD_INPUT
    found = list(outcomes(given.runs, given.seed))
    REPORT.write_text(report(found, given.seed), encoding="utf-8")
    return FAILED if any(outcome.problem for outcome in found) else DONE


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))  # what is under way is ended too
    sys.exit(main())
