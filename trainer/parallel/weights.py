"""The weights of a model: drawn at random, read from a Hugging Face checkpoint, written as one; a shard at a time."""

import hashlib
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException  # is no Exception: it would pass by
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from trainer.parallel.model import Stage
from trainer.parallel.room import make_folder
from trainer.parallel.together import TogetherError, on_first, together

FILE_BYTES = 5 * 10**9
"""Most bytes of a safetensors file, as `save_pretrained` splits them."""

WRITTEN_TIMES = 2
"""How often an exported weight is on the disk at a time: in a rank's shard, and in the file that shards become."""


def named_weights(stages: Iterable[Stage]) -> dict[str, Tensor]:
    """Return the weights of this rank's chunks by their names in the whole model; a tied one under one name."""
    found: dict[str, Any] = {}
    for stage in stages:
        found |= get_model_state_dict(stage)
        if stage.ties_embeddings:
            found.pop("lm_head.weight")
    return found


BLOCK = 2**20
"""Numbers of a matrix that are drawn together, as many whole rows: what ranks share the work in."""


def random_weight(name: str, shape: torch.Size, config: PreTrainedConfig, seed: int) -> Tensor:
    """Return a weight as a new model has it, in 32 bits: the same for a name and a seed, whatever the plan and device.

    Matrices are normal with the config's `initializer_range`, norms are 1, biases 0, as transformers draws them. A
    normal number is one of 65,536 quantiles, picked by SFC64, whose stream NumPy keeps for ever (NEP 19).
    """
    if len(shape) == 1:
        return torch.full(shape, _constant(name))
    quantiles = _quantiles(config.initializer_range, torch.float32)
    return torch.cat([_drawn_rows(name, rows, shape[1], quantiles, seed) for rows in _row_blocks(shape)])


def _constant(name: str) -> float:
    """Return what all elements of a vector are: of a bias 0, of a norm 1."""
    return 0.0 if name.endswith(".bias") else 1.0


@cache
def _quantiles(deviation: float, dtype: torch.dtype) -> Tensor:
    """Return the middles of 65,536 equally likely parts of a normal distribution, shape (65536,)."""
    from scipy.special import ndtri  # noqa: PLC0415 - slow to import

    return torch.from_numpy(deviation * ndtri((np.arange(2**16) + 0.5) / 2**16)).to(dtype)


def _row_blocks(shape: Sequence[int]) -> list[range]:
    """Return the rows of a matrix, so many at a time; a function of its shape alone."""
    count = max(BLOCK // shape[1], 1)
    return [range(begin, min(begin + count, shape[0])) for begin in range(0, shape[0], count)]


def _drawn_rows(name: str, rows: range, columns: int, quantiles: Tensor, seed: int) -> Tensor:
    """Return a block of a matrix; shape (rows, columns), dtype of the quantiles."""
    digest = hashlib.sha256(f"{seed} {name} {rows.start}".encode()).digest()
    number = len(rows) * columns
    generator = np.random.SFC64(int.from_bytes(digest[:16], "big"))
    picked = generator.random_raw(-(-number // 4)).view(np.uint16)[:number]
    bits = quantiles.view(torch.int16 if quantiles.element_size() == 2 else torch.int32)
    drawn = torch.from_numpy(np.take(bits.numpy(), picked, mode="clip"))  # in half the time that indexing takes
    return drawn.view(quantiles.dtype).view(len(rows), columns)


@torch.no_grad()
def draw_weights(stages: Sequence[Stage], seed: int) -> None:
    """Draw the weights of this rank's chunks, block by block on all its threads; never a whole matrix at once."""
    deviation = stages[0].config.initializer_range
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        drawing = []
        for name, weight in named_weights(stages).items():
            for offsets, local in _local_parts(weight):
                if weight.ndim == 1:
                    local.fill_(_constant(name))
                    continue
                place = _Place(name, weight.shape[1], offsets, local, _quantiles(deviation, local.dtype))
                drawing += [threads.submit(place.draw, rows, seed) for rows in _row_blocks(weight.shape)]
        for each in drawing:
            each.result()


class _Place(NamedTuple):
    """Where this rank's part of a matrix goes."""

    name: str
    columns: int
    """Of the whole matrix."""
    offsets: Sequence[int]
    """Row and column of the whole where the part begins."""
    local: Tensor
    quantiles: Tensor

    @torch.no_grad()
    def draw(self, rows: range, seed: int) -> None:
        """Draw some rows of the whole, as far as they are of the part."""
        (top, left), (height, width) = self.offsets, self.local.shape
        first, last = max(rows.start, top), min(rows.stop, top + height)
        if first < last:
            block = _drawn_rows(self.name, rows, self.columns, self.quantiles, seed)
            self.local[first - top : last - top].copy_(
                block[first - rows.start : last - rows.start, left : left + width]
            )


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

    Raises:
        TogetherError: some rank could not write, or there is no room; nothing is left of what was begun. On all ranks.
        CheckpointException: as that.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        _export(stages, partial, dtype, beside)
        on_first(lambda: _rename(partial, folder))
    except (TogetherError, CheckpointException):
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _export(stages: Sequence[Stage], partial: Path, dtype: torch.dtype, beside: Sequence[Saved]) -> None:
    state = {name: weight.to(dtype) for name, weight in named_weights(stages).items()}
    sizes = _sizes(state)
    on_first(lambda: make_folder(partial, WRITTEN_TIMES * sum(sizes.values())))
    writer = HuggingFaceStorageWriter(
        path=str(partial), fqn_to_index_mapping=_file_index(sizes), save_distributed=True, enable_consolidation=True
    )
    dcp.save(state, storage_writer=writer)
    on_first(lambda: _finish(partial, beside))


def _finish(partial: Path, beside: Sequence[Saved]) -> None:
    shutil.rmtree(partial / "sharded", ignore_errors=True)
    for part in beside:
        part.save_pretrained(str(partial))


def _rename(partial: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _sizes(state: dict[str, Tensor]) -> dict[str, int]:
    """Return the bytes of each weight of the whole model; the same on all ranks."""
    parts = together(lambda: {name: weight.numel() * weight.element_size() for name, weight in state.items()})
    return {name: size for part in parts for name, size in part.items()}


def _file_index(sizes: dict[str, int]) -> dict[str, int]:
    """Return in which file, counted from 1, each weight of the whole model goes."""
    index, filled, file = {}, 0, 1
    for name in sorted(sizes, key=_order):
        if filled and filled + sizes[name] > FILE_BYTES:
            filled, file = 0, file + 1
        index[name], filled = file, filled + sizes[name]
    return index


def _order(name: str) -> tuple[float, str]:
    layer = next((part for part in name.split(".") if part.isdigit()), None)
    return (math.inf if layer is None else float(layer), name)
