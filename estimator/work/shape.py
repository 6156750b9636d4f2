"""Find a model's shape: by a built-in name, a Hugging Face `config.json`, or the local hub cache.

A shape comes from a Hugging Face `config.json` (a file, or the directory that holds it), from a built-in name
(`estimator/data/models.toml`, which holds published configs with their source), or, by its hub id, from the config that
the local hub cache holds. Nothing is fetched.
"""

import functools
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

from estimator.work.config import MAX_SIZE, Config
from estimator.work.families.table import READERS
from estimator.work.layers import TARGETS, Matrix, Mixer, Shape
from hardware.errors import shown, unknown_name
from hardware.files import read_regular_file

__all__ = [
    "MAX_SIZE",
    "TARGETS",
    "Matrix",
    "Mixer",
    "Shape",
    "builtin_configs",
    "builtin_shape",
    "load_shape",
    "shape_from_config",
]

MAX_NAME = 200
"""No model has a longer name; a longer one does not fit a table."""

OF_TABLE = ("source", "checked")
"""Keys of a built-in record that are no config's."""

MOST_CONFIG_BYTES = 2**24
"""Of a config.json; the largest of models have some 100 KiB."""

MOST_REF_BYTES = 2**12
"""Of a file of the cache that names a commit."""

TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
"""Where a model of several media keeps the config of its language model."""


def shape_from_config(document: Any, name: str) -> Shape:
    """Return the shape that a Hugging Face config describes.

    Args:
        document: the parsed `config.json`.
        name: how to call the model in tables and errors.

    Raises:
        ValueError: the config is no mapping, its `model_type` is unknown, or a size is missing or impossible.

    >>> shape_from_config({"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 100,
    ...                    "n_positions": 32}, "tiny").ffn_size
    256
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"model {shown(name)}: its config is not a JSON object")
    model_type = document.get("model_type")
    text = next((document[key] for key in TEXT_CONFIGS if isinstance(document.get(key), Mapping)), None)
    if text is not None and model_type not in READERS:
        return _text_part(document, text, name)
    reader = READERS.get(model_type) if isinstance(model_type, str) else None
    if reader is None:
        raise ValueError(
            f"model {shown(name)}: model_type {shown(model_type)} is not modelled; use one of {', '.join(READERS)}"
        )
    return reader(Config(document, name))


def _text_part(document: Mapping[str, Any], text: Mapping[str, Any], name: str) -> Shape:
    """Return the shape of the language model of a model of several media, and a note of what is left out."""
    tied = {"tie_word_embeddings": document["tie_word_embeddings"]} if "tie_word_embeddings" in document else {}
    shape = shape_from_config(tied | dict(text), name)
    note = f"all of {document.get('model_type')} but its language model ({text.get('model_type')})"
    return replace(shape, notes=(*shape.notes, note))


@functools.cache
def builtin_configs() -> dict[str, dict[str, Any]]:
    """Return the built-in configs by name (`estimator/data/models.toml`)."""
    text = resources.files("estimator").joinpath("data/models.toml").read_text(encoding="utf-8")
    return {record.pop("id"): record for record in tomllib.loads(text)["model"]}


def builtin_shape(model: str) -> Shape | None:
    """Return the shape of a built-in name, whole or without its owner, in any case; None where there is none."""
    configs, wanted = builtin_configs(), model.casefold()
    found = [name for name in configs if wanted in (name.casefold(), name.casefold().rpartition("/")[2])]
    if len(found) != 1:
        return None
    return shape_from_config({k: v for k, v in configs[found[0]].items() if k not in OF_TABLE}, found[0])


def load_shape(model: str) -> Shape:
    """Return the shape of a built-in name, a `config.json`, a directory that holds one, or a hub id in the local cache.

    A short name without its owner is enough where it is unique, and case does not matter.

    Raises:
        ValueError: nothing of that name, or its config is not usable.

    >>> load_shape("mistral-7b-v0.1").num_kv_heads
    8
    """
    if shape := builtin_shape(model):
        return shape
    cached = _cached_config(model) if _is_plain(model) else None
    path, is_path = cached or Path(model), model.endswith(".json") or model.startswith((".", "/", "~"))
    try:
        if path.is_dir():
            is_path, path = True, path / "config.json"
        text = read_regular_file(path, MOST_CONFIG_BYTES).decode()
    except UnicodeError as error:
        raise ValueError(f"model {shown(model)}: {path.name} is not text in UTF-8; download it again") from error
    except ValueError as error:
        raise ValueError(f"model {error}") from error
    except OSError as error:
        if is_path:
            raise ValueError(f"model {shown(model)}: its config.json cannot be read; check the path") from error
        raise ValueError(unknown_name("model", model, builtin_configs())) from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"model {shown(model)}: {path.name} is not valid JSON; fix or download it again") from error
    if cached is not None:
        return shape_from_config(document, model)
    name, folder = document.get("_name_or_path") if isinstance(document, dict) else None, path.resolve().parent.name
    return shape_from_config(document, next((n for n in (name, folder) if _is_plain(n)), shown(folder)))


def _cached_config(model: str) -> Path | None:
    """Return the config of a hub id that the local cache holds, of the revision that its `main` names; None without.

    The layout of huggingface_hub: models--OWNER--NAME/refs/main names a commit, snapshots/COMMIT holds its files.
    """
    owner, slash, name = model.partition("/")
    if (
        not slash
        or not owner.strip(".")
        or not name.strip(".")
        or "/" in name
        or len(model) > MAX_NAME
        or "\0" in model
    ):
        return None
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{owner}--{name}"
    try:
        commit = read_regular_file(folder / "refs" / "main", MOST_REF_BYTES).decode().strip()
        path = folder / "snapshots" / commit / "config.json"
        return path if path.is_file() else None
    except (OSError, ValueError):
        return None


def _is_plain(name: Any) -> TypeGuard[str]:
    """Whether a name can stand in a table as it is."""
    plain = isinstance(name, str) and name.isascii() and name.isprintable()
    return plain and name.strip() != "" and len(name) <= MAX_NAME
