import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from hardware.smi import processes
from hardware.smi.processes import busy_fractions, owner_of, process_start, resident_bytes
from tests.support.terminal import PATIENCE_S
from tests.support.trainers import running_rank

pytestmark = pytest.mark.usefixtures("home")

GONE = 2**30
"""No PID is as large."""


def test_a_start_agrees_with_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start since boot differs from the one that psutil reckons by the time of the boot alone."""
    assert process_start(os.getpid()) == pytest.approx(
        (psutil.Process().create_time() - psutil.boot_time()) * 100, abs=1
    )
    monkeypatch.setattr(processes, "_STAT", "/nowhere/{}")
    assert process_start(os.getpid()) == pytest.approx(psutil.Process().create_time() * 100, abs=1)
    assert process_start(GONE) is None


def test_a_name_cannot_mislead() -> None:
    """A process's name, which may hold brackets and spaces, does not shift what is read behind it."""
    script = "exec -a ignored sh -c 'printf \") R 1 (\" > /proc/self/comm; echo; read line'"
    with subprocess.Popen(["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S607, S603
        assert process.stdout
        process.stdout.readline()
        expected = (psutil.Process(process.pid).create_time() - psutil.boot_time()) * 100
        assert process_start(process.pid) == pytest.approx(expected, abs=1)
        process.kill()


@pytest.mark.parametrize("pid", [GONE, 0, -1])
def test_what_does_not_run(pid: int) -> None:
    """Of a PID that no process has, nothing is known."""
    assert process_start(pid) is None
    assert busy_fractions([GONE], 0) == {GONE: 0}
    assert resident_bytes(GONE) is owner_of(GONE) is None


def test_a_zombie_does_not_run() -> None:
    """A process that has ended does not run, though its parent has not collected it."""
    with subprocess.Popen(["sleep", "60"]) as process:  # noqa: S607
        assert process_start(process.pid) is not None
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_start(process.pid) is None


def test_memory_is_what_the_kernel_counts() -> None:
    """The memory of a process is that of its status in /proc."""
    with running_rank(held_bytes=50_000_000) as process:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        held = resident_bytes(process.pid)
    assert held == pytest.approx(int(status["VmRSS"].split()[0]) * 1024, rel=0.02)
    assert held > 50_000_000


def test_a_busy_process_and_a_sleeping_one() -> None:
    """A process that computes keeps at most one core busy and more than one that sleeps."""
    commands = (["sh", "-c", "while :; do :; done"], ["sleep", str(PATIENCE_S)])
    busy, idle = (subprocess.Popen(command) for command in commands)  # noqa: S603
    try:
        found = busy_fractions([busy.pid, idle.pid], 0.5)
        while not found[busy.pid]:  # where others keep all cores busy
            found = busy_fractions([busy.pid, idle.pid], 0.5)
    finally:
        for process in (busy, idle):
            process.kill()
            process.wait()
    assert found[idle.pid] < found[busy.pid] <= 1.2 / (os.cpu_count() or 1)
