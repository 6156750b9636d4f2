"""Models of `measured_runs_2026_11.csv`: their sizes where a row leaves them out, and traits that no column has.

Sizes are those of the models' public configs; each row that states its parameters is held against them within 5 %.
"""

import re
from dataclasses import asdict
from typing import Any, NamedTuple

from raw import Row, number, whole

from estimator.formulas.counts import num_parameters
from estimator.runs.run_table import SHAPE
from estimator.work.shape import Shape
from hardware.errors import shown

PARAMETERS_TOLERANCE = 0.05

_SIZES = ("hidden", "layers", "heads", "kv_heads", "ffn", "vocab")

_KNOWN = {
    "aquila2-7b": (4096, 32, 32, 32, 11008, 100008),
    "baichuan2-13b": (5120, 40, 40, 40, 13696, 125696),
    "gemma-2-2b": (2304, 26, 8, 4, 9216, 256000),
    "gemma-2-9b": (3584, 42, 16, 8, 14336, 256000),
    "intellect-3": (4096, 46, 96, 8, 1408, 151552),
    "qwen1.5-moe-a2.7b": (2048, 24, 16, 16, 1408, 151936),
    "qwen2.5-14b": (5120, 48, 40, 8, 13824, 152064),
    "qwen2.5-3b": (2048, 36, 16, 2, 11008, 151936),
    "qwen3-14b": (5120, 40, 40, 8, 17408, 151936),
    "qwq-32b": (5120, 64, 40, 8, 27648, 152064),
    "stablelm-base-alpha-3b": (4096, 16, 32, 32, 16384, 50688),
}
"""Of models that the table names without sizes, from their configs: in the order of `_SIZES`."""


class _Kind(NamedTuple):
    """What models whose names begin alike share: traits of `Shape`, and what of them is not as it is."""

    pattern: str
    traits: dict[str, Any]
    assumes: str = ""


_BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True, "norm_bias": True}
_ALTERNATE = "attention: every layer sees all tokens"

_KINDS = (
    _Kind(r"llama-3\.2", {"family": "llama", "tied_embeddings": True}),
    _Kind(r"llama-[23]|tinyllama|aquila2|baichuan2", {"family": "llama"}),
    _Kind(r"mistral", {"family": "mistral"}),
    _Kind(r"mixtral-8x7b", {"family": "mixtral", "num_experts": 8, "num_experts_per_token": 2}),
    _Kind(r"qwen2\.5-3b", {"family": "qwen2", "qkv_bias": True, "tied_embeddings": True}),
    _Kind(r"qwen2|qwq", {"family": "qwen2", "qkv_bias": True}),
    _Kind(
        r"qwen1\.5-moe",
        {"family": "qwen2", "qkv_bias": True, "num_experts": 64, "num_experts_per_token": 8},
        "the shared expert: four of the experts that each token meets",
    ),
    _Kind(
        r"qwen3-\d+b-a\d+b",
        {"family": "qwen3", "qk_norm": True, "head_dim": 128, "num_experts": 128, "num_experts_per_token": 8},
    ),
    _Kind(r"qwen3-(?:0\.6|1\.7|4)b", {"family": "qwen3", "qk_norm": True, "head_dim": 128, "tied_embeddings": True}),
    _Kind(r"qwen3-\d+b", {"family": "qwen3", "qk_norm": True, "head_dim": 128}),
    _Kind(
        r"intellect-3",
        {"family": "glm4_moe", "head_dim": 128, "qkv_bias": True, "num_experts": 129, "num_experts_per_token": 9},
        "the shared expert: one more expert that each token meets; the first layer: as the others",
    ),
    _Kind(
        r"gpt-oss-20b",
        {"family": "gpt_oss", "head_dim": 64, "qkv_bias": True, "num_experts": 32, "num_experts_per_token": 4},
        _ALTERNATE,
    ),
    _Kind(
        r"gpt-oss-120b",
        {"family": "gpt_oss", "head_dim": 64, "qkv_bias": True, "num_experts": 128, "num_experts_per_token": 4},
        _ALTERNATE,
    ),
    _Kind(r"gemma-[27]b", {"family": "gemma", "head_dim": 256, "tied_embeddings": True}),
    _Kind(r"gemma-2-", {"family": "gemma2", "head_dim": 256, "tied_embeddings": True}, _ALTERNATE),
    _Kind(r"phi-3", {"family": "phi3"}),
    _Kind(r"phi-2", {"family": "phi", "gated_ffn": False, **_BIASES}),
    _Kind(r"falcon-7b", {"family": "falcon", "gated_ffn": False, "tied_embeddings": True, "norm_bias": True}),
    _Kind(r"stablelm-base-alpha", {"family": "gpt_neox", "gated_ffn": False, **_BIASES}),
    _Kind(r"gpt-\d+b.*\(lumi\)", {"family": "bloom", "gated_ffn": False, "tied_embeddings": True, **_BIASES}),
)
"""Of several that fit, the first counts. ALiBi has no parameters, as rotary positions have none."""

_NOT_MODELLED = (
    (r"deepseek|moonlight", "latent attention is not modelled"),
    (r"nemotron|qwen3-next|qwen3\.5", "layers without softmax attention are not modelled"),
    (r"gemma-3|gemma4", "its alternating windows are most of its attention, and are not modelled"),
    (r"llama-?4", "its chunked attention and its layers that differ are not modelled"),
    (r"glm-4\.6v", "its vision tower is not modelled"),
    (r"nanochat", "its value embeddings and windows are not modelled"),
)


def shape_of(row: Row) -> tuple[Shape, dict[str, str]]:
    """Return the model of a row, and its cells."""
    model = row["model"].rpartition("/")[2]
    name = model.casefold()
    for pattern, why in _NOT_MODELLED:
        if re.match(pattern, name):
            raise ValueError(f"model: {why}")
    kind = next((k for k in _KINDS if re.match(k.pattern, name)), None)
    stated = tuple(whole(row, column) for column in _SIZES)
    sizes = stated if all(stated) else _KNOWN.get(name)
    if kind is None or sizes is None:
        raise ValueError(f"model: {shown(row['model'])}: its sizes are not stated, or its kind is not known")
    hidden, layers, heads, kv_heads, ffn, vocab = (int(size or 0) for size in sizes)
    shape = Shape(
        **{
            "gated_ffn": True,
            "tied_embeddings": False,
            "head_dim": hidden // heads,
            "name": model,
            "hidden_size": hidden,
            "num_layers": layers,
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "ffn_size": ffn,
            "vocab_size": vocab,
            **kind.traits,
        }
    )
    told, counted = number(row, "n_params"), num_parameters(shape)
    if told and abs(counted / told - 1) > PARAMETERS_TOLERANCE:
        raise ValueError(f"model: its sizes make {counted:.4g} parameters, not {told:.4g}")
    usual = {"num_positions": 0, "num_experts": 0, "num_experts_per_token": 0, "sliding_window": 0}
    cells = {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in asdict(shape).items()
        if key in SHAPE.columns and value != usual.get(key)
    }
    return shape, {"model": model, **cells} | ({"assumes": kind.assumes} if kind.assumes else {})
