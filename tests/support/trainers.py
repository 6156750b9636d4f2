"""Trainers that compute nothing: they publish what they would do, hold some memory, and wait."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hardware.smi.jobs import Job, runtime_directory
from hardware.smi.processes import process_start

SOMEBODY = 65534
"""A user that tests do not run as."""

_RANK = """
import sys, time
from hardware.smi.jobs import Job, publish
rank, held = int(sys.argv[1]), bytearray(int(sys.argv[2]))
job = publish(Job(job_id="j", rank=rank, local_device=None, flavor="Small.64GB", process="train", total_steps=9))
held[::4096] = bytes([1]) * len(held[::4096])
job.update(step=1, step_s=0.5, memory_bytes=len(held))
print(job.problem or "ready", flush=True)
while not job.stop_requested:
    time.sleep(0.01)
job.close()
"""


def job(**changes: object) -> Job:
    """Return a job, with some fields changed."""
    fields = {
        "job_id": "j",
        "rank": 0,
        "local_device": None,
        "flavor": "Small.64GB",
        "process": "train",
        "total_steps": 9,
    }
    return Job.model_validate(fields | changes)


@contextmanager
def running_rank(rank: int = 1, held_bytes: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Run a rank of job `j` in a process of its own, that has published one step; at the end, kill it."""
    command = [sys.executable, "-c", _RANK, str(rank), str(held_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def file_of(pid: int) -> Path:
    """Return the file in which a process publishes."""
    return runtime_directory() / f"{pid}-{process_start(pid)}.json"
