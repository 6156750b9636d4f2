"""Whole checkpoints as far as files go, and the ways in which they are damaged."""

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from trainer.parallel.checkpoint import STATE, name_of
from trainer.parallel.digests import digests_of, write_digests
from trainer.parallel.metadata import METADATA

SHARD = "__0_0.distcp"


def seal(checkpoint: Path) -> None:
    """Write the digests of what is in a folder, as its writer does last."""
    (checkpoint / "digests.json").unlink(missing_ok=True)
    write_digests(checkpoint, digests_of(checkpoint.iterdir()))


def save_alone(checkpoint: Path, **model: Any) -> None:
    """Write the shard and the metadata of a model, from a process that is no rank of any group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is meant
        dcp.save({"model": model}, checkpoint_id=checkpoint, no_dist=True)


def write_checkpoints(folder: Path, *steps: int, **state: Any) -> list[Path]:
    """Write checkpoints of one small tensor."""
    found = [folder / name_of(step) for step in steps]
    for step, path in zip(steps, found, strict=True):
        save_alone(path, weight=torch.arange(12.0))
        (path / STATE).write_text(json.dumps({"step": step, **state}))
        seal(path)
    return found


class Foreign:
    """Calls a function of another module when it is unpickled."""

    def __init__(self, path: Path) -> None:
        """Make a folder then."""
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the call."""
        return Path.mkdir, (self.path,)


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Cut the second half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def infect(checkpoint: Path, trace: Path) -> None:
    """Put a call into a checkpoint's metadata, which makes a folder where it is unpickled, with fitting digests."""
    (checkpoint / METADATA).write_bytes(pickle.dumps({"state_dict_metadata": Foreign(trace)}))
    seal(checkpoint)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard cut": (lambda folder: cut(folder / SHARD), rf"{SHARD} has [0-9,]+ of [0-9,]+ bytes"),
    "shard missing": (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing"),
    "bit of a shard": (
        lambda folder: flip(folder / SHARD),
        rf"{SHARD} is not as it was written \(its sha256 differs\)",
    ),
    "metadata missing": (lambda folder: (folder / METADATA).unlink(), rf"\{METADATA} is missing"),
    "metadata cut": (lambda folder: cut(folder / METADATA), rf"\{METADATA} has [0-9,]+ of [0-9,]+ bytes"),
    "bit of the metadata": (
        lambda folder: flip(folder / METADATA),
        rf"\{METADATA} is not as it was written \(its sha256 differs\)",
    ),
    "state missing": (lambda folder: (folder / STATE).unlink(), f"{STATE} is missing"),
    "bit of the state": (
        lambda folder: flip(folder / STATE),
        rf"{STATE} is not as it was written \(its sha256 differs\)",
    ),
    "digests missing": (lambda folder: (folder / "digests.json").unlink(), "digests.json is missing"),
    "digests cut": (lambda folder: cut(folder / "digests.json"), "digests.json cannot be read"),
}
"""Ways in which a disk, or somebody, damages a checkpoint, and what is said of it."""
