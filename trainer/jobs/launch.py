"""Several processes on this machine: torchrun's elastic agent runs one per device, and one signal stops them all."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

FAILED = 1


def launch(num_processes: int, arguments: Sequence[str], module: str = "trainer") -> int:
    """Run `python -m trainer` with these arguments as so many ranks, and return the exit status of them all.

    SIGTERM and Ctrl-C are handed to the ranks, which save and end in their own time; the agent does not kill them. When
    a rank fails, the agent ends the others, and the first failure is told with its rank.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // num_processes, 1)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what failed is told below, in one line
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
        signals_to_handle="SIGHUP,SIGQUIT",
    )
    before = {number: signal.signal(number, _hand_over) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"rank {rank} {_cause(failure)}; all ranks were ended", file=sys.stderr)
        return FAILED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _hand_over(_: int, __: FrameType | None) -> None:
    for process in psutil.Process().children():
        process.send_signal(signal.SIGTERM)


def _cause(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"was killed by {signal.Signals(-failure.exitcode).name}"
    if isinstance(failure.message, dict):
        return f"failed: {failure.message.get('message', '')}".partition("\n")[0]
    return f"ended with exit status {failure.exitcode}"  # and said why on its own
