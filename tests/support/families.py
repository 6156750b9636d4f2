"""Small configs of every family that is read, as transformers takes them."""

from typing import Any

_COMMON: dict[str, Any] = {"vocab_size": 96, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_DECODER = _COMMON | {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
}
_LINEAR = {
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def _of(model_type: str, *others: dict[str, Any], **own: Any) -> dict[str, Any]:
    found = _DECODER | {"model_type": model_type}
    for other in others:
        found |= other
    return found | own


_QWEN_MOE = {"num_experts": 6, "shared_expert_intermediate_size": 40}

SMALL_FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": _COMMON | {"model_type": "bloom", "hidden_size": 48, "n_layer": 3, "n_head": 4},
    "deepseek_v3": _of("deepseek_v3", _EXPERTS, _LATENT, first_k_dense_replace=1),
    "deepseek_v3-no-query-latent": _of("deepseek_v3", _EXPERTS, _LATENT, q_lora_rank=None, first_k_dense_replace=2),
    "deepseek_v32": _of(
        "deepseek_v32", _EXPERTS, _LATENT, index_n_heads=2, index_head_dim=8, index_topk=4, first_k_dense_replace=1
    ),
    "falcon": _of("falcon", multi_query=True, ffn_hidden_size=80),
    "falcon-new": _of("falcon", new_decoder_architecture=True, num_kv_heads=2, bias=True, ffn_hidden_size=80),
    "falcon-serial": _of("falcon", parallel_attn=False, multi_query=False, num_kv_heads=4, ffn_hidden_size=80),
    "gemma": _of("gemma", head_dim=16),
    "gemma2": _of("gemma2", head_dim=16, sliding_window=8),
    "gemma3": _of("gemma3_text", head_dim=16, sliding_window=8, sliding_window_pattern=2),
    "gemma4": _of(
        "gemma4_text",
        head_dim=16,
        global_head_dim=24,
        sliding_window=8,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=0,
        use_double_wide_mlp=True,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "gemma4-same-keys": _of(
        "gemma4_text",
        head_dim=16,
        global_head_dim=24,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=6,
        vocab_size_per_layer_input=50,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "glm": _of("glm", head_dim=12),
    "glm4": _of("glm4", head_dim=12),
    "glm4_moe": _of(
        "glm4_moe", _EXPERTS, n_routed_experts=6, n_group=1, topk_group=1, use_qk_norm=True, attention_bias=True
    ),
    "glm4_moe_lite": _of("glm4_moe_lite", _EXPERTS, _LATENT),
    "gpt_oss": _of("gpt_oss", num_local_experts=6, num_experts_per_tok=2, head_dim=16, sliding_window=8),
    "granite": _of("granite"),
    "llama4": _of(
        "llama4_text",
        num_local_experts=4,
        intermediate_size_mlp=120,
        interleave_moe_layer_step=2,
        attention_chunk_size=8,
        head_dim=16,
    ),
    "ministral": _of(
        "ministral", head_dim=12, sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "ministral3": _of("ministral3", head_dim=16),
    "mpt": _COMMON | {"model_type": "mpt", "d_model": 48, "n_heads": 4, "n_layers": 3},
    "nemotron_h": _of(
        "nemotron_h",
        _EXPERTS,
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
        head_dim=16,
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        n_routed_experts=6,
        moe_shared_expert_intermediate_size=40,
    ),
    "olmo2": _of("olmo2"),
    "olmo3": _of("olmo3", sliding_window=8),
    "olmoe": _of("olmoe", num_experts=6, num_experts_per_tok=2),
    "phi3": _of("phi3"),
    "phimoe": _of("phimoe", num_local_experts=6, attention_bias=True, lm_head_bias=True),
    "qwen2_moe": _of("qwen2_moe", _EXPERTS, _QWEN_MOE),
    "qwen3_moe": _of("qwen3_moe", _EXPERTS, num_experts=6, head_dim=16, decoder_sparse_step=2),
    "qwen3_next": _of("qwen3_next", _EXPERTS, _QWEN_MOE, _LINEAR),
    "qwen3_5": _of("qwen3_5_text", _LINEAR),
    "qwen3_5_moe": _of("qwen3_5_moe_text", _EXPERTS, _QWEN_MOE, _LINEAR),
    "smollm3": _of("smollm3"),
}
