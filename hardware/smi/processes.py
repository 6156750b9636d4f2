"""Processes of this machine: which one a PID means, and the memory it holds."""

import os
import time
from collections.abc import Collection
from pathlib import Path

import psutil

_STAT = "/proc/{}/stat"


def process_start(pid: int) -> int | None:
    """Return when a process started [hundredths of a second since boot]; None where no such process runs.

    With its PID it names a process for good: a PID is used again, its start is not. Counted from boot because the wall
    clock may be set while the process runs. What has ended and was not yet collected by its parent does not run.
    """
    if pid <= 0:
        return None
    if not Path(_STAT.format("self")).exists():  # not Linux
        return _start_by_wall_clock(pid)
    try:
        stat = Path(_STAT.format(pid)).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # after the name, which may hold anything; proc_pid_stat(5)
    state, start = fields[0], fields[19]
    return None if state in "ZXx" else int(start) * 100 // os.sysconf("SC_CLK_TCK")


def _start_by_wall_clock(pid: int) -> int | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return round(process.create_time() * 100)
    except psutil.Error:
        return None


def resident_bytes(pid: int) -> int | None:
    """Return the memory that a process holds in this machine's memory [bytes]; None where it cannot be read."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def owner_of(pid: int) -> int | None:
    """Return the user as whom a process runs; None where there is no such process, or no such notion."""
    try:
        return int(psutil.Process(pid).uids().effective)
    except psutil.Error:
        return None


def busy_fractions(pids: Collection[int], interval_s: float) -> dict[int, float]:
    """Return the part of this machine's cores that each process keeps busy, watched for an interval."""
    if not pids:
        return {}
    before = {pid: _processor_s(pid) for pid in pids}
    began = time.monotonic()
    time.sleep(interval_s)
    available_s = (time.monotonic() - began) * (psutil.cpu_count() or 1)
    return {pid: max(_processor_s(pid) - before[pid], 0.0) / available_s for pid in pids}


def _processor_s(pid: int) -> float:
    try:
        used = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(used.user + used.system)
