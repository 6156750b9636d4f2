"""What one of several equal processes on this machine's processor gets, measured in about a second.

The processes are threads here, which do at once what the ranks of a run do at once: multiply, copy, reduce over gloo.
"""

import os
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from hardware.models import Accelerator, Link, Measured, Network, Node, Source

MULTIPLY_S = 0.3
"""Seconds of matrix products; the fastest counts, as the others were disturbed."""

WIDTH = 512
"""Columns, inner dimension, and rows for each thread, of the products.

Large enough for a core's rate, and done in milliseconds, so that some are not interrupted on a busy machine.
"""

COPIED_BYTES = 2**27
"""Bytes that all processes copy together: more than the caches of a server hold."""

SMALL_BYTES, LARGE_BYTES = 2**13, 2**22
"""An all-reduce that is latency alone, as the catalog's, and one that is bandwidth."""

GLOO_TIMEOUT = timedelta(seconds=60)

WATTS_PER_CORE = 280 / 64
"""assumed: as an EPYC 7763, 280 W for 64 cores; no processor tells its own."""

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_PROCESSORS = Path("/proc/cpuinfo")


class Rates(NamedTuple):
    """What each process gets while all do the same; of the slowest."""

    flop_per_s: float
    """Of float32 matrix products."""
    bytes_per_s: float
    """Of a copy, read and written bytes together."""
    hop_s: float
    """Of a small all-reduce over all processes, of which it has 2 (n - 1) hops; 0 for one process."""
    link_bytes_per_s: float
    """Per direction, of a large all-reduce; 0 for one process."""


def cpu_id(num_processes: int) -> str:
    """Return the catalog id of one of so many equal processes here, such as `cpu-8-core-x2`."""
    return f"cpu-{num_cores()}-core-x{num_processes}"


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> float:
    """Return the memory of this machine, or of this container where that is less [bytes]."""
    limit = float("inf")
    with suppress(OSError, ValueError):  # no container, or one without a limit
        limit = float(_CONTAINER_LIMIT.read_text(encoding="ascii"))
    return min(float(psutil.virtual_memory().total), limit)


def measure_cpu(num_processes: int) -> tuple[Accelerator, Node]:
    """Measure this machine as the carrier of so many equal processes, and return it as records of a catalog.

    A "device" is one process with its share of cores, at least one, and of memory. Its peaks are the rates measured on
    it while all processes do the same, so that its efficiencies are 1; the link over the processes is what gloo
    reaches. The network to other machines, and the power, are assumed. Figures have six digits, as files hold them.
    """
    threads = max(num_cores() // num_processes, 1)
    rates = Rates(*(float(f"{rate:.6g}") for rate in measure(num_processes, threads)))
    source = Source(url="measured:trainer.jobs.cpu", checked=date.today())  # noqa: DTZ011 - the day here
    name = cpu_id(num_processes)
    what = f"1 of {num_processes} equal processes on {num_cores()} cores, threads of each: {threads}"
    accelerator = Accelerator(
        id=name,
        name=f"{_processor_name()}, {what}"[:200],
        vendor="of this machine",
        architecture=platform.machine() or "unknown",
        hbm_bytes=float(f"{memory_bytes() / num_processes:.6g}"),
        hbm_bytes_per_s=rates.bytes_per_s,
        bf16_flop_per_s=rates.flop_per_s,
        fp32_flop_per_s=rates.flop_per_s,
        num_compute_units=threads,
        tdp_w=WATTS_PER_CORE * threads,
        matmul_efficiency=_whole(f"the peak is itself measured: float32 products {WIDTH} wide, {what}", source),
        hbm_efficiency=_whole(f"the peak is itself measured: a copy, {what}", source),
        note="bfloat16 is taken at the float32 rate. Assumed: the power, as of an EPYC 7763, 280 W for 64 cores.",
        sources=(source,),
    )
    node = Node(
        id=name,
        accelerator=name,
        num_devices=num_processes,
        links=_links(num_processes, rates, source),
        network=Network(
            bytes_per_s="10 Gb/s",
            evidence="assumed",
            latency_s="50 us",
            efficiency=Measured(value=0.9, evidence="assumed", note="no other machine was measured", source=source),
        ),
        note="Assumed: the network, as of a plain 10 Gb/s Ethernet; a run on one machine does not use it.",
        sources=(source,),
    )
    return accelerator, node


def _whole(note: str, source: Source) -> Measured:
    return Measured(value=1.0, evidence="measured", note=note, source=source)


def _links(num_processes: int, rates: Rates, source: Source) -> tuple[Link, ...]:
    if num_processes == 1:
        return ()
    note = f"the peak is itself measured: an all-reduce of {LARGE_BYTES} bytes over gloo"
    return (
        Link(
            span=num_processes,
            topology="switch",
            bytes_per_s=rates.link_bytes_per_s,
            evidence="measured",
            latency_s=rates.hop_s,
            efficiency=_whole(note, source),
        ),
    )


def _processor_name() -> str:
    with suppress(OSError):
        for line in _PROCESSORS.read_text(encoding="ascii", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return "CPU"


def measure(num_processes: int, threads: int) -> Rates:
    """Measure so many processes at once, each with so many threads."""
    before = torch.get_num_threads()
    store, barrier = dist.HashStore(), threading.Barrier(num_processes)

    def one(rank: int) -> Rates:
        try:
            torch.set_num_threads(threads)
            return _measure_one(rank, num_processes, store, barrier)
        except BaseException:
            barrier.abort()  # the others wait for this one
            raise

    try:
        with ThreadPoolExecutor(num_processes) as pool:
            found = list(pool.map(one, range(num_processes)))
    finally:
        torch.set_num_threads(before)
    return Rates(
        min(rates.flop_per_s for rates in found),
        min(rates.bytes_per_s for rates in found),
        max(rates.hop_s for rates in found),
        min(rates.link_bytes_per_s for rates in found),
    )


def _measure_one(rank: int, size: int, store: dist.Store, barrier: threading.Barrier) -> Rates:
    rows = WIDTH * torch.get_num_threads()
    left, right, product = torch.ones(rows, WIDTH), torch.ones(WIDTH, WIDTH), torch.empty(rows, WIDTH)
    multiply_s = _fastest(lambda: torch.mm(left, right, out=product), barrier, at_least_s=MULTIPLY_S)
    source, target = (torch.ones(COPIED_BYTES // 4 // size) for _ in range(2))
    copy_s = _fastest(lambda: target.copy_(source), barrier)
    flop_per_s, bytes_per_s = 2.0 * rows * WIDTH**2 / multiply_s, 8.0 * len(source) / copy_s
    if size == 1:
        return Rates(flop_per_s, bytes_per_s, 0.0, 0.0)
    group = dist.ProcessGroupGloo(store, rank, size, GLOO_TIMEOUT)
    small, large = (torch.zeros(num_bytes // 4) for num_bytes in (SMALL_BYTES, LARGE_BYTES))
    small_s = _fastest(lambda: _reduce(group, small), barrier, repeats=20)
    large_s = _fastest(lambda: _reduce(group, large), barrier)
    return Rates(flop_per_s, bytes_per_s, small_s / (2 * (size - 1)), 2 * (size - 1) / size * LARGE_BYTES / large_s)


def _reduce(group: dist.ProcessGroupGloo, values: Tensor) -> None:
    group.allreduce([values]).wait()  # type: ignore[attr-defined] # torch has it, its stub does not


def _fastest(
    work: Callable[[], object], barrier: threading.Barrier, *, repeats: int = 5, at_least_s: float = 0.0
) -> float:
    """Return the seconds of the fastest of several repeats, the first left out, that all threads begin together."""
    work()
    barrier.wait()
    started, fastest, done = time.perf_counter(), float("inf"), 0
    while done < repeats or time.perf_counter() - started < at_least_s:
        begun = time.perf_counter()
        work()
        fastest, done = min(fastest, time.perf_counter() - begun), done + 1
    return fastest
