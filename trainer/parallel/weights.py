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

from trainer.parallel.adapters import bound, is_adapter, whole_name
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
        found |= {whole_name(name): weight for name, weight in get_model_state_dict(stage).items()}
        if stage.ties_embeddings:
            found.pop("lm_head.weight")
    return found


def adapter_weights(stages: Iterable[Stage]) -> dict[str, Tensor]:
    """Return those of adapters; none where all weights are trained."""
    return {name: weight for name, weight in named_weights(stages).items() if is_adapter(name)}


def base_weights(stages: Iterable[Stage]) -> dict[str, Tensor]:
    """Return those of the model itself."""
    return {name: weight for name, weight in named_weights(stages).items() if not is_adapter(name)}


BLOCK = 2**20
"""Numbers of a matrix that are drawn together, as many whole rows: what ranks share the work in."""


def random_weight(name: str, shape: torch.Size, config: PreTrainedConfig, seed: int) -> Tensor:
    """Return a weight as a new model has it, in 32 bits: the same for a name and a seed, whatever the plan and device.

    Matrices are normal with the config's `initializer_range`, norms are 1, biases 0, as transformers draws them; of
    adapters A is uniform and B is 0, as peft draws them. A number is one of 65,536 quantiles, picked by SFC64, whose
    stream NumPy keeps for ever (NEP 19).
    """
    if (constant := _constant(name, shape)) is not None:
        return torch.full(shape, constant)
    quantiles = _quantiles_of(name, shape, config.initializer_range, torch.float32)
    return torch.cat([_drawn_rows(name, rows, shape[1], quantiles, seed) for rows in _row_blocks(shape)])


def _constant(name: str, shape: torch.Size) -> float | None:
    """Return what all elements are: of a bias and of an adapter's B 0, of a norm 1; None where they are drawn."""
    if len(shape) == 1:
        return 0.0 if name.endswith(".bias") else 1.0
    return 0.0 if ".lora_B." in name else None


def _quantiles_of(name: str, shape: torch.Size, deviation: float, dtype: torch.dtype) -> Tensor:
    """Return the quantiles that a matrix is drawn from, shape (65536,)."""
    return _uniform_quantiles(bound(shape[1]), dtype) if is_adapter(name) else _quantiles(deviation, dtype)


@cache
def _uniform_quantiles(most: float, dtype: torch.dtype) -> Tensor:
    """Return the middles of 65,536 equal parts of what lies between -most and most, shape (65536,)."""
    return torch.from_numpy(most * ((2 * np.arange(2**16) + 1) / 2**16 - 1)).to(dtype)


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
def draw_weights(stages: Sequence[Stage], seed: int, *, adapters_only: bool = False) -> None:
    """Draw the weights of this rank's chunks, block by block on all its threads; never a whole matrix at once."""
    deviation = stages[0].config.initializer_range
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        drawing = []
        for name, weight in (adapter_weights if adapters_only else named_weights)(stages).items():
            constant = _constant(name, weight.shape)
            for offsets, local in local_parts(weight):
                if constant is not None:
                    local.fill_(constant)
                    continue
                quantiles = _quantiles_of(name, weight.shape, deviation, local.dtype)
                place = _Place(name, weight.shape[1], offsets, local, quantiles)
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


def local_parts(weight: Tensor) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield where this rank's part of a weight begins in the whole, and the part."""
    if not isinstance(weight, DTensor):
        yield (0,) * weight.ndim, weight
    elif weight.to_local().numel():
        (chunk,) = weight.__create_chunk_list__()  # as checkpoints ask a DTensor for it
        yield chunk.offsets, weight.to_local()


def load_weights(stages: Sequence[Stage], folder: Path) -> None:
    """Read the weights of this rank's chunks from a Hugging Face checkpoint, each rank its own part only.

    Adapters are left as they are.

    Raises:
        ValueError: the checkpoint lacks one of them, or has it in another shape.
    """
    read_weights(base_weights(stages), folder, "model")


def read_weights(state: dict[str, Tensor], folder: Path, kind: str) -> None:
    """Read tensors from the safetensors of a folder, each rank its own part only.

    Args:
        state: the tensors by their names in the files.
        folder: of the files.
        kind: what errors call it: the option that named it.

    Raises:
        ValueError: the files lack one of them, or have it in another shape.
    """
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    for name, weight in state.items():
        if not isinstance(kept := stored.get(name), TensorStorageMetadata):
            raise ValueError(f"{kind}: {folder.name} has no weight {name}; give a whole checkpoint of its config")
        if kept.size != weight.shape:
            shapes = f"{list(kept.size)}, its config says {list(weight.shape)}"
            raise ValueError(f"{kind}: {folder.name} has {name} in shape {shapes}; give the config it was made with")
    dcp.load(state, storage_reader=reader)


class Saved(Protocol):
    """What writes its own files beside the weights: a config, a tokenizer."""

    def save_pretrained(self, save_directory: str) -> Any:
        """Write them into a folder."""


def export_weights(stages: Sequence[Stage], folder: Path, dtype: torch.dtype, beside: Sequence[Saved]) -> None:
    """Write a Hugging Face checkpoint that `from_pretrained` loads; all ranks call it, each writes its own part.

    Args:
        stages: this rank's chunks, without adapters or with merged ones, which are left out.
        folder: where; it is made whole or not at all.
        dtype: of the weights in the file.
        beside: the config and the tokenizer.

    Raises:
        TogetherError: some rank could not write, or there is no room; nothing is left of what was begun. On all ranks.
        CheckpointException: as that.
    """
    state = {name: weight.to(dtype) for name, weight in base_weights(stages).items()}
    write_weights(state, folder, beside)


def write_weights(state: dict[str, Tensor], folder: Path, beside: Sequence[Saved], *, name_of_file: str = "") -> None:
    """Write tensors as safetensors; all ranks call it, each writes its own part.

    Args:
        state: this rank's tensors, by their names in the files.
        folder: where; it is made whole or not at all.
        beside: what writes its own files beside them.
        name_of_file: of the file, where there is one alone, without an index; "" for the names of a checkpoint.

    Raises:
        TogetherError: some rank could not write, or there is no room; nothing is left of what was begun. On all ranks.
        CheckpointException: as that.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        _write(state, partial, beside, name_of_file)
        on_first(lambda: _rename(partial, folder))
    except (TogetherError, CheckpointException):
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(state: dict[str, Tensor], partial: Path, beside: Sequence[Saved], name_of_file: str) -> None:
    sizes = _sizes(state)
    index = dict.fromkeys(sizes, 1) if name_of_file else _file_index(sizes)
    on_first(lambda: make_folder(partial, WRITTEN_TIMES * sum(sizes.values())))
    writer = HuggingFaceStorageWriter(
        path=str(partial), fqn_to_index_mapping=index, save_distributed=True, enable_consolidation=True
    )
    dcp.save(state, storage_writer=writer)
    on_first(lambda: _finish(partial, beside, name_of_file))


def _finish(partial: Path, beside: Sequence[Saved], name_of_file: str) -> None:
    shutil.rmtree(partial / "sharded", ignore_errors=True)
    if name_of_file:
        (file,) = partial.glob("*.safetensors")
        file.rename(partial / name_of_file)
        (partial / "model.safetensors.index.json").unlink(missing_ok=True)
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
