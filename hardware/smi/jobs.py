"""Running trainers: what each rank publishes in the user's runtime directory, read back only when it can be trusted.

A rank writes one file, named after its process, and writes it anew after each step. A file is trusted if its owner is
this user and the process that it names, by PID and start, runs as this user. The next reader removes what is left of
processes that have ended, however they ended.
"""

import json
import os
import re
import stat
import statistics
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NamedTuple, Self

from platformdirs import user_runtime_path
from pydantic import Field

from hardware.files import check_private_directory, make_private_directory, told, write_atomically
from hardware.models import FlavorName, Name, Record
from hardware.smi.processes import owner_of, process_start
from hardware.smi.selection import DeviceId, load_selection, selection_lock

Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_SCHEMA = "job/1"
_FILE = re.compile(r"\.?([0-9]{1,10})-([0-9]{1,20})\.(?:json|stop|[0-9]+\.tmp)")
_LARGEST_FILE_BYTES = 65536
_LOCK_TIMEOUT_S = 2.0
"""A trainer starts anyway after this."""

_VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

_RECENT_STEPS = 20
"""Steps whose median says how long the next ones take: host paces alternate, and a single step would jump."""


class Job(Record):
    """What a rank says of itself before its first step."""

    job_id: Name
    """The same on every rank of the run."""

    rank: Annotated[int, Field(ge=0)]
    local_device: Annotated[int, Field(ge=0)] | None
    """Index of its device among those that its process sees; None where it computes on the processor."""

    flavor: FlavorName
    process: Name
    """What runs, as the table of processes shows it, such as `train --plan best`."""

    total_steps: Annotated[int, Field(strict=True, ge=1, lt=2**40)]
    predicted_step_s: Finite | None = None
    """Seconds per step as estimated; None where there is no estimate."""

    predicted_memory_bytes: Finite | None = None
    """Peak memory per device as estimated [bytes]; None where there is no estimate."""


class RunningJob(Record):
    """What a running rank published last."""

    job: Job
    pid: Annotated[int, Field(gt=0)]
    start: int
    """As of `process_start`."""

    device: DeviceId
    """Device number of the accelerator that it uses."""

    visible_devices: str = ""
    """What the environment let its process see of this machine's devices; "" for all."""

    step: Annotated[int, Field(ge=0)] = 0
    """Steps done."""

    step_s: Finite | None = None
    """Seconds of the last step; None before the first has ended."""

    typical_step_s: Finite | None = None
    """Median of its recent steps [s], the first of all left out where there are others."""

    memory_bytes: Finite | None = None
    """Memory that the trainer counted in the last step [bytes], the quantity that was predicted."""

    updated: Finite
    """When it was written [s since the epoch]."""

    is_stopping: bool = False
    """Whether it was asked to stop; a reader finds out."""


class RunningJobs(NamedTuple):
    """What runs, as far as it can be trusted."""

    jobs: tuple[RunningJob, ...] = ()
    """By device, job and rank."""

    problem: str = ""
    """Why nothing can be read, and the mend; "" where it can."""


class PublishedJob:
    """A rank's own file, for as long as it trains; made by `publish`.

    What a training loop calls (`update`, `stop_requested`, `close`) raises nothing, whatever the disk does.
    """

    def __init__(self, state: RunningJob, directory: Path | None, problem: str) -> None:
        """Take what the rank said of itself, and where to write it; None for nowhere."""
        self.problem = problem
        """Why `smi` cannot see this run, and the mend; "" where it can."""

        name = f"{state.pid}-{state.start}"
        self._document: dict[str, Any] = {"schema": _SCHEMA, **state.model_dump(mode="json")}
        self._file = directory / f"{name}.json" if directory else None
        self._stop = str(directory / f"{name}.stop") if directory else ""
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._num_updates = 0

    def update(self, *, step: int, step_s: float, memory_bytes: float) -> None:
        """Tell how far the rank is; takes some 0.3 ms on a disk, less in memory.

        Args:
            step: steps done.
            step_s: seconds of the last one, end to end.
            memory_bytes: the rank's memory as its trainer counts it, comparable with what was predicted.
        """
        self._num_updates += 1
        if self._num_updates == 2:
            self._recent.clear()  # the first step compiles, and says nothing of the others
        self._recent.append(step_s)
        self._document |= {
            "step": step,
            "step_s": step_s,
            "typical_step_s": statistics.median(self._recent),
            "memory_bytes": memory_bytes,
        }
        with suppress(OSError, TypeError, ValueError):
            self.write()

    @property
    def stop_requested(self) -> bool:
        """Whether `smi -r` asked the run to write a checkpoint and stop.

        Ranks may see it a step apart, and only those of the machine where it was asked: agree on it (all-reduce the
        maximum) before acting on it.
        """
        return os.path.exists(self._stop)  # noqa: PTH110 - asked at each step: a string is enough

    def close(self) -> None:
        """Take the file away. Without this the next reader does, once the process has ended."""
        for path in (self._file, Path(self._stop)) if self._file else ():
            with suppress(OSError):
                path.unlink()
        self._file = None

    def write(self) -> None:
        """Write what is known now, as `publish` does to see whether it can be written.

        Raises:
            OSError: the directory takes no file.
            ValueError: the directory is not private any more.
        """
        if self._file is None:
            return
        self._document["updated"] = time.time()
        text = json.dumps(self._document)
        try:
            write_atomically(self._file, text, durable=False)
        except FileNotFoundError:  # the last logout takes the runtime directory away, the next login brings it back
            make_private_directory(self._file.parent)
            write_atomically(self._file, text, durable=False)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def publish(job: Job) -> PublishedJob:
    """Publish what this process trains, for `smi` to show and `switch-model` to respect.

    Call it in each rank's process as soon as the flavor is known, before the model is loaded: from then until `close`,
    or the end of the process, the accelerator counts as used. It never raises: a trainer without a writable runtime
    directory trains unseen, and the `problem` of what is returned says so.

    >>> with publish(Job(job_id="1", rank=0, local_device=0, flavor="small", process="train", total_steps=2)) as mine:
    ...     mine.update(step=1, step_s=0.5, memory_bytes=2**30)
    ...     mine.stop_requested
    False
    """
    pid = os.getpid()
    visible = next((os.environ[name] for name in _VISIBLE_DEVICES if os.environ.get(name)), "")
    state = RunningJob(
        job=job,
        pid=pid,
        start=process_start(pid) or 0,
        device=0,
        visible_devices=visible,
        updated=time.time(),
    )
    try:
        directory = runtime_directory()
        make_private_directory(directory)
        with _selection_lock_if_possible():
            published = PublishedJob(state.model_copy(update={"device": _device_of(job)}), directory, "")
            published.write()
    except OSError as error:
        return PublishedJob(state, None, f"this run is not shown by smi: its state cannot be written: {told(error)}")
    except ValueError as error:
        return PublishedJob(state, None, f"this run is not shown by smi: {error}")
    return published


def running_jobs() -> RunningJobs:
    """Return what running ranks of this user published on this machine; remove what ended processes left."""
    try:
        directory = runtime_directory()
        check_private_directory(directory)
        paths = sorted(directory.iterdir())
    except FileNotFoundError:
        return RunningJobs()
    except OSError as error:
        return RunningJobs(
            problem=f"the runtime directory cannot be read: {told(error)}; set XDG_RUNTIME_DIR to one of yours"
        )
    except ValueError as error:
        return RunningJobs(problem=str(error))
    alive = [path for path in paths if not _removed_as_stale(path)]
    found = [_trusted(path) for path in alive if path.suffix == ".json"]
    jobs = sorted((job for job in found if job), key=lambda job: (job.device, job.job.job_id, job.job.rank, job.pid))
    return RunningJobs(tuple(jobs))


def request_stop(device: int) -> tuple[RunningJob, ...]:
    """Ask the runs of an accelerator to write a checkpoint and stop; return the ranks that were asked.

    Raises:
        ValueError: nothing trains on it, or it cannot be asked.
    """
    jobs = tuple(job for job in running_jobs().jobs if job.device == device)
    if not jobs:
        raise ValueError(f"device {device}: no training run uses it; there is nothing to stop")
    try:
        for job in jobs:
            write_atomically(runtime_directory() / f"{job.pid}-{job.start}.stop", "", durable=False)
    except OSError as error:
        raise ValueError(f"device {device}: its run cannot be asked: {told(error)}; send its PIDs SIGTERM") from error
    return jobs


def runtime_directory() -> Path:
    """Return where this user's trainers publish on this machine; it may not be there yet.

    Raises:
        OSError: there is no place that another user could not have prepared.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that XDG_RUNTIME_DIR is not set is nothing that a user must know
        return user_runtime_path(appname=None, ensure_exists=True) / "foretrain"


@contextmanager
def _selection_lock_if_possible() -> Iterator[None]:
    """Keep `switch-model` out meanwhile; where the state directory cannot be written, it cannot switch either."""
    with ExitStack() as held:
        with suppress(ValueError):
            held.enter_context(selection_lock(_LOCK_TIMEOUT_S))
        yield


def _device_of(job: Job) -> int:
    """Return the accelerator that a job uses: that of its other ranks, else the current one."""
    others = (other.device for other in running_jobs().jobs if other.job.job_id == job.job_id)
    return next(others, load_selection().selection.current)


def _removed_as_stale(path: Path) -> bool:
    """Remove a file whose process has ended; files of other names are nobody's business here."""
    named = _FILE.fullmatch(path.name)
    if not named or process_start(int(named[1])) == int(named[2]):
        return False
    with suppress(OSError):
        path.unlink()
    return True


def _trusted(path: Path) -> RunningJob | None:
    """Return what a file tells, if this user wrote it and it speaks of a process of this user that runs."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, encoding="utf-8") as file:
            found = os.fstat(descriptor)
            private = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if not private or found.st_size > _LARGEST_FILE_BYTES:
                return None
            document = json.load(file)
        if not isinstance(document, dict) or document.pop("schema", None) != _SCHEMA:
            return None
        state = RunningJob.model_validate(document)
    except (OSError, RecursionError, ValueError):  # taken away just now, or not ours
        return None
    same = path.stem == f"{state.pid}-{state.start}" and process_start(state.pid) == state.start
    if not same or owner_of(state.pid) != os.geteuid():
        return None
    return state.model_copy(update={"is_stopping": path.with_suffix(".stop").exists()})
