"""The weights of a model: drawn at random, read from a Hugging Face checkpoint, written as one; a shard at a time."""

import hashlib
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from trainer.parallel.model import Stage

FILE_BYTES = 5 * 10**9
"""Most bytes of a safetensors file, as `save_pretrained` splits them."""


def named_weights(stages: Iterable[Stage]) -> dict[str, Tensor]:
    """Return the weights of this rank's chunks by their names in the whole model; a tied one under one name."""
    found: dict[str, Any] = {}
    for stage in stages:
        found |= get_model_state_dict(stage)
        if stage.ties_embeddings:
            found.pop("lm_head.weight")
    return found


def random_weight(name: str, shape: torch.Size, config: PreTrainedConfig, seed: int) -> Tensor:
    """Return a weight as a new model has it, shape as given: the same for a name and a seed, whatever the plan.

    Matrices are normal with the config's `initializer_range`, norms are 1, biases 0, as transformers draws them.
    """
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
    return torch.empty(shape).normal_(0.0, config.initializer_range, generator=generator)


@torch.no_grad()
def draw_weights(stages: Sequence[Stage], seed: int) -> None:
    """Draw the weights of this rank's chunks; a whole matrix at a time is in memory, never the whole model."""
    for name, weight in named_weights(stages).items():
        whole = random_weight(name, weight.shape, stages[0].config, seed)
        for offsets, local in _local_parts(weight):
            local.copy_(whole[tuple(slice(o, o + n) for o, n in zip(offsets, local.shape, strict=True))])


def _local_parts(weight: Tensor) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield where this rank's part of a weight begins in the whole, and the part."""
    if not isinstance(weight, DTensor):
        yield (0,) * weight.ndim, weight
    elif weight.to_local().numel():
        (chunk,) = weight.__create_chunk_list__()  # as checkpoints ask a DTensor for it
        yield chunk.offsets, weight.to_local()


def load_weights(stages: Sequence[Stage], folder: Path) -> None:
    """Read the weights of this rank's chunks from a Hugging Face checkpoint, each rank its own part only.

    Raises:
        ValueError: the checkpoint lacks one of them, or has it in another shape.
    """
    state = named_weights(stages)
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    for name, weight in state.items():
        if not isinstance(kept := stored.get(name), TensorStorageMetadata):
            raise ValueError(f"model: {folder.name} has no weight {name}; give a whole checkpoint of its config")
        if kept.size != weight.shape:
            shapes = f"{list(kept.size)}, its config says {list(weight.shape)}"
            raise ValueError(f"model: {folder.name} has {name} in shape {shapes}; give the config it was made with")
    dcp.load(state, storage_reader=reader)


class Saved(Protocol):
    """What writes its own files beside the weights: a config, a tokenizer."""

    def save_pretrained(self, save_directory: str) -> Any:
        """Write them into a folder."""


def export_weights(stages: Sequence[Stage], folder: Path, dtype: torch.dtype, beside: Sequence[Saved]) -> None:
    """Write a Hugging Face checkpoint that `from_pretrained` loads; all ranks call it, each writes its own part.

    Args:
        stages: this rank's chunks.
        folder: where; it is made whole or not at all.
        dtype: of the weights in the file.
        beside: the config and the tokenizer.
    """
    state = {name: weight.to(dtype) for name, weight in named_weights(stages).items()}
    index = _file_index(state)
    partial = folder.with_name(folder.name + ".partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    writer = HuggingFaceStorageWriter(
        path=str(partial), fqn_to_index_mapping=index, save_distributed=True, enable_consolidation=True
    )
    dcp.save(state, storage_writer=writer)
    if dist.get_rank() == 0:
        shutil.rmtree(partial / "sharded", ignore_errors=True)
        for part in beside:
            part.save_pretrained(str(partial))
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    dist.barrier()


def _file_index(state: dict[str, Tensor]) -> dict[str, int]:
    """Return in which file, counted from 1, each weight of the whole model goes; the same on all ranks."""
    mine = {name: weight.numel() * weight.element_size() for name, weight in state.items()}
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, mine)
    sizes = {name: size for part in everywhere for name, size in part.items()}
    index, filled, file = {}, 0, 1
    for name in sorted(sizes, key=_order):
        if filled and filled + sizes[name] > FILE_BYTES:
            filled, file = 0, file + 1
        index[name], filled = file, filled + sizes[name]
    return index


def _order(name: str) -> tuple[float, str]:
    layer = next((part for part in name.split(".") if part.isdigit()), None)
    return (math.inf if layer is None else float(layer), name)
