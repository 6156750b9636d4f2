import json
import math
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.support.ranks import run_ranks
from trainer.measure import Gathered, Peak, Step, StepLog, Stopwatch, gather, peak_memory, read_records
from trainer.parallel.mesh import World, start_processes

STEP = Step(
    step=1,
    loss=0.83594,
    grad_norm=1.5,
    lr=1e-3,
    tokens=100,
    useful_tokens=60,
    step_s=0.5,
    data_s=0.1,
    compute_s=0.2,
    optimizer_s=0.1,
    log_s=0.05,
    peak_allocated_bytes=10,
    peak_reserved_bytes=20,
    peak_allocated_bytes_by_rank=(10, 9),
    peak_reserved_bytes_by_rank=(20, 19),
)


def log_of(folder: Path, steps: range, done: int = 0, num_steps: int = 9) -> None:
    """Write the log of some steps, with an evaluation after each second one."""
    log = StepLog(folder, {"plan": done}, num_steps, done)
    for step in steps:
        log.write(replace(STEP, step=step, loss=float(step + 100 * done)))
        if step % 2 == 0:
            log.record("evaluation", {"step": step, "loss": 0.0})
    log.close()


def test_a_line_is_the_seeds(tmp_path: Path) -> None:
    """The human line has the seed's form, its throughput that of the whole step."""
    log = StepLog(tmp_path, {}, 144, 0)
    line = log.write(STEP)
    log.close()
    assert line == "[Step 1/144] | Loss: 0.8359 | Duration: 0.50 | Throughput: 200.00 tokens/sec"
    assert (tmp_path / "train.log").read_text() == f"{line}\n"


def test_a_continued_log_has_each_step_once(tmp_path: Path) -> None:
    """What is done again replaces what was logged after the checkpoint: steps, lines and evaluations."""
    log_of(tmp_path, range(1, 6))
    log_of(tmp_path, range(4, 8), done=3)
    steps = read_records(tmp_path, "step")
    assert [(step["step"], step["loss"]) for step in steps] == [
        *((n, float(n)) for n in (1, 2, 3)),
        *((n, n + 300.0) for n in (4, 5, 6, 7)),
    ]
    assert [record["step"] for record in read_records(tmp_path, "evaluation")] == [2, 4, 6]
    assert [run["plan"] for run in read_records(tmp_path, "run")] == [0]
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split("/")[0] for line in lines] == [f"[Step {n}" for n in range(1, 8)]


def test_a_line_broken_off_is_dropped(tmp_path: Path) -> None:
    """A log whose last line was not written whole is continued without it."""
    log_of(tmp_path, range(1, 4))
    for name in ("steps.jsonl", "train.log"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text[:-9])
    log_of(tmp_path, range(3, 5), done=2)
    assert [step["step"] for step in read_records(tmp_path, "step")] == [1, 2, 3, 4]
    assert len((tmp_path / "train.log").read_text().splitlines()) == 4


def rotten(text: bytes) -> bytes:
    """Return a log whose end the power took: its last two records are zeros."""
    lines = text.splitlines(keepends=True)
    return b"".join(lines[:-2]) + bytes(sum(map(len, lines[-2:])))


@pytest.mark.parametrize(
    ("damage", "lacks"),
    [
        (lambda text: text[:-9], "; steps that it lacks: 3"),
        (rotten, "; steps that it lacks: 2 to 3"),
        (lambda text: text[:-1], ""),  # a whole record whose end of line was lost
        (lambda text: text.replace(b'"step": 2', b"\xff\xfe", 1), "; steps that it lacks: 2"),
        (lambda text: text.split(b"\n", 1)[1], ""),  # without its first record, which is written anew
    ],
)
def test_a_damaged_log_is_repaired_and_said(tmp_path: Path, damage: Callable[[bytes], bytes], lacks: str) -> None:
    """What is no record is left out, and told with the steps that the log lacks; whole lines stay, and it goes on."""
    log = StepLog(tmp_path, {}, 9, 0)
    for step in (1, 2, 3):
        log.write(replace(STEP, step=step))
    log.close()
    path = tmp_path / "steps.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    log = StepLog(tmp_path, {}, 9, 3)
    log.write(replace(STEP, step=4))
    log.close()
    said = f"steps.jsonl: lines that were damaged and are left out: 1{lacks}"
    assert log.repairs == ([said] if lacks else [])
    assert json.loads(path.read_text().splitlines()[0])["record"] == "run"
    assert read_records(tmp_path, "step")[-1]["step"] == 4


def test_a_log_begins_anew_without_steps_done(tmp_path: Path) -> None:
    """A run that was ended before its first checkpoint leaves nothing in the log of the next."""
    log_of(tmp_path, range(1, 4))
    log_of(tmp_path, range(1, 3))
    assert [step["step"] for step in read_records(tmp_path, "step")] == [1, 2]


def test_the_first_record_is_the_run(tmp_path: Path) -> None:
    """The log's first line says schema and run, also where the run was begun in another folder."""
    log_of(tmp_path, range(4, 6), done=3)
    first = json.loads((tmp_path / "steps.jsonl").read_text().splitlines()[0])
    assert (first["record"], first["schema"], first["plan"]) == ("run", "steps/1", 3)


def test_phases_sum_within_a_step() -> None:
    """Phases of one name add up, all of them fit into the step, and each step begins at 0."""
    watch = Stopwatch(torch.device("cpu"))
    for name in ("data", "compute", "data"):
        with watch.phase(name):
            sum(range(10_000))
    total, phases = watch.end_step()
    assert set(phases) == {"data", "compute"}
    assert 0 < sum(phases.values()) <= total
    assert watch.end_step()[1] == {}


class Passed:
    """An event of a device that passes each a second after the one before, once it is waited for."""

    def __init__(self, made: list["Passed"]) -> None:
        """Take the list of those passed."""
        self.made, self.at_s, self.waits = made, 0.0, 0

    def record(self) -> None:
        """Be passed."""
        self.at_s = float(len(self.made))
        self.made.append(self)

    def synchronize(self) -> None:
        """Be waited for."""
        self.waits += 1

    def elapsed_time(self, end: "Passed") -> float:
        """Return milliseconds until another."""
        assert end.waits
        return 1e3 * (end.at_s - self.at_s)


def test_a_device_is_waited_for_at_the_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases on a device last from event to event, and no event is waited for before the step ends."""
    made: list[Passed] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda *, enable_timing: Passed(made) if enable_timing else None)
    watch = Stopwatch(torch.device("cuda"))
    for name in ("data", "compute", "data"):
        with watch.phase(name):
            pass
    assert [event.waits for event in made] == [0] * 6
    assert watch.end_step()[1] == {"data": 2.0, "compute": 1.0}
    assert watch.end_step()[1] == {}


def test_peak_is_the_process_at_least() -> None:
    """On a processor the peak is the resident memory, and holds what was allocated."""
    before = peak_memory(torch.device("cpu"))
    block = torch.ones(before.allocated_bytes // 4 + 2**22)  # of 4 bytes each
    after = peak_memory(torch.device("cpu"))
    assert after.allocated_bytes >= before.allocated_bytes + 2**22
    assert after.allocated_bytes == after.reserved_bytes
    assert block.numel()


def gathered() -> Gathered:
    """Gather what two ranks have."""
    start_processes(World.from_environment(), torch.device("cpu"))
    rank = dist.get_rank()
    return gather(torch.tensor(0.25 + rank), stop=rank == 1, peak=Peak(2**53 - rank, 2**40 + rank))


@pytest.mark.slow
def test_ranks_agree_on_what_they_gather() -> None:
    """Losses are summed, one rank's wish to stop is everybody's, and bytes arrive exactly."""
    expected = Gathered(1.5, stop=True, allocated_bytes=(2**53, 2**53 - 1), reserved_bytes=(2**40, 2**40 + 1))
    assert run_ranks(2, gathered) == [expected] * 2


def not_a_number() -> float:
    """Gather a loss that is no number."""
    start_processes(World.from_environment(), torch.device("cpu"))
    return gather(torch.tensor(math.nan if dist.get_rank() else 1.0), stop=False, peak=Peak(0, 0)).loss


@pytest.mark.slow
def test_one_ranks_nan_is_everybodys() -> None:
    """A part of the loss that is no number makes the whole one none, on all ranks."""
    assert all(math.isnan(loss) for loss in run_ranks(2, not_a_number))


@pytest.mark.parametrize("kind", ["step", "run", "evaluation"])
def test_records_are_read_by_kind(tmp_path: Path, kind: str) -> None:
    """Only records of the kind asked for are returned."""
    log_of(tmp_path, range(1, 3))
    assert {record["record"] for record in read_records(tmp_path, kind)} == {kind}


def test_a_log_on_a_full_disk_is_written_once_there_is_room(tmp_path: Path) -> None:
    """Lines that the disk does not take, wholly or in part, are held, and follow once it does; what is lost is told."""
    log = StepLog(tmp_path, {}, 9, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = (tmp_path / "steps.jsonl").stat().st_size + 40
    resource.setrlimit(resource.RLIMIT_FSIZE, (full, before[1]))
    try:
        log.record("evaluation", {"step": 1, "loss": 2.0})
        assert (tmp_path / "steps.jsonl").stat().st_size == full
        assert read_records(tmp_path, "evaluation") == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.record("evaluation", {"step": 2, "loss": 1.0})
    assert [record["step"] for record in read_records(tmp_path, "evaluation")] == [1, 2]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        log.record("evaluation", {"step": 3, "loss": 1.0})
        assert log.close() > 20
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
