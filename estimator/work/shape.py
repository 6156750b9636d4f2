"""The shape of a decoder-only transformer: every size that parameters, FLOP and bytes depend on.

A shape comes from a Hugging Face `config.json` (a file, or the directory that holds it) or from a built-in name
(`estimator/data/models.toml`, which holds published configs with their source).
"""

import functools
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

from hardware.errors import shown, unknown_name
from hardware.files import read_regular_file

MAX_SIZE = 2**31
"""No size of a config reaches this; above it a config is a mistake (or an attack), not a model."""

MAX_NAME = 200

MOST_CONFIG_BYTES = 2**24
"""Of a config.json; the largest of models have some 100 KiB."""
"""No model has a longer name; a longer one does not fit a table."""


TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
"""Matrices of a layer that adapters may lie beside; libraries call them `q_proj` and the like."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one decoder-only transformer; counts are per model unless the name says otherwise."""

    name: str
    family: str
    """The `model_type` of its config: models of one family share code, and so kernels."""
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    """Width of the feed-forward block; of one expert in a mixture."""
    vocab_size: int
    gated_ffn: bool
    tied_embeddings: bool
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    norm_bias: bool = False
    """Layer norms carry a bias; root-mean-square norms do not."""
    qk_norm: bool = False
    """Queries and keys are normalised per head."""
    num_positions: int = 0
    """Learned position embeddings; 0 with rotary positions."""
    num_experts: int = 0
    """Experts per layer; 0 in a dense model."""
    num_experts_per_token: int = 0
    sliding_window: int = 0
    """Tokens that attention looks back; 0 without a window."""
    lora_rank: int = 0
    """Rank of the adapters beside matrices of the layers, all else frozen; 0 where everything is trained."""
    lora_targets: tuple[str, ...] = field(default=(), repr=False)  # `Run.digest` counts it where it is told
    """Matrices that adapters lie beside, of `TARGETS`; () for all of them."""
    residual_dropout: bool = False
    """A dropout after the feed-forward block, which keeps a mask."""

    @property
    def repeats_last_product(self) -> bool:
        """Whether checkpointing repeats a layer's last product: something after it keeps what it needs.

        The mask of a dropout, or a mixture's experts' outputs, which the gradient of their weights needs.
        """
        return self.residual_dropout or self.num_experts > 0

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together; values have the same."""
        return self.num_kv_heads * self.head_dim


class _Config:
    """A config document read key by key, so that every error names the model, the key and the rule."""

    def __init__(self, document: Mapping[str, Any], name: str) -> None:
        self.document = document
        self.name = name

    def size(self, key: str, default: int | None = None) -> int:
        """Return a positive integer; `null` and a missing key take the default."""
        value = self.document.get(key)
        if value is None:
            if default is None:
                raise ValueError(f"model {shown(self.name)}: its config lacks {key!r}; add it as a positive integer")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MAX_SIZE:
            raise ValueError(f"model {shown(self.name)}: {key} = {shown(value)} is not a positive integer below 2**31")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean; `null` and a missing key take the default."""
        value = self.document.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ValueError(f"model {shown(self.name)}: {key} = {shown(value)} is not true or false")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a finite number; `null` and a missing key take the default."""
        value = self.document.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_SIZE:
            raise ValueError(f"model {shown(self.name)}: {key} = {shown(value)} is not a finite number")
        return float(value)


def _llama_like(config: _Config, family: str, **traits: Any) -> Shape:
    """Read the keys that Llama, Mistral, Qwen and Mixtral share."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if config.document.get("head_dim") is None and hidden % heads:
        raise ValueError(
            f"model {shown(config.name)}: num_attention_heads = {heads} does not divide hidden_size = {hidden}; "
            "give head_dim"
        )
    kv_heads = config.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ValueError(
            f"model {shown(config.name)}: num_key_value_heads = {kv_heads} does not divide "
            f"num_attention_heads = {heads}; use a divisor"
        )
    return Shape(
        name=config.name,
        family=family,
        hidden_size=hidden,
        num_layers=config.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=config.size("head_dim", hidden // heads),
        ffn_size=config.size("intermediate_size"),
        vocab_size=config.size("vocab_size"),
        gated_ffn=True,
        tied_embeddings=config.flag("tie_word_embeddings", default=False),
        **traits,
    )


def _llama(config: _Config) -> Shape:
    bias = config.flag("attention_bias", default=False)
    ffn_bias = config.flag("mlp_bias", default=False)
    return _llama_like(config, "llama", qkv_bias=bias, out_bias=bias, ffn_bias=ffn_bias)


def _mistral(config: _Config) -> Shape:
    return _llama_like(config, "mistral", sliding_window=config.size("sliding_window", 0))


def _qwen2(config: _Config) -> Shape:
    window = config.size("sliding_window", 0) if config.flag("use_sliding_window", default=False) else 0
    return _llama_like(config, "qwen2", qkv_bias=True, sliding_window=window)


def _qwen3(config: _Config) -> Shape:
    bias = config.flag("attention_bias", default=False)
    window = config.size("sliding_window", 0) if config.flag("use_sliding_window", default=False) else 0
    return _llama_like(config, "qwen3", qkv_bias=bias, out_bias=bias, qk_norm=True, sliding_window=window)


def _mixtral(config: _Config) -> Shape:
    experts, chosen = config.size("num_local_experts", 8), config.size("num_experts_per_tok", 2)
    if chosen > experts:
        raise ValueError(
            f"model {shown(config.name)}: num_experts_per_tok = {chosen} is more than num_local_experts = {experts}"
        )
    return _llama_like(
        config,
        "mixtral",
        num_experts=experts,
        num_experts_per_token=chosen,
        sliding_window=config.size("sliding_window", 0),
    )


def _gpt2(config: _Config) -> Shape:
    hidden, heads = config.size("n_embd"), config.size("n_head")
    if hidden % heads:
        raise ValueError(f"model {shown(config.name)}: n_head = {heads} does not divide n_embd = {hidden}")
    return Shape(
        name=config.name,
        family="gpt2",
        hidden_size=hidden,
        num_layers=config.size("n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        ffn_size=config.size("n_inner", 4 * hidden),
        vocab_size=config.size("vocab_size"),
        gated_ffn=False,
        tied_embeddings=config.flag("tie_word_embeddings", default=True),
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        norm_bias=True,
        num_positions=config.size("n_positions"),
        residual_dropout=config.number("resid_pdrop", 0.1) > 0,
    )


_READERS: dict[str, Callable[[_Config], Shape]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}


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
    reader = _READERS.get(model_type) if isinstance(model_type, str) else None
    if reader is None:
        raise ValueError(
            f"model {shown(name)}: model_type {shown(model_type)} is not modelled; use one of {', '.join(_READERS)}"
        )
    return reader(_Config(document, name))


@functools.cache
def builtin_configs() -> dict[str, dict[str, Any]]:
    """Return the built-in configs by name (`estimator/data/models.toml`)."""
    text = resources.files("estimator").joinpath("data/models.toml").read_text(encoding="utf-8")
    return {record.pop("id"): record for record in tomllib.loads(text)["model"]}


def load_shape(model: str) -> Shape:
    """Return the shape of a built-in name, a `config.json`, or a directory that holds one.

    A short name without its owner is enough where it is unique, and case does not matter.

    Raises:
        ValueError: nothing of that name, or its config is not usable.

    >>> load_shape("mistral-7b-v0.1").num_kv_heads
    8
    """
    configs = builtin_configs()
    wanted = model.casefold()
    found = [name for name in configs if wanted in (name.casefold(), name.casefold().rpartition("/")[2])]
    if len(found) == 1:
        return shape_from_config({k: v for k, v in configs[found[0]].items() if k != "source"}, found[0])
    path, is_path = Path(model), model.endswith(".json") or model.startswith((".", "/", "~"))
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
        raise ValueError(unknown_name("model", model, configs)) from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"model {shown(model)}: {path.name} is not valid JSON; fix or download it again") from error
    name, folder = document.get("_name_or_path") if isinstance(document, dict) else None, path.resolve().parent.name
    return shape_from_config(document, next((n for n in (name, folder) if _is_plain(n)), shown(folder)))


def _is_plain(name: Any) -> TypeGuard[str]:
    """Whether a name can stand in a table as it is."""
    plain = isinstance(name, str) and name.isascii() and name.isprintable()
    return plain and name.strip() != "" and len(name) <= MAX_NAME
