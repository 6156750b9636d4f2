"""What libraries call the matrices of a layer, and which of them adapters can be told to lie beside.

As transformers 5.23 names its modules and peft 0.21 takes them. A module may hold several matrices, query, key and
value in one, and then has one adapter. The experts of a mixture lie in two parameters, gate and up in one of them: peft
knows some families by the names that their experts had before that, adapts the parameters of all experts, gate and up
at twice the rank, and leaves out every other block of those names (peft/utils/transformers_weight_conversion.py,
`_convert_peft_config_moe`). Experts of other families it passes over.
"""

from typing import NamedTuple

ALL_LINEAR = "all-linear"
"""Every linear module of the layers, as peft says it."""

USUAL = "default"
"""The targets that peft takes where none are given."""

_USUAL_NAMES = {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
_BLOOM = dict.fromkeys("qkv", "query_key_value") | {"o": "dense", "up": "dense_h_to_4h", "down": "dense_4h_to_h"}
_LATENT = {"q.a": "q_a_proj", "q.b": "q_b_proj", "kv.a": "kv_a_proj_with_mqa", "kv.b": "kv_b_proj"}
_INDEXED = {"index.q": "wq_b", "index.k": "wk", "index.weights": "weights_proj"}
_FUSED_UP = dict.fromkeys(("gate", "up"), "gate_up_proj")
_SCALE = {"shared.scale": "shared_expert_gate"}
_DELTA = {name: f"in_proj_{name}" for name in ("qkvz", "ba", "qkv", "z", "b", "a")} | {"out": "out_proj"}

_NAMES: dict[str, dict[str, str]] = {
    "bloom": _BLOOM,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT | _INDEXED,
    "falcon": _BLOOM,
    "glm": _FUSED_UP,
    "glm4": _FUSED_UP,
    "glm4_moe_lite": _LATENT,
    "gpt2": dict.fromkeys("qkv", "c_attn") | {"o": "c_proj", "up": "c_fc", "down": "c_proj"},
    "llama4": {"router": "router"},
    "mpt": dict.fromkeys("qkv", "Wqkv") | {"o": "out_proj"},
    "nemotron_h": {"in": "in_proj", "out": "out_proj"},
    "phi3": dict.fromkeys("qkv", "qkv_proj") | _FUSED_UP,
    "phimoe": {"router": "router"},
    "qwen2_moe": _SCALE,
    "qwen3_5": _DELTA,
    "qwen3_5_moe": _DELTA | _SCALE,
    "qwen3_next": _DELTA | _SCALE,
}
"""Where a family has other names than `q_proj` and the like; a matrix without a name is none that peft adapts."""


class Experts(NamedTuple):
    """Names that peft knows a family's experts by."""

    into: tuple[str, str] = ("gate_proj", "up_proj")
    """Of the two matrices in one parameter."""
    out: str = "down_proj"


PASSED_OVER = {"nemotron_h": "out_proj"}
"""Modules that peft refuses to adapt: of Mamba layers (peft/tuners/tuners_utils.py, `incompatible_modules`)."""

MERGED: dict[str, Experts] = {
    "mixtral": Experts(("w1", "w3"), "w2"),
    **dict.fromkeys(
        ("deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "olmoe", "qwen3_moe", "qwen3_next"), Experts()
    ),
}
"""Families whose experts and router peft adapts, by adding the adapters' product to the weights in every pass."""

_ROUTER = "gate"

_QUERY_AND_VALUE = ("q_proj", "v_proj")
USUAL_TARGETS: dict[str, tuple[str, ...]] = {
    "bloom": ("query_key_value",),
    "falcon": ("query_key_value",),
    "gpt2": ("c_attn",),
    "mpt": ("Wqkv",),
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "llama", "mistral", "qwen2", "qwen3"), _QUERY_AND_VALUE),
}
"""By family; peft has none for the others.  # documented: peft/utils/constants.py, TRANSFORMERS_MODELS_TO_LORA_..."""


def module_of(family: str, matrix: str, *, of_experts: bool) -> str | None:
    """Return the module that a matrix of a layer lies in, as adapters are told it; None where it can have none.

    Args:
        family: of the model.
        matrix: its name in `counts.layer_matmuls`.
        of_experts: the matrix is held once for each expert.

    >>> module_of("phi3", "k", of_experts=False), module_of("qwen2_moe", "up", of_experts=True)
    ('qkv_proj', None)
    """
    merged, own = MERGED.get(family), _NAMES.get(family, {})
    if merged and matrix == "router":
        return _ROUTER
    block = matrix.removeprefix("shared.")
    if merged and block in ("gate", "up", "down"):
        told = {"gate": merged.into[0], "up": merged.into[1], "down": merged.out}
        return told[block] if of_experts else None
    return None if of_experts else own.get(matrix) or own.get(block) or _USUAL_NAMES.get(block)
