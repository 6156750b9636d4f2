"""Checkpoints of a run: sharded, whole or invisible, and fit for any plan.

A checkpoint is a folder `step-00000020` that is written under another name and renamed once all ranks are done.
Weights that are trained, all or those of adapters, and optimizer state lie in it under the names of the whole model,
each rank's shards with where they belong, so that a run may continue under another plan.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from hardware.errors import shown
from trainer.parallel.model import Stage
from trainer.parallel.weights import adapter_weights, named_weights

_NAME = re.compile(r"step-(\d{8})")
_PARTIAL = ".partial-"
_STATE = "run.json"
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def step_of(folder: Path) -> int | None:
    """Return the step after which a checkpoint was written; None where the folder is no whole checkpoint."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found and (folder / _STATE).is_file() else None


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """Return the checkpoint to continue from.

    Args:
        resume: "" for none, "auto" for the newest of the run's own if there is one, else a checkpoint's folder.
        folder: where the run's own lie.

    Raises:
        ValueError: the folder given is no whole checkpoint.
    """
    if not resume:
        return None
    if resume == "auto":
        own = [path for path in folder.iterdir() if step_of(path) is not None] if folder.is_dir() else []
        return max(own, key=lambda path: step_of(path) or 0, default=None)
    if step_of(Path(resume)) is None:
        raise ValueError(f"resume: {shown(resume, 200)} is no whole checkpoint; give a folder step-..., or auto")
    return Path(resume)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its run, weights and optimizer state apart."""
    try:
        found: dict[str, Any] = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"resume: {shown(str(checkpoint / _STATE), 200)} cannot be read; use another checkpoint"
        ) from error
    return found


def save_checkpoint(
    folder: Path,
    step: int,
    stages: Sequence[Stage],
    optimizers: Sequence[torch.optim.Optimizer],
    state: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Write a checkpoint; all ranks call it.

    Args:
        folder: where the run's checkpoints lie, seen by all nodes.
        step: the last step done.
        stages: this rank's chunks.
        optimizers: one for each.
        state: what else the run needs to continue, as JSON.
        keep: how many of the newest checkpoints to keep.
    """
    whole = folder / f"step-{step:08d}"
    partial = folder / f"{_PARTIAL}{whole.name}"
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    dcp.save(_tensors(stages, optimizers), checkpoint_id=partial)
    if dist.get_rank() == 0:
        (partial / _STATE).write_text(json.dumps({"step": step, **state}, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(whole, ignore_errors=True)  # of an earlier run that was continued from before it
        partial.replace(whole)
        _prune(folder, keep)
    dist.barrier()
    return whole


def load_checkpoint(checkpoint: Path, stages: Sequence[Stage], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Read this rank's weights and optimizer state, whatever plan wrote them; all ranks call it."""
    tensors = _tensors(stages, optimizers)
    dcp.load(tensors, checkpoint_id=checkpoint)
    for stage, optimizer in zip(stages, optimizers, strict=True):
        set_optimizer_state_dict(stage, optimizer, optim_state_dict=tensors["optimizer"], options=_FLAT)


def _tensors(stages: Sequence[Stage], optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for stage, optimizer in zip(stages, optimizers, strict=True):
        state |= get_optimizer_state_dict(stage, optimizer, options=_FLAT)
    return {"model": adapter_weights(stages) or named_weights(stages), "optimizer": state}


def _prune(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what interrupted ones left."""
    whole = sorted((path for path in folder.iterdir() if step_of(path) is not None), key=lambda path: path.name)
    left = [path for path in folder.iterdir() if path.name.startswith(_PARTIAL)]
    for path in (*whole[:-keep], *left):
        shutil.rmtree(path, ignore_errors=True)
