"""What a checkpoint says of its tensors, read so that no code of its own runs.

Torch's `.metadata` is a pickle, and a pickle may name any function of any module to be called. Here names are looked up
in a short list instead: the records of torch's checkpoints, dtypes, sizes and paths. A checkpoint of this trainer holds
tensors alone, which torch reads with `weights_only`; entries that are bytes, which it would unpickle without a list,
are refused.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from hardware.errors import shown

METADATA = ".metadata"

_RECORDS = (
    "Metadata",
    "TensorStorageMetadata",
    "TensorProperties",
    "ChunkStorageMetadata",
    "MetadataIndex",
    "StorageMeta",
    "_MEM_FORMAT_ENCODING",
)
KNOWN = frozenset(
    {
        *(("torch.distributed.checkpoint.metadata", name) for name in _RECORDS),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),  # of Python 3.13
        *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    }
)
"""Module and name of all that a checkpoint's metadata may name."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what is on the list, and refuse all else before it is imported."""
        if (module, name) not in KNOWN:
            raise ValueError(f"{METADATA} names {shown(f'{module}.{name}')}, which no checkpoint's does")
        return super().find_class(module, name)


def read_metadata(folder: Path) -> Metadata:
    """Return the metadata of a checkpoint.

    Raises:
        ValueError: it is missing or damaged, names what it should not, or points out of the checkpoint; in words that
            follow "is damaged: ".
    """
    try:
        with (folder / METADATA).open("rb") as file:
            found: Metadata = _Unpickler(file).load()
    except FileNotFoundError as error:
        raise ValueError(f"{METADATA} is missing") from error
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(METADATA) else f"{METADATA} cannot be read") from error
    except Exception as error:  # a pickle fails in as many ways as there are bytes
        raise ValueError(f"{METADATA} cannot be read") from error
    try:
        _check(found)
    except (AttributeError, TypeError) as error:  # records of the list, put together otherwise
        raise ValueError(f"{METADATA} is no checkpoint's") from error
    return found


def _check(metadata: Metadata) -> None:
    """Refuse what is no tensor, or lies elsewhere."""
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{METADATA} has {shown(name)}, which is no tensor")
    for place in metadata.storage_data.values():
        if Path(place.relative_path).name != place.relative_path or place.transform_descriptors:
            raise ValueError(f"{METADATA} points to {shown(place.relative_path)}, which is no file beside it")


class Reader(FileSystemReader):
    """Torch's reader of a checkpoint's folder, with metadata read as here."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the metadata; as `read_metadata` of this module.

        Raises:
            ValueError: as there.
        """
        found = read_metadata(Path(self.path))
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found
