"""Checkpoints of a run: sharded, whole or invisible, verified before they are loaded, and fit for any plan.

A checkpoint is a folder `step-00000020`, written under another name and renamed once all ranks are done (`saving`).
Weights that are trained, all or those of adapters, and moments lie in it under the names of the whole model, each
rank's shards with where they belong, so that a run may continue under another plan; beside them `run.json`, what else
a run needs to continue, and `digests.json`.
"""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from hardware.errors import shown
from hardware.files import read_regular_file
from trainer.parallel.digests import file_damage
from trainer.parallel.metadata import METADATA, Reader, read_metadata
from trainer.parallel.model import Stage
from trainer.parallel.random_states import random_states, set_random_states
from trainer.parallel.weights import adapter_weights, named_weights

PARTIAL = ".partial-"
STATE = "run.json"
MOST_STATE_BYTES = 2**24

_NAME = re.compile(r"step-(\d{8})")
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def name_of(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """Return the step after which a checkpoint was written; None where the folder's name is no checkpoint's."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found and folder.is_dir() else None


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first, whole or not."""
    found = [path for path in folder.iterdir() if step_of(path) is not None] if folder.is_dir() else []
    return sorted(found, key=lambda path: path.name, reverse=True)


def damage(checkpoint: Path, *, part: int = 0, parts: int = 1) -> str:
    """Return what is wrong with a checkpoint, in words that follow "is damaged: "; "" of a whole one.

    Args:
        checkpoint: its folder.
        part: which share of the files is digested here.
        parts: of how many.
    """
    if found := file_damage(checkpoint, part=part, parts=parts, needed=(STATE, METADATA)):
        return found
    try:
        read_state(checkpoint)
        read_metadata(checkpoint)
    except ValueError as error:
        return str(error)
    return ""


class Found(NamedTuple):
    """The checkpoint that a run continues from."""

    path: Path
    passed_over: str
    """Of newer ones, why each is not taken; "" where it is the newest."""


def find_checkpoint(resume: str, folder: Path, damage_of: Callable[[Path], str]) -> Found | None:
    """Return the checkpoint to continue from; None where a run begins anew.

    Args:
        resume: "" for none, "auto" for the newest whole one of the run's own if it has any, else a checkpoint's folder.
        folder: where the run's own lie.
        damage_of: what is wrong with one, "" where nothing is.

    Raises:
        ValueError: the one given is damaged or none, or of the run's own none is whole.
    """
    if not resume:
        return None
    if resume != "auto":
        given = Path(resume)
        if step_of(given) is None:
            raise ValueError(f"resume: {shown(resume, 200)} is no checkpoint; give a folder step-..., or auto")
        if found := damage_of(given):
            raise ValueError(f"resume: {shown(resume, 200)} is damaged: {found}; give another checkpoint, or auto")
        return Found(given, "")
    passed_over: list[str] = []
    for path in checkpoints_in(folder):
        if not (found := damage_of(path)):
            return Found(path, "; ".join(passed_over))
        passed_over.append(f"{path.name} is damaged: {found}")
    if passed_over:
        raise ValueError(
            f"resume: no checkpoint in {shown(str(folder), 200)} is whole ({'; '.join(passed_over)}); give another, or "
            "start anew with another --output"
        )
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its run, weights and optimizer state apart.

    Raises:
        ValueError: it cannot be read; in words that follow "is damaged: ".
    """
    try:
        found = json.loads(read_regular_file(checkpoint / STATE, MOST_STATE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{STATE} cannot be read") from error
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        raise ValueError(f"{STATE} is no state of a run")
    return found


def tensors_of(
    stages: Sequence[Stage], optimizers: Sequence[torch.optim.Optimizer], device: torch.device
) -> dict[str, Any]:
    """Return all tensors of this rank that a checkpoint holds: nothing but tensors, which are read without code.

    An optimizer's options are none of them: they are those of the run that continues.
    """
    moments = {name: value for name, value in _optimizer_state(stages, optimizers).items() if _is_moment(name)}
    return {
        "model": _trained_weights(stages),
        "optimizer": moments,
        "random": {str(dist.get_rank()): random_states(device)},
    }


def load_checkpoint(
    checkpoint: Path, stages: Sequence[Stage], optimizers: Sequence[torch.optim.Optimizer], device: torch.device
) -> None:
    """Read this rank's weights, moments and random states, whatever plan wrote them; all ranks call it.

    Random states are those of the rank of the same number; under a plan with more ranks the others' stay as they are.
    """
    state = _optimizer_state(stages, optimizers)
    tensors: dict[str, Any] = {
        "model": _trained_weights(stages),
        "optimizer": {name: value for name, value in state.items() if _is_moment(name)},
    }
    own = f"random.{dist.get_rank()}."
    kept = {name.removeprefix(own): entry for name, entry in _entries(checkpoint).items() if name.startswith(own)}
    states = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in kept.items()}
    if states:
        tensors["random"] = {str(dist.get_rank()): states}
    dcp.load(tensors, storage_reader=Reader(checkpoint))
    for stage, optimizer in zip(stages, optimizers, strict=True):
        set_optimizer_state_dict(stage, optimizer, optim_state_dict=state | tensors["optimizer"], options=_FLAT)
    if states:
        set_random_states(states, device)


def weight_shapes(checkpoint: Path) -> dict[str, list[int]]:
    """Return the shape of each weight that a checkpoint holds, by its name in the whole model."""
    entries = _entries(checkpoint).items()
    return {name.removeprefix("model."): list(entry.size) for name, entry in entries if name.startswith("model.")}


def _entries(checkpoint: Path) -> dict[str, Any]:
    return dict(read_metadata(checkpoint).state_dict_metadata)


def _trained_weights(stages: Sequence[Stage]) -> dict[str, torch.Tensor]:
    """Return the adapters of this rank, or all its weights where there are none."""
    return adapter_weights(stages) or named_weights(stages)


def _optimizer_state(stages: Sequence[Stage], optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for stage, optimizer in zip(stages, optimizers, strict=True):
        state |= get_optimizer_state_dict(stage, optimizer, options=_FLAT)
    return state


def _is_moment(name: str) -> bool:
    """Whether an entry of an optimizer's state is a tensor's, not an option."""
    return name.startswith("state.")


def prune(folder: Path, keep: int, *, keeps_best: bool, is_own: Callable[[int], bool]) -> None:
    """Remove all but the newest checkpoints and the best, and what interrupted ones left.

    Args:
        folder: where a run's checkpoints lie.
        keep: how many of the newest stay.
        keeps_best: whether the one of the least loss on held-out rows stays too.
        is_own: of a step, whether its checkpoint is one that the run continues or wrote. Others are of a continuation
            that was given up, or were passed over: they go, and do not count.
    """
    found = checkpoints_in(folder)
    kept = [path for path in found if is_own(step_of(path) or 0)]
    stay = set(kept[:keep])
    if keeps_best and (losses := {path: loss for path in kept if (loss := _held_out_loss(path)) is not None}):
        stay.add(min(losses, key=lambda path: losses[path]))
    left = [path for path in folder.iterdir() if path.name.startswith(PARTIAL)]
    for path in (*(path for path in found if path not in stay), *left):
        shutil.rmtree(path, ignore_errors=True)


def _held_out_loss(checkpoint: Path) -> float | None:
    try:
        loss = read_state(checkpoint).get("held_out_loss")
    except ValueError:
        return None
    return float(loss) if isinstance(loss, int | float) else None
