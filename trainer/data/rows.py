"""Rows of a dataset, one at a time, from files or the hub; what is wrong with one is said with its place."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hardware.errors import shown
from trainer.data.cache import file_digest, key_of
from trainer.data.prompt import columns_of, parts_of

SUFFIXES = (".jsonl", ".json", ".parquet")
MAX_ARRAY_BYTES = 2**28
"""Of a file that is one JSON array: it is read whole, and its objects take some ten times as much memory."""
MAX_LINE = 2**26
"""Characters of a line; a longer one would fill the memory."""
BATCH_ROWS = 1000
"""Rows of a Parquet file or hub dataset that are Python objects at a time."""

Row = tuple[str, dict[str, str]]
"""Where a row stands, for errors, and the parts of its form (`trainer.data.prompt.COLUMNS`)."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def open_source(dataset: str) -> "Files | Hub":
    """Return the source that a dataset's name means: a file, a folder of files, or a hub id.

    Raises:
        ValueError: there is none.
    """
    path, where = Path(dataset), f"dataset {shown(dataset, 200)}"
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
        files = sorted(path.iterdir()) if is_folder else []
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: cannot be read; check the path") from error
    if is_folder:
        files = [file for file in files if file.suffix in SUFFIXES and file.is_file()]
        if not files:
            raise ValueError(f"{where}: holds no {', '.join(SUFFIXES)} file; give a folder that does")
        return Files(dataset, tuple(files))
    if path.suffix in SUFFIXES or is_file or not _HUB_ID.fullmatch(dataset):
        if not is_file:
            raise ValueError(f"{where}: no such file; check the path")
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{where}: its name ends in none of {', '.join(SUFFIXES)}; rename it by its form")
        return Files(dataset, (path,))
    return _hub(dataset, where)


@dataclass(frozen=True)
class Files:
    """JSON Lines, JSON arrays and Parquet files, one after another."""

    name: str
    paths: tuple[Path, ...]

    def digest(self) -> str:
        """Return the digest of the files' names' endings and bytes."""
        try:
            return key_of(*((path.suffix, file_digest(path)) for path in self.paths))
        except OSError as error:
            raise ValueError(
                f"dataset {shown(str(error.filename), 200)}: cannot be read; check who may read it"
            ) from error

    def rows(self) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            ValueError: one cannot be read: which, why and the mend.
        """
        for path in self.paths:
            read = _parquet_rows if path.suffix == ".parquet" else _json_rows
            where = f"dataset {shown(str(path), 200)}"
            try:
                for place, parts in read(path):
                    yield f"{where}: {place}", parts
            except (OSError, UnicodeError, pa.ArrowException) as error:
                raise ValueError(
                    f"{where}: is no readable {path.suffix[1:]} ({_reason(error)}); check the file"
                ) from error
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error


def _reason(error: Exception) -> str:
    return shown(str(error).partition("\n")[0], 120)


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[Row]:
    for place, row in _json_objects(path):
        if not isinstance(row, dict):
            raise ValueError(f"{place}: {shown(row)} is not an object; write one row per object")
        try:
            yield place, parts_of(row, columns_of(row))  # each row may have other keys
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error


def _json_objects(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each value of a file of JSON Lines, or of one array, with its place."""
    with path.open(encoding="utf-8-sig") as file:
        if _first_character(path) == "[":
            if path.stat().st_size > MAX_ARRAY_BYTES:
                raise ValueError(f"an array of more than {MAX_ARRAY_BYTES} bytes is read whole; write JSON Lines")
            for number, row in enumerate(_parsed(file.read(), "the file"), start=1):
                yield f"row {number}", row
            return
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise ValueError(f"line {number} has more than {MAX_LINE} characters; write one row per line")
            if line.strip():
                yield f"line {number}", _parsed(line, f"line {number}")


def _first_character(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as file:
        while block := file.read(4096):
            if text := block.lstrip():
                return text[0]
    return ""


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}" if place == "the file" else place
        raise ValueError(
            f"{line}, column {error.colno}: is not JSON ({error.msg}); write one object per row"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: is not JSON that can be read; write one object per row") from error


# --- Parquet and the hub ----------------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        columns = columns_of(file.schema_arrow.names)
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns.values()))
        yield from _numbered((row for batch in batches for row in batch.to_pylist()), columns)


def _numbered(rows: Iterator[Mapping[str, Any]], columns: Mapping[str, str]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        try:
            yield f"row {number}", parts_of(row, columns)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error


@dataclass(frozen=True)
class Hub:
    """The train split of a hub dataset, as the package datasets keeps it on the disk."""

    name: str
    split: Any

    def digest(self) -> str:
        """Return the digest of its files on the disk."""
        return key_of(*(file_digest(Path(file["filename"])) for file in self.split.cache_files))

    def rows(self) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            ValueError: one cannot be read: which, why and the mend.
        """
        where = f"dataset {shown(self.name)}"
        try:
            columns = columns_of(self.split.column_names)
            kept = self.split.select_columns(list(columns.values()))
            rows = (row for batch in kept.iter(BATCH_ROWS) for row in _unzipped(batch))
            for place, parts in _numbered(rows, columns):
                yield f"{where}: {place}", parts
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{where}: its files cannot be read ({_reason(error)}); load it anew") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _unzipped(batch: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for cells in zip(*batch.values(), strict=True):
        yield dict(zip(batch, cells, strict=True))


def _hub(dataset: str, where: str) -> Hub:
    try:
        import datasets  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise ValueError(
            f"{where}: is no file or folder here, and hub datasets need the package datasets; "
            f"correct the path, or pip install datasets"
        ) from error
    try:
        return Hub(dataset, datasets.load_dataset(dataset, split="train", keep_in_memory=False))
    except (OSError, ValueError) as error:  # what datasets raises has one of them among its bases
        raise ValueError(
            f"{where}: cannot be loaded from the hub ({_reason(error)}); check its id and the network"
        ) from error
