import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.smi import jobs
from hardware.smi.jobs import PublishedJob, publish, request_stop, running_jobs, runtime_directory
from hardware.smi.processes import process_start
from hardware.smi.selection import ChosenAccelerator, Selection, save_selection, selection_lock
from tests.support.terminal import PATIENCE_S
from tests.support.trainers import SOMEBODY, file_of, job, running_rank

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def rank() -> Iterator[subprocess.Popen[str]]:
    """Return a process that has published rank 1 of a job, and waits."""
    with running_rank() as process:
        yield process


def files() -> list[str]:
    """Return the names in the runtime directory."""
    return sorted(path.name for path in runtime_directory().iterdir())


def test_what_is_published_is_read() -> None:
    """A reader finds what the rank said of itself and its last update, as long as it is not closed."""
    mine = job(predicted_step_s=20.8, predicted_memory_bytes=4e10)
    with publish(mine) as published:
        assert published.problem == ""
        published.update(step=3, step_s=0.25, memory_bytes=1e6)
        [found] = running_jobs().jobs
        assert (found.job, found.pid, found.device) == (mine, os.getpid(), 0)
        assert (found.step, found.step_s, found.memory_bytes) == (3, 0.25, 1e6)
        assert files() == [file_of(os.getpid()).name]
    assert running_jobs().jobs == ()
    assert files() == []


def test_processes_beside_each_other(rank: subprocess.Popen[str]) -> None:
    """Ranks of two processes are both found, in the order of their ranks."""
    with publish(job()):
        assert [(found.pid, found.job.rank) for found in running_jobs().jobs] == [(os.getpid(), 0), (rank.pid, 1)]


def test_a_killed_rank_leaves_nothing(rank: subprocess.Popen[str]) -> None:
    """After SIGKILL, even before the parent collects the process, the next reader finds no job and removes its file."""
    assert len(running_jobs().jobs) == 1
    rank.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
    assert running_jobs().jobs == ()
    assert files() == []


def test_a_stopped_rank_is_there(rank: subprocess.Popen[str]) -> None:
    """A rank that is suspended, and publishes nothing new, is still shown: it holds the accelerator."""
    rank.send_signal(signal.SIGSTOP)
    assert [found.pid for found in running_jobs().jobs] == [rank.pid]


def test_a_pid_used_again_is_not_trusted(rank: subprocess.Popen[str]) -> None:
    """A file whose PID runs, but was started at another time, is not trusted, and removed."""
    path = file_of(rank.pid)
    older = {**json.loads(path.read_text()), "start": 1}
    path.unlink()
    path.with_name(f"{rank.pid}-1.json").write_text(json.dumps(older))
    assert running_jobs().jobs == ()
    assert files() == []


def test_a_file_under_anothers_name_is_not_trusted(rank: subprocess.Popen[str]) -> None:
    """A file that speaks of another process than its name does is not trusted."""
    path = file_of(rank.pid)
    path.rename(file_of(os.getpid()))
    assert running_jobs().jobs == ()


@AS_ROOT
def test_another_users_file_is_not_trusted(rank: subprocess.Popen[str]) -> None:
    """A file that another user owns is not trusted, whatever it says."""
    os.chown(file_of(rank.pid), SOMEBODY, SOMEBODY)
    assert running_jobs().jobs == ()


@AS_ROOT
def test_another_users_process_is_not_trusted() -> None:
    """A file of this user about a process that runs as another user is not trusted."""
    with publish(job()):
        text = next(runtime_directory().iterdir()).read_text()
    with subprocess.Popen(["sleep", "60"], user=SOMEBODY) as theirs:  # noqa: S607
        path = file_of(theirs.pid)
        path.write_text(json.dumps(json.loads(text) | {"pid": theirs.pid, "start": process_start(theirs.pid)}))
        path.chmod(0o600)
        assert running_jobs().jobs == ()
        theirs.kill()


def test_a_file_that_others_can_write_is_not_trusted(rank: subprocess.Popen[str]) -> None:
    """A file that its group can write is not trusted."""
    file_of(rank.pid).chmod(0o620)
    assert running_jobs().jobs == ()


def test_a_link_is_not_followed(rank: subprocess.Popen[str], tmp_path: Path) -> None:
    """A link in the place of a file is not trusted, even where what it points to would be."""
    path = file_of(rank.pid)
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    assert running_jobs().jobs == ()


def test_a_pipe_does_not_hang(rank: subprocess.Popen[str]) -> None:
    """A pipe in the place of a file is not waited for."""
    path = file_of(rank.pid)
    path.unlink()
    os.mkfifo(path, 0o600)
    assert running_jobs().jobs == ()


@given(junk=st.binary(max_size=300) | st.sampled_from([b"[" * 100_000, b'{"schema": "job/2"}', b"null", b"9" * 9999]))
def test_junk_is_not_trusted(junk: bytes) -> None:
    """Whatever stands in a file that no trainer wrote, reading neither fails nor finds a job."""
    with publish(job()):
        path = file_of(os.getpid())
        path.write_bytes(junk)
        assert running_jobs() == ((), "")


@pytest.mark.parametrize(
    "change",
    [{"step": -1}, {"step_s": float("nan")}, {"memory_bytes": "much"}, {"device": 9}, {"more": 1}, {"job": {}}],
)
def test_impossible_values_are_not_trusted(change: dict[str, object], rank: subprocess.Popen[str]) -> None:
    """A file with one value that no trainer writes is not trusted."""
    path = file_of(rank.pid)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert running_jobs().jobs == ()


def test_files_of_other_names_are_left_alone(rank: subprocess.Popen[str]) -> None:
    """What is not named as a trainer names its file is neither read nor removed."""
    others = ["notes.txt", f"{rank.pid}.json", "1-1-1.json"]
    for name in others:
        (runtime_directory() / name).write_text("{}")
    assert [found.pid for found in running_jobs().jobs] == [rank.pid]
    assert set(others) < set(files())


def test_drafts_and_requests_of_the_dead_are_removed() -> None:
    """Whatever an ended process left, the draft of a file and a request to stop too, goes at the next reading."""
    with publish(job()):
        for name in ("1-7.json", "1-7.stop", ".1-7.1.tmp"):
            (runtime_directory() / name).write_text("")
        running_jobs()
        assert files() == [file_of(os.getpid()).name]


_WRITER = """
import itertools
from hardware.smi.jobs import publish
from tests.support.trainers import job
with publish(job(process="x" * 200, total_steps=2**39)) as published:
    print("ready", flush=True)
    for step in itertools.count():
        published.update(step=step, step_s=1e-3, memory_bytes=float(step))
"""


def test_a_reader_never_sees_half_a_file() -> None:
    """While a rank updates as fast as it can, each reading finds it whole, and steps only grow."""
    with subprocess.Popen([sys.executable, "-c", _WRITER], stdout=subprocess.PIPE, text=True) as writer:  # noqa: S603
        try:
            assert writer.stdout
            assert writer.stdout.readline() == "ready\n"
            steps: list[int] = []
            while len(set(steps)) < 100:
                (found,) = running_jobs().jobs
                steps.append(found.step)
        finally:
            writer.kill()
    assert steps == sorted(steps)


def test_a_typical_step_is_not_the_first() -> None:
    """The first step stands for the others until there is one; then the median of the recent ones does."""
    with publish(job()) as published:
        published.update(step=1, step_s=66.0, memory_bytes=0)
        assert running_jobs().jobs[0].typical_step_s == 66.0
        for step, step_s in enumerate((20.0, 24.0, 21.0), start=2):
            published.update(step=step, step_s=step_s, memory_bytes=0)
        assert running_jobs().jobs[0].typical_step_s == 21.0


def test_a_run_is_asked_to_stop(rank: subprocess.Popen[str]) -> None:
    """A request reaches each rank of the accelerator, and the readers; a later run does not inherit it."""
    with publish(job()) as published:
        assert not published.stop_requested
        assert {asked.pid for asked in request_stop(0)} == {os.getpid(), rank.pid}
        assert published.stop_requested
        assert rank.wait(timeout=PATIENCE_S) == 0
        assert [(found.pid, found.is_stopping) for found in running_jobs().jobs] == [(os.getpid(), True)]
    assert not publish(job()).stop_requested
    with pytest.raises(ValueError, match="device 1: no training run uses it; there is nothing to stop"):
        request_stop(1)


def test_a_job_uses_the_current_accelerator() -> None:
    """A job is on the accelerator that is current when it publishes, and its later ranks are where the first one is."""
    two = (ChosenAccelerator(device=0, flavor="small"), ChosenAccelerator(device=3, flavor="large"))
    with selection_lock():
        save_selection(Selection(current=3, accelerators=two))
    with publish(job()):
        save_selection(Selection(current=0, accelerators=two))
        state = jobs._device_of(job(rank=1))  # noqa: SLF001 - a second rank of this process would take its file
        assert state == running_jobs().jobs[0].device == 3
        assert jobs._device_of(job(job_id="other")) == 0  # noqa: SLF001


def test_publishing_waits_for_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the choice is being changed no trainer publishes; when it is done, one does."""
    monkeypatch.setattr(jobs, "_LOCK_TIMEOUT_S", PATIENCE_S)
    with ThreadPoolExecutor() as pool:
        with selection_lock():
            started = pool.submit(publish, job())
            with pytest.raises(TimeoutError):
                started.result(timeout=0.2)
            assert running_jobs().jobs == ()
        with started.result():
            assert len(running_jobs().jobs) == 1


def test_a_held_choice_does_not_keep_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A switcher that never ends keeps a trainer for seconds only."""
    monkeypatch.setattr(jobs, "_LOCK_TIMEOUT_S", 0.1)
    with ThreadPoolExecutor() as pool, selection_lock(), pool.submit(publish, job()).result():
        assert len(running_jobs().jobs) == 1


@pytest.mark.parametrize("obstacle", ["file", "open", "foreign"])
def test_a_trainer_without_a_runtime_directory_trains(obstacle: str, home: Path) -> None:
    """Where nothing can be published, nothing is raised, the reason is told, and nothing is written."""
    directory = home / "XDG_RUNTIME_DIR" / "foretrain"
    match obstacle:
        case "file":
            directory.write_text("")
            reason = "is a link or a file, not a directory; remove it"
        case "open":
            directory.mkdir(mode=0o755)
            reason = r"others can enter it (mode 0755); chmod it to 0700"
        case _:
            if os.geteuid() != 0:
                pytest.skip("only root gives directories away")
            directory.mkdir(mode=0o700)
            os.chown(directory, SOMEBODY, SOMEBODY)
            reason = f"belongs to user {SOMEBODY}, not to 0; have it removed"
    with publish(job()) as published:
        assert published.problem == f"this run is not shown by smi: {directory}: {reason}"
        published.update(step=1, step_s=1.0, memory_bytes=1.0)
        assert not published.stop_requested
        assert running_jobs() == ((), f"{directory}: {reason}")
    assert directory.is_file() or list(directory.iterdir()) == []


def test_no_directory_that_can_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another user has taken every place for a runtime directory, that is told, and nothing is raised."""

    def taken(**_: object) -> Path:
        raise PermissionError("/run/user/7 is owned by\nsomebody")

    monkeypatch.setattr(jobs, "user_runtime_path", taken)
    told = "/run/user/7 is owned by somebody"
    assert (
        running_jobs().problem == f"the runtime directory cannot be read: {told}; set XDG_RUNTIME_DIR to one of yours"
    )
    assert publish(job()).problem == f"this run is not shown by smi: its state cannot be written: {told}"


def test_a_full_disk_does_not_end_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk takes no more, updates pass silently, what was told stays, and it goes on once there is room."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with publish(job()) as published:
        with monkeypatch.context() as at_the_limit:
            at_the_limit.setattr(os, "open", full)
            published.update(step=1, step_s=1.0, memory_bytes=1.0)
            assert publish(job()).problem == (
                "this run is not shown by smi: its state cannot be written: No space left on device"
            )
        assert running_jobs().jobs[0].step == 0
        published.update(step=2, step_s=1.0, memory_bytes=1.0)
        assert running_jobs().jobs[0].step == 2


def test_a_directory_that_went_comes_back(home: Path) -> None:
    """After the last logout took the runtime directory away and a login brought it back, the next update is seen."""
    runtime = home / "XDG_RUNTIME_DIR"
    with publish(job()) as published:
        (runtime / "foretrain").rename(home / "gone")
        runtime.rmdir()
        published.update(step=1, step_s=1.0, memory_bytes=1.0)
        assert not runtime.exists()
        runtime.mkdir(mode=0o700)
        published.update(step=2, step_s=1.0, memory_bytes=1.0)
        assert running_jobs().jobs[0].step == 2


def test_closing_twice_is_closing_once() -> None:
    """After it is closed a job can be closed and updated again, to no effect."""
    published = publish(job())
    published.close()
    published.close()
    published.update(step=1, step_s=1.0, memory_bytes=1.0)
    assert isinstance(published, PublishedJob)
    assert files() == []
