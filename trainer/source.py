"""Where a model comes from: its config, and the checkpoint with its weights, if there is one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, MistralConfig, PreTrainedConfig

from estimator.work.shape import MOST_CONFIG_BYTES, builtin_configs
from hardware.errors import shown
from hardware.files import read_regular_file

TINY: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "sliding_window": None,
}
"""A Mistral that a laptop trains in minutes."""

_CHECKPOINT_FILES = ("*.json", "*.safetensors", "tokenizer*", "*.model")


@dataclass(frozen=True)
class ModelSource:
    """A model before it has memory."""

    name: str
    config: PreTrainedConfig
    weights: Path | None
    """Folder of its safetensors; None where its weights are drawn at random."""


def find_model(model: str, vocab_size: int) -> ModelSource:
    """Return the model of a folder, a config.json, a hub id, or "" for a tiny one.

    Args:
        model: as the command line gives it.
        vocab_size: of the tokenizer, which every id must fit.

    Raises:
        ValueError: no such model, an unusable config, missing weights, or a vocabulary smaller than the tokenizer's.
    """
    if not model:
        return ModelSource("tiny-mistral", MistralConfig(vocab_size=-(-vocab_size // 64) * 64, **TINY), None)
    path = Path(model)
    if path.suffix == ".json":
        source = ModelSource(path.resolve().parent.name, _read_config(path), None)
    elif path.is_dir():
        source = ModelSource(path.resolve().name, _read_config(path / "config.json"), path)
        if not any(path.glob("*.safetensors")):
            mend = "convert the checkpoint to safetensors, or give the config.json itself to start from random weights"
            raise ValueError(f"model: {shown(model, 200)} holds no *.safetensors; {mend}")
    else:
        source = _from_hub(model)
    if source.config.vocab_size < vocab_size:
        raise ValueError(
            f"model: {shown(source.name)} has a vocabulary of {source.config.vocab_size}, the tokenizer one of "
            f"{vocab_size}; give the tokenizer that belongs to it"
        )
    return source


def find_config(model: str) -> ModelSource:
    """Return a model of which the config alone is needed: as `find_model`, or a name that the estimator knows.

    Raises:
        ValueError: there is no such model, or its config is unusable.
    """
    known = {name.casefold(): name for name in builtin_configs()}
    if model.casefold() in known:
        name = known[model.casefold()]
        document = {key: value for key, value in builtin_configs()[name].items() if key != "source"}
        return ModelSource(name, config_of(document, name), None)
    path = Path(model)
    return find_model(str(path / "config.json") if path.is_dir() else model, vocab_size=1)


def _read_config(path: Path) -> PreTrainedConfig:
    try:
        document = json.loads(read_regular_file(path, MOST_CONFIG_BYTES))
    except (OSError, UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"model: {shown(str(path), 200)} cannot be read as JSON; check the path") from error
    except ValueError as error:
        raise ValueError(f"model: {error}") from error
    if not isinstance(document, Mapping) or not isinstance(document.get("model_type"), str):
        raise ValueError(f"model: {shown(str(path), 200)} has no model_type; give a Hugging Face config")
    return config_of(document, str(path))


def config_of(document: Mapping[str, Any], name: str) -> PreTrainedConfig:
    """Return the transformers config of a parsed `config.json`."""
    values = dict(document)
    kind = values.pop("model_type")
    try:
        return AutoConfig.for_model(kind, **values)
    except Exception as error:  # transformers validates with errors of many kinds
        raise ValueError(f"model: {shown(name, 200)} is no usable config: {shown(str(error), 200)}; mend it") from error


def _from_hub(model: str) -> ModelSource:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only this way of naming a model needs it

    known = {name.casefold(): name for name in builtin_configs()}
    name = known.get(model.casefold(), model)
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_CHECKPOINT_FILES)))
    except Exception as error:  # a hub fails in many ways, all of them the same here
        raise ValueError(
            f"model: {shown(model)} is no folder or config.json here, and the hub does not give it "
            f"({type(error).__name__}); check the name, or give a folder"
        ) from error
    return ModelSource(name, _read_config(folder / "config.json"), folder)
