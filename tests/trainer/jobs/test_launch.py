"""Ranks of this machine under their launcher: stopped, killed, failing; real processes from their first import."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from torch.distributed.launcher.api import LaunchConfig

from hardware.command import run_command
from tests.support.ranks import Ranks, run_ranks
from tests.support.terminal import PATIENCE_S
from trainer.cli import train_app
from trainer.jobs.launch import Launcher, launch
from trainer.jobs.status import BAD_INPUT, DIVERGED, DONE, FAILED, HUNG, STOPPED
from trainer.jobs.torchrun import run_node
from trainer.measure import read_records

pytestmark = pytest.mark.slow

PLAN = "num_micro_batches=1,batch_per_device=4,zero_stage=3"
MANY = 100_000
"""Steps that no test waits for."""


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


def cache_of(folder: Path) -> dict[str, str]:
    """Return the environment of a run whose rows are tokenised once for all of these tests."""
    return {"XDG_CACHE_HOME": str(folder / "cache")}


def run(command: list[str]) -> int:
    """Be the command, or one of the ranks that its launcher starts: return its exit status."""
    return run_command(train_app, "train", command)


def losses(command: list[str], output: Path, folder: Path) -> list[float]:
    """Return the losses of a run by two ranks, which are forked rather than launched."""
    assert run_ranks(2, run, command, **cache_of(folder)) == [0, 0]
    steps = read_records(output, "step")
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    return [step["loss"] for step in steps]


def launch_as_a_terminal(command: list[str]) -> int:
    """Be the launcher, at the head of a group of processes that Ctrl-C goes to."""
    os.setsid()
    sys.argv = ["train", *command]
    return run(command)


def wait_for_steps(output: Path, is_alive: Callable[[], bool]) -> None:
    """Wait until a run has logged its third step."""
    end, log = time.monotonic() + PATIENCE_S, output / "train.log"
    while not (log.is_file() and "[Step 3/" in log.read_text()):
        assert is_alive()
        assert time.monotonic() < end
        time.sleep(0.1)


@contextmanager
def launched(folder: Path, output: Path, *more: str) -> Iterator[tuple[Ranks, list[psutil.Process]]]:
    """Launch ranks whose run has no end, from a process that needs no imports; yield both, and leave nothing behind."""
    launcher = Ranks(1, launch_as_a_terminal, arguments(folder, output, MANY, *more), environment=cache_of(folder))
    (process,) = launcher.processes
    ranks = []
    try:
        wait_for_steps(output, process.is_alive)
        children = [child for child in psutil.Process(process.pid).children() if "trainer" in child.cmdline()]
        ranks = sorted(children, key=lambda child: int(child.environ()["RANK"]))
        yield launcher, ranks
    finally:
        for rank in ranks:
            if rank.is_running():
                rank.kill()
        process.kill()


def not_of_steps(output: str) -> list[str]:
    """Return the lines of a command that are not those of its steps."""
    return [line for line in output.splitlines() if not line.startswith("[Step ")]


def test_sigterm_to_the_launcher_saves_and_the_run_continues(folder: Path, tmp_path: Path) -> None:
    """SIGTERM to the command ends it with a checkpoint; continued, the losses are the uninterrupted ones."""
    output, whole = tmp_path / "run", tmp_path / "whole"
    command = [sys.executable, "-m", "trainer", *arguments(folder, output, MANY)]
    pipe, environment = subprocess.PIPE, {**os.environ, **cache_of(folder)}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:  # noqa: S603
        family = [psutil.Process(process.pid)]
        try:
            wait_for_steps(output, lambda: process.poll() is None)
            family += family[0].children(recursive=True)
            process.terminate()
            said, errors = process.communicate(timeout=PATIENCE_S)
        finally:
            for left in family:
                if left.is_running():
                    left.kill()
    assert process.returncode == STOPPED, errors
    done = len(read_records(output, "step"))
    assert f"stopped after step {done}; go on with --resume auto --output {output}" in said
    continued = losses(arguments(folder, output, done + 2, "--resume", "auto"), output, folder)
    assert continued == losses(arguments(folder, whole, done + 2), whole, folder)
    assert len(continued) == done + 2


def test_ctrl_c_saves_and_ends(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to the launcher and to its ranks, ends the run with a checkpoint."""
    with launched(folder, tmp_path / "run") as (launcher, _):
        os.killpg(launcher.processes[0].pid or 0, signal.SIGINT)
        (ended,) = launcher.end()
    assert (ended.status, ended.value) == (0, STOPPED), ended.output
    assert "stopped after step" in ended.output
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_killed_rank_ends_all_and_is_named(folder: Path, tmp_path: Path) -> None:
    """When a rank is killed, the others end, and the launcher says which it was."""
    with launched(folder, tmp_path / "run") as (launcher, ranks):
        ranks[1].kill()
        (ended,) = launcher.end()
        assert not any(rank.is_running() for rank in ranks)
    assert (ended.status, ended.value) == (0, 1), ended.output
    assert not_of_steps(ended.output) == ["rank 1 was killed by SIGKILL; all ranks were ended"]


def test_ranks_begin_again_at_the_newest_checkpoint(folder: Path, tmp_path: Path) -> None:
    """With --max-restarts a killed rank costs the steps since the last checkpoint, where all begin again."""
    output, said = tmp_path / "run", "beginning again at the newest checkpoint, 1 of 1 times\n"
    with launched(folder, output, "--checkpoint-every", "2", "--max-restarts", "1") as (launcher, ranks):
        end = time.monotonic() + PATIENCE_S
        while not list(output.glob("checkpoints/step-*")):  # written while training goes on
            assert time.monotonic() < end, launcher.output(0)
            time.sleep(0.05)
        ranks[1].kill()
        launcher.wait_for(said)
        end = time.monotonic() + PATIENCE_S
        while "[Step " not in launcher.output(0).partition(said)[2]:
            assert time.monotonic() < end, launcher.output(0)
            time.sleep(0.05)
        launcher.processes[0].terminate()
        (ended,) = launcher.end()
    assert ended.value == STOPPED, ended.output
    before, _, after = ended.output.partition(said)
    assert not_of_steps(before) == ["rank 1 was killed by SIGKILL; all ranks were ended"]
    first = int(next(line for line in after.splitlines() if line.startswith("[Step ")).split("/")[0][6:])
    assert first > 1
    assert first % 2 == 1
    steps = [step["step"] for step in read_records(output, "step")]
    assert steps == list(range(1, len(steps) + 1))


def test_a_rank_that_stands_still_is_named_and_ends_all(folder: Path, tmp_path: Path) -> None:
    """A stopped rank is told within the time asked for, with where it was and what is waited in; nothing is left."""
    output = tmp_path / "run"
    with launched(folder, output, "--hang-timeout", "3") as (launcher, ranks):
        ranks[1].suspend()
        began = time.monotonic()
        (ended,) = launcher.end()
        assert not any(rank.is_running() for rank in ranks)
    assert 3 < time.monotonic() - began < PATIENCE_S / 2
    assert ended.value == HUNG, ended.output
    (line,) = not_of_steps(ended.output)
    assert line.startswith(f"rank 1 stopped or cut off (process {ranks[1].pid} on "), line
    assert "; rank 0 waits in " in line
    collective = re.search(r"; rank 0 waits in \w+ of step \d+ \((all_gather|reduce_scatter|all_reduce)\w*\);", line)
    assert collective, line  # of weights, of gradients, or of their norm
    assert "nothing was heard of it for" in line or "no phase has ended for" in line
    assert line.endswith(f"longer than --hang-timeout (3 s here); stacks in {output}/errors")
    assert collective[1] in (output / "errors" / "rank-0.txt").read_text()


def node(port: int, command: list[str]) -> int:
    """Be the launcher of one of two nodes, with a rank each."""
    os.setsid()
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two", "--local-addr=localhost"]
    return run_node([*options, f"--rdzv-endpoint=localhost:{port}", "-m", "trainer", *command])


def test_a_node_that_is_told_to_end_ends_all_with_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    """SIGTERM to one of two nodes: the ranks of both save, and both end with the status of what may go on."""
    output = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = (port, arguments(folder, output, MANY))
    nodes = [Ranks(1, node, *words, environment=cache_of(folder)) for _ in range(2)]
    processes = [started.processes[0] for started in nodes]
    try:
        wait_for_steps(output, processes[0].is_alive)
        os.kill(processes[1].pid or 0, signal.SIGTERM)
        ended = [started.end()[0] for started in nodes]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
    assert [each.value for each in ended] == [STOPPED, STOPPED], [each.output for each in ended]
    (checkpoint,) = (output / "checkpoints").iterdir()
    assert int(checkpoint.name.removeprefix("step-")) == len(read_records(output, "step"))
    assert sum("stopped after step" in each.output for each in ended) == 1


def test_a_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hands the ranks a SIGTERM, which they save for; Ctrl-C after that kills them; SIGTERM never does."""
    sent: list[int] = []
    rank = SimpleNamespace(send_signal=sent.append)
    monkeypatch.setattr("trainer.jobs.launch.psutil.Process", lambda: SimpleNamespace(children=lambda: [rank]))
    launcher = Launcher()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        launcher._hand_over(number, None)  # noqa: SLF001 - the handler of signals
    assert sent == [signal.SIGTERM, signal.SIGTERM, signal.SIGKILL]
    assert launcher.is_interrupted


def test_a_stop_while_no_rank_runs_ends_the_launch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that waits for the others to come ends at once, with the status of what may go on."""
    monkeypatch.setattr(
        "trainer.jobs.launch.elastic_launch", lambda *_: lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    monkeypatch.setattr("trainer.jobs.launch.psutil.Process", lambda: SimpleNamespace(children=list))
    assert launch(1, []) == STOPPED
    assert capsys.readouterr().err == "stopped before the ranks began: there was nothing to save\n"


def test_ranks_begin_again_unless_it_would_be_so_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What failed or stood still begins again at the newest checkpoint, as often as asked; what was stopped not."""
    ends: list[int] = []
    words: list[list[str]] = []

    def once(_: Launcher, config: LaunchConfig, __: str, arguments: list[str]) -> int:
        words.append([config.run_id, *arguments])
        return ends.pop(0)

    monkeypatch.setattr(Launcher, "_run_once", once)
    for given, status, times in (
        ([FAILED, HUNG, DONE], DONE, 3),
        ([FAILED, FAILED, HUNG], HUNG, 3),
        ([FAILED, STOPPED], STOPPED, 2),
        ([BAD_INPUT], BAD_INPUT, 1),
        ([DIVERGED], DIVERGED, 1),
    ):
        ends[:], words[:] = given, []
        assert launch(2, ["first"], again=["again"], restarts=2) == status
        assert len(words) == times
        assert len({run_id for run_id, *_ in words}) == times  # a rendezvous each
        assert [each[3:] for each in words] == [["first"], *[["again"]] * (times - 1)]
    assert "beginning again at the newest checkpoint, 2 of 2 times" in capsys.readouterr().err


def test_another_program_is_not_started(capsys: pytest.CaptureFixture[str]) -> None:
    """What would not know of the ranks' exit statuses is refused in one line."""
    assert run_node(["--nproc-per-node=1", "train.py"]) == BAD_INPUT
    assert capsys.readouterr().err == "torchrun: '--nproc-per-node=1 train.py' is not OPTIONS -m trainer ARGUMENTS\n"


def fault(command: list[str]) -> int:
    """Launch ranks of which one fails."""
    return launch(2, command, "tests.support.faulty")


def test_a_failing_rank_ends_all_and_its_cause_is_named(folder: Path, tmp_path: Path) -> None:
    """An exception in one rank ends the others, and the launcher's last line says which rank and why, in one line."""
    output = tmp_path / "run"
    output.mkdir()
    command = arguments(folder, output, MANY)
    (rank,) = Ranks(1, fault, command, environment=cache_of(folder)).end()
    assert (rank.status, rank.value) == (0, 1)
    file = output / "errors" / "rank-1.txt"
    assert not_of_steps(rank.output) == [f"rank 1 failed: RuntimeError: a fault of this test; traceback in {file}"]
    assert "in fail" in file.read_text()
    assert len(read_records(output, "step")) == 1
