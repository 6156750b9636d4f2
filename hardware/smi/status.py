"""What `smi` shows: the accelerators of an environment, what trains on them, and what was predicted of that."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from statistics import fmean
from typing import NamedTuple

from hardware.catalog import Catalog
from hardware.models import Flavor
from hardware.smi.devices import MachineDevice, device_of, machine_devices, processor_device
from hardware.smi.jobs import RunningJob, running_jobs
from hardware.smi.processes import busy_fractions, process_start, resident_bytes
from hardware.smi.selection import Selection, current_flavor, load_selection


class AcceleratorStatus(NamedTuple):
    """One accelerator of the environment."""

    device: int
    is_current: bool
    flavor: str
    """Of the run that uses it, else as chosen."""

    memory_bytes: float | None
    """Memory of the processes that use it [bytes]; None while it is idle."""

    total_bytes: float | None
    """Memory of the flavor [bytes]; None while it is idle, or where the catalog does not know the flavor."""

    utilization: float | None
    """Busy part of its devices, else the part of this machine's cores that its processes keep busy; None while idle."""


class ProcessStatus(NamedTuple):
    """One rank of a run."""

    device: int
    job_id: str
    rank: int
    pid: int
    process: str
    memory_bytes: float | None
    """On a device as the vendor's library counts it, else as the trainer does; on the processor, what it holds."""


class RunStatus(NamedTuple):
    """One run, measured beside predicted: the slowest of its ranks, and the fullest."""

    device: int
    job_id: str
    step: int
    total_steps: int
    is_stopping: bool
    step_s: float | None
    predicted_step_s: float | None
    memory_bytes: float | None
    """Per device, as the trainer counts it [bytes]."""

    predicted_memory_bytes: float | None
    left_s: float | None
    """Seconds to the end of its last step, from now, as its recent steps go."""


class Status(NamedTuple):
    """All of it, at one time."""

    time: float
    """Seconds since the epoch."""

    accelerators: tuple[AcceleratorStatus, ...]
    processes: tuple[ProcessStatus, ...]
    runs: tuple[RunStatus, ...]
    problems: tuple[str, ...]
    """Why something could not be read, and the mend."""

    def only(self, device: int) -> "Status":
        """Return what concerns one accelerator.

        Raises:
            ValueError: there is none of this number.
        """
        known = [accelerator.device for accelerator in self.accelerators]
        if device not in known:
            raise ValueError(f"device {device}: there is none; use one of {', '.join(map(str, known))}")
        return self._replace(
            accelerators=tuple(a for a in self.accelerators if a.device == device),
            processes=tuple(p for p in self.processes if p.device == device),
            runs=tuple(r for r in self.runs if r.device == device),
        )


def read_status(catalog: Catalog, interval_s: float = 0.2) -> Status:
    """Return what this user's accelerators do on this machine.

    Args:
        catalog: knows the flavors.
        interval_s: how long to watch processes that compute on the processor [s].
    """
    selection, problem, _ = load_selection()
    jobs, blindness = running_jobs()
    ranks = _ranks(jobs, machine_devices() if jobs else (), interval_s)
    now = time.time()
    by_run = groupby(ranks, key=lambda rank: (rank.job.device, rank.job.job.job_id))
    return Status(
        time=now,
        accelerators=_accelerators(catalog, selection, ranks),
        processes=tuple(_process(rank) for rank in ranks),
        runs=tuple(_run([rank.job for rank in run], now) for _, run in by_run),
        problems=tuple(line for line in (problem, blindness) if line),
    )


class MachineStatus(NamedTuple):
    """The devices of this machine, whatever accelerator they belong to."""

    time: float
    """Seconds since the epoch."""

    devices: tuple[tuple[MachineDevice, tuple[int, ...]], ...]
    """Each with the PIDs of this user's ranks on it; the processor alone where no library finds a device."""

    problems: tuple[str, ...]
    """Why something could not be read, and the mend."""


def read_machine(interval_s: float = 0.2) -> MachineStatus:
    """Return the state of this machine's own devices; `interval_s` is how long to watch the processor [s]."""
    jobs, blindness = running_jobs()
    devices = machine_devices()
    if devices:
        places = {job.pid: device_of(job.pid, job.job.local_device, job.visible_devices, devices) for job in jobs}
    else:
        devices = (processor_device(interval_s),)
        places = {job.pid: devices[0] for job in jobs if job.job.local_device is None}
    return MachineStatus(
        time=time.time(),
        devices=tuple((device, tuple(pid for pid in places if places[pid] is device)) for device in devices),
        problems=(blindness,) if blindness else (),
    )


class _Rank(NamedTuple):
    """A running rank, and what this machine tells of it."""

    job: RunningJob
    machine_device: MachineDevice | None
    """None on the processor, or where it cannot be told."""

    memory_bytes: float | None
    """As of `ProcessStatus`."""

    cores_busy_fraction: float


def _ranks(jobs: Sequence[RunningJob], devices: Sequence[MachineDevice], interval_s: float) -> list[_Rank]:
    busy = busy_fractions([job.pid for job in jobs if job.job.local_device is None], interval_s)
    ranks = []
    for job in jobs:
        place = device_of(job.pid, job.job.local_device, job.visible_devices, devices)
        rank = _Rank(job, place, _memory_bytes(job, place), busy.get(job.pid, 0.0))
        if process_start(job.pid) == job.start:  # else it ended while it was watched
            ranks.append(rank)
    return ranks


def _memory_bytes(job: RunningJob, place: MachineDevice | None) -> float | None:
    if job.job.local_device is None:
        return resident_bytes(job.pid)
    counted = place.process_bytes.get(job.pid) if place else None
    return job.memory_bytes if counted is None else counted


def _accelerators(catalog: Catalog, selection: Selection, ranks: Sequence[_Rank]) -> tuple[AcceleratorStatus, ...]:
    chosen = {accelerator.device: accelerator.flavor for accelerator in selection.accelerators}
    chosen[selection.current] = current_flavor().id_in(catalog)
    flavors = chosen | {rank.job.device: rank.job.job.flavor for rank in ranks}
    return tuple(
        _accelerator(
            catalog, device, device == selection.current, flavor, [rank for rank in ranks if rank.job.device == device]
        )
        for device, flavor in sorted(flavors.items())
    )


def _accelerator(
    catalog: Catalog, device: int, is_current: bool, flavor: str, ranks: Sequence[_Rank]
) -> AcceleratorStatus:
    if not ranks:
        return AcceleratorStatus(device, is_current, flavor, None, None, None)
    known = [rank.memory_bytes for rank in ranks if rank.memory_bytes is not None]
    memory = sum(known) if known else None
    return AcceleratorStatus(device, is_current, flavor, memory, _total_bytes(catalog, flavor), _utilization(ranks))


def _total_bytes(catalog: Catalog, name: str) -> float | None:
    flavor = _flavor(catalog, name)
    if flavor is None:
        return None
    return flavor.num_devices * catalog.accelerator(catalog.node(flavor.node).accelerator).hbm_bytes


def _flavor(catalog: Catalog, name: str) -> Flavor | None:
    """Return the flavor that a run names: of the catalog, or so many devices of an accelerator; None if of neither."""
    accelerator, _, count = name.rpartition("-")
    with suppress(ValueError):
        return catalog.flavor(name)
    with suppress(ValueError):
        return catalog.flavor_of(accelerator, int(count))
    return None


def _utilization(ranks: Sequence[_Rank]) -> float | None:
    if all(rank.job.job.local_device is None for rank in ranks):
        return sum(rank.cores_busy_fraction for rank in ranks)
    devices = {id(rank.machine_device): rank.machine_device for rank in ranks if rank.machine_device}
    busy = [device.busy_fraction for device in devices.values() if device.busy_fraction is not None]
    return fmean(busy) if busy else None


def _process(rank: _Rank) -> ProcessStatus:
    job = rank.job.job
    return ProcessStatus(rank.job.device, job.job_id, job.rank, rank.job.pid, job.process, rank.memory_bytes)


def _run(ranks: Sequence[RunningJob], now: float) -> RunStatus:
    first = ranks[0]
    return RunStatus(
        device=first.device,
        job_id=first.job.job_id,
        step=min(rank.step for rank in ranks),
        total_steps=first.job.total_steps,
        is_stopping=any(rank.is_stopping for rank in ranks),
        step_s=_largest(rank.step_s for rank in ranks),
        predicted_step_s=_largest(rank.job.predicted_step_s for rank in ranks),
        memory_bytes=_largest(rank.memory_bytes for rank in ranks),
        predicted_memory_bytes=_largest(rank.job.predicted_memory_bytes for rank in ranks),
        left_s=_largest(_left_s(rank, now) for rank in ranks),
    )


def _left_s(rank: RunningJob, now: float) -> float | None:
    step_s = rank.job.predicted_step_s if rank.typical_step_s is None else rank.typical_step_s
    if step_s is None:
        return None
    return max((rank.job.total_steps - rank.step) * step_s - (now - rank.updated), 0.0)


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
