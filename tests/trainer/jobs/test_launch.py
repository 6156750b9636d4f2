"""Ranks of this machine under their launcher: stopped, killed, failing; with real processes from their first import."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.ranks import Ranks
from tests.support.tiny import write_work
from trainer.jobs.launch import launch
from trainer.measure import read_records

PLAN = "num_micro_batches=1,batch_per_device=4,zero_stage=3"
MANY = 100_000
"""Steps that no test waits for."""
IMPORTS_S = 300.0
"""Most that processes may take to come up, on a machine that does much else."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint and rows."""
    folder = tmp_path_factory.mktemp("work")
    write_work(folder)
    return folder


def arguments(folder: Path, output: Path, steps: int, *more: str) -> list[str]:
    """Return the command line of a run."""
    options = {
        "--model": folder / "checkpoint",
        "--tokenizer": folder / "tokenizer",
        "--dataset": folder / "rows.jsonl",
        "--seq-len": 72,
        "--batch": 8,
        "--steps": steps,
        "--lr": 1e-3,
        "--precision": "fp32",
        "--output": output,
        "--plan": PLAN,
        "--nproc": 2,
        "--stack": "moai-24.2",
    }
    return [*(str(part) for option in options.items() for part in option), "--no-export", *more]


def started(folder: Path, output: Path, steps: int, *more: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the command, in a session of its own as a terminal does; end all of it afterwards."""
    command = [sys.executable, "-m", "trainer", *arguments(folder, output, steps, *more)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)  # noqa: S603
    family = []
    try:
        end = time.monotonic() + IMPORTS_S
        log = output / "train.log"
        while steps == MANY and not (log.is_file() and "[Step 3/" in log.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        yield process
    finally:
        for left in family:
            if left.is_running():
                left.kill()
        process.kill()
        process.communicate()


def ranks_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the ranks that a launcher has started."""
    found = [child for child in psutil.Process(process.pid).children() if "trainer" in child.cmdline()]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


def test_sigterm_to_the_launcher_saves_and_the_run_continues(folder: Path, tmp_path: Path) -> None:
    """SIGTERM to the launcher ends it well, with a checkpoint; continued, the losses are the uninterrupted ones."""
    output = tmp_path / "run"
    for process in started(folder, output, MANY):
        process.terminate()
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    done = len(read_records(output, "step"))
    assert f"stopped after step {done}; go on with --resume auto --output {output}" in said
    for process in started(folder, output, done + 2, "--resume", "auto"):
        assert process.wait(timeout=IMPORTS_S) == 0
    steps = read_records(output, "step")
    assert [step["step"] for step in steps] == list(range(1, done + 3))
    for process in started(folder, tmp_path / "whole", done + 2):
        assert process.wait(timeout=IMPORTS_S) == 0
    assert [step["loss"] for step in steps] == [step["loss"] for step in read_records(tmp_path / "whole", "step")]


def test_ctrl_c_saves_and_ends(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to the launcher and to its ranks, ends the run well, with a checkpoint."""
    for process in started(folder, tmp_path / "run", MANY):
        os.killpg(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "stopped after step" in said
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_killed_rank_ends_all_and_is_named(folder: Path, tmp_path: Path) -> None:
    """When a rank is killed, the others end within seconds, and the launcher says which it was."""
    for process in started(folder, tmp_path / "run", MANY):
        ranks = ranks_of(process)
        ranks[1].kill()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert errors.splitlines()[-1] == "rank 1 was killed by SIGKILL; all ranks were ended"
        assert not any(rank.is_running() for rank in ranks)


def fault(command: list[str]) -> int:
    """Launch ranks of which one fails."""
    return launch(2, command, "tests.support.faulty")


def test_a_failing_rank_ends_all_and_its_cause_is_named(folder: Path, tmp_path: Path) -> None:
    """An exception in one rank ends the others, and the launcher's last line says which rank and why, in one line."""
    output = tmp_path / "run"
    output.mkdir()
    command = arguments(folder, output, MANY)
    (rank,) = Ranks(1, fault, command, environment={"XDG_CACHE_HOME": str(folder / "cache")}).end(IMPORTS_S)
    assert (rank.status, rank.value) == (0, 1)
    last = rank.output.splitlines()[-1]
    assert last == "rank 1 failed: RuntimeError: a fault of this test; all ranks were ended"
    assert len(read_records(output, "step")) == 1
