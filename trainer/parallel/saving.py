"""Writing checkpoints while training goes on: state is copied aside, and a thread writes the copy.

One at most is under way: the next waits until it is written, or has failed. Its name comes last, so that what is there
is whole: shards, digests of what each rank wrote, what the run needs to continue, then the folder's own name. A
checkpoint that cannot be written ends no run: what was begun is removed, the older ones stay, and the run says so and
goes on.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter, SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from hardware.files import write_synced
from trainer.parallel.checkpoint import PARTIAL, STATE, name_of, prune, tensors_of
from trainer.parallel.digests import FileDigest, digests_of, write_digests
from trainer.parallel.metadata import METADATA
from trainer.parallel.model import Stage
from trainer.parallel.room import make_folder
from trainer.parallel.together import TogetherError, on_first, reason, together, told_plainly


@dataclass(frozen=True)
class Saved:
    """What became of a checkpoint."""

    step: int
    num_bytes: int
    """Of its files; 0 where it was not written."""
    stall_s: float
    """How long it held the step up: waiting for the one before, and copying, or all of it where nothing is copied."""
    write_s: float
    """From the copy to the name."""
    problem: str
    """Why it was not written; "" where it was."""


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints stay, and how they are written."""

    folder: Path
    """Where they lie, seen by all nodes."""
    keep: int = 2
    """How many of the newest stay."""
    keeps_best: bool = False
    """Whether the one of the least loss on held-out rows stays too."""
    is_async: bool = True


class Saver:
    """Writes the checkpoints of a run; all ranks make one, and call it alike."""

    def __init__(self, keeping: Keeping, device: torch.device, group: dist.ProcessGroup, began: int) -> None:
        """Write none yet.

        Args:
            keeping: where and how.
            device: of this rank.
            group: all ranks over gloo, and nobody else's: its collectives run beside those of training.
            began: the step that the run continues from; 0 of a new one.
        """
        self._keeping, self._device, self._group = keeping, device, group
        self._began, self._written = began, set[int]()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._stager: DefaultStager | None = None
        self._running: Future[Saved] | None = None
        self._ended: list[Saved] = []
        self._num_bytes = 0

    def save(
        self,
        step: int,
        stages: Sequence[Stage],
        optimizers: Sequence[torch.optim.Optimizer],
        state: dict[str, Any],
        *,
        waits: bool,
    ) -> None:
        """Write a checkpoint; all ranks call it.

        Args:
            step: the last step done.
            stages: this rank's chunks.
            optimizers: one for each.
            state: what else the run needs to continue, as JSON.
            waits: whether to return only when it is written, or has failed.
        """
        begun = time.perf_counter()
        self.finish()
        tensors = tensors_of(stages, optimizers, self._device)
        if waits or not self._keeping.is_async:
            self._ended.append(self._save(tensors, step, state, lambda: time.perf_counter() - begun))
            return
        staged = self._staged(tensors)
        stall_s = time.perf_counter() - begun
        self._running = self._thread.submit(self._save, staged, step, state, lambda: stall_s)

    def ended(self) -> list[Saved]:
        """Return what became of checkpoints since the last call, of those that are written or have failed."""
        if self._running is not None and self._running.done():
            self.finish()
        ended, self._ended = self._ended, []
        return ended

    def finish(self) -> None:
        """Wait for the one that is under way."""
        if self._running is not None:
            self._ended.append(self._running.result())
            self._running = None

    def close(self) -> None:
        """End the thread, and give back the memory of the copy."""
        self.finish()
        self._thread.shutdown()
        if self._stager is not None:
            self._stager.close()

    def _staged(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Return a copy in the host's memory, of which later calls use the same."""
        if self._stager is None:
            is_accelerator = self._device.type == "cuda"
            options = StagingOptions(
                use_pinned_memory=is_accelerator,
                use_shared_memory=False,
                use_async_staging=False,  # the next step changes what is copied
                use_non_blocking_copy=is_accelerator,
            )
            self._stager = DefaultStager(options)
        staged: Any = self._stager.stage(tensors)
        return dict(staged)

    def _save(self, tensors: dict[str, Any], step: int, state: dict[str, Any], stall_s: Callable[[], float]) -> Saved:
        begun = time.perf_counter()
        partial = self._keeping.folder / f"{PARTIAL}{name_of(step)}"
        problem, num_bytes = "", 0
        try:
            num_bytes = self._write(partial, tensors, step, state)
            self._written.add(step)
        except (TogetherError, CheckpointException) as error:
            problem = reason(error)
            if dist.get_rank(self._group) == 0:
                shutil.rmtree(partial, ignore_errors=True)
        return Saved(step, num_bytes, stall_s(), time.perf_counter() - begun, problem)

    def _write(self, partial: Path, tensors: dict[str, Any], step: int, state: dict[str, Any]) -> int:
        """Write a checkpoint under another name, then rename it; return the bytes of its files."""
        self._num_bytes = self._num_bytes or sum(_union(together(lambda: _whole_bytes(tensors), self._group)).values())
        on_first(lambda: make_folder(partial, self._num_bytes), self._group)
        dcp.save(tensors, storage_writer=_Writer(partial), process_group=self._group)
        rank = dist.get_rank(self._group)
        digests = _union(together(lambda: digests_of(partial.glob(f"__{rank}_*.distcp")), self._group))
        document = json.dumps({"step": step, **state}, indent=1) + "\n"
        on_first(lambda: self._publish(partial, digests, document, step), self._group)
        return sum(digest.num_bytes for digest in digests.values())

    def _publish(self, partial: Path, digests: dict[str, FileDigest], document: str, step: int) -> None:
        write_synced(partial / STATE, document)
        write_digests(partial, digests | digests_of((partial / STATE, partial / METADATA)))
        whole = partial.with_name(name_of(step))
        shutil.rmtree(whole, ignore_errors=True)  # of an earlier run that was continued from before it
        partial.replace(whole)
        keeping, own = self._keeping, {*self._written, step}
        prune(
            keeping.folder, keeping.keep, keeps_best=keeping.keeps_best, is_own=lambda s: s <= self._began or s in own
        )


class _Writer(FileSystemWriter):
    """Torch's writer, whose errors say what the system said."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        """Write this rank's shard."""
        with told_plainly():
            return super().write_data(plan, planner)


def _whole_bytes(tensors: dict[str, Any], prefix: str = "") -> dict[str, int]:
    """Return the bytes of each tensor as a whole, of all ranks that hold a part, by its path."""
    found: dict[str, int] = {}
    for name, value in tensors.items():
        if isinstance(value, dict):
            found |= _whole_bytes(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value.numel() * value.element_size()
    return found


def _union(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}
