"""Families with experts, and with latent attention."""

from dataclasses import replace

from estimator.work.config import Config
from estimator.work.families.common import (
    biases,
    decoder,
    dense_first,
    every,
    experts_of,
    layer_types,
    of_layers,
    predicted_tokens,
    used_window,
    windowed,
    without_experts,
)
from estimator.work.layers import Matrix, Mixer, Shape

GROUPED_NOTE = "a layer's split over tensor-parallel ranks, where its latent projections lie whole on every rank"


def mixtral(config: Config) -> Shape:
    """Read a config of mixtral."""
    experts = experts_of(config, "num_local_experts", default=8, chosen=2, size="intermediate_size")
    return decoder(config, "mixtral", **experts, sliding_window=config.size("sliding_window", 0))


def phimoe(config: Config) -> Shape:
    """Read a config of phimoe."""
    experts = experts_of(config, "num_local_experts", default=16, chosen=2, size="intermediate_size")
    window = config.size("sliding_window", 0)
    shape = decoder(config, "phimoe", **experts, **biases(config), norm_bias=True, sliding_window=window)
    return replace(shape, end_vectors=shape.vocab_size * config.flag("lm_head_bias", default=False))


def olmoe(config: Config) -> Shape:
    """Read a config of olmoe."""
    experts = experts_of(config, "num_experts", "num_local_experts", default=64, chosen=8, size="intermediate_size")
    shape = decoder(config, "olmoe", **experts, **biases(config))
    return replace(shape, vectors=shape.q_size + shape.kv_size)


def _sparse(config: Config, shape: Shape) -> Shape:
    """Return a Qwen mixture, of whose layers some have a dense block."""
    if config.document.get("intermediate_size") is None:
        return shape
    dense, step = without_experts(shape, config.size("intermediate_size")), config.size("decoder_sparse_step", 1)
    alone = config.document.get("mlp_only_layers") or []
    return of_layers([dense if i in alone or (i + 1) % step else shape for i in range(shape.num_layers)])


def qwen2_moe(config: Config) -> Shape:
    """Read a config of qwen2_moe."""
    experts = experts_of(config, "num_experts", "num_local_experts", default=60, chosen=4, size="moe_intermediate_size")
    shared = config.size("shared_expert_intermediate_size", 5632)
    bias = config.flag("qkv_bias", default=True)
    shape = decoder(config, "qwen2_moe", **experts, qkv_bias=bias, shared_ffn_size=shared, shared_gate=True)
    return _sparse(config, shape)


def qwen3_moe(config: Config) -> Shape:
    """Read a config of qwen3_moe."""
    experts = experts_of(
        config, "num_experts", "num_local_experts", default=128, chosen=8, size="moe_intermediate_size"
    )
    window = used_window(config)
    shape = decoder(config, "qwen3_moe", **experts, **biases(config), qk_norm=True, sliding_window=window)
    return _sparse(config, shape)


def gpt_oss(config: Config) -> Shape:
    """Read a config of gpt_oss."""
    experts = experts_of(config, "num_local_experts", default=128, chosen=4, size="intermediate_size")
    heads = config.size("num_attention_heads")
    shape = decoder(
        config,
        "gpt_oss",
        **experts,
        **biases(config, default=True),
        head_dim=config.size("head_dim", 64),
        ffn_bias=True,
        router_bias=True,
        vectors=heads,  # a sink of attention per head
    )
    return windowed(config, shape, config.size("sliding_window", 128), every(2))


def llama4(config: Config) -> Shape:
    """Read a config of llama4."""
    experts = experts_of(config, "num_local_experts", default=16, chosen=1, size="intermediate_size")
    shape = decoder(config, "llama4", **experts, **biases(config), head_dim=config.size("head_dim", 128))
    shape = replace(shape, shared_ffn_size=shape.ffn_size)
    dense = without_experts(shape, config.size("intermediate_size_mlp", 16384))
    step, chunk = config.size("interleave_moe_layer_step", 1), config.size("attention_chunk_size", 8192)
    chosen = config.document.get("moe_layers") or range(step - 1, shape.num_layers, step)
    types = layer_types(config, every(4, others="chunked_attention"), shape.num_layers)
    return of_layers(
        [
            replace(shape if i in chosen else dense, sliding_window=0 if kind == "full_attention" else chunk)
            for i, kind in enumerate(types)
        ]
    )


def glm4_moe(config: Config) -> Shape:
    """Read a config of glm4_moe."""
    experts = experts_of(config, "n_routed_experts", default=128, chosen=8, size="moe_intermediate_size")
    shared = experts["ffn_size"] * config.size("n_shared_experts", 1)
    shape = decoder(
        config,
        "glm4_moe",
        **experts,
        head_dim=config.size("head_dim", config.size("hidden_size") // config.size("num_attention_heads")),
        qkv_bias=config.flag("attention_bias", default=False),
        qk_norm=config.flag("use_qk_norm", default=False),
        shared_ffn_size=shared,
        notes=predicted_tokens(config),
    )
    dense = without_experts(shape, config.size("intermediate_size"))
    return of_layers(dense_first(config, shape, dense, config.count("first_k_dense_replace", 1)))


def _latent(config: Config) -> tuple[Mixer, dict[str, int]]:
    """Read multi-head latent attention, and the sizes of the shape that follow from it.

    DeepSeek-AI 2024, arXiv:2405.04434, section 2.1: queries from a latent of q_lora_rank, keys and values from one of
    kv_lora_rank, and a rotary part of the keys that all heads share.
    """
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_rank, rope = config.size("kv_lora_rank", 512), config.size("qk_rope_head_dim", 64)
    nope, value = config.size("qk_nope_head_dim", 128), config.size("v_head_dim", 128)
    bias, qk = config.flag("attention_bias", default=False), nope + rope
    q_rank = config.size("q_lora_rank", 1536) if "q_lora_rank" not in config.document else config.size("q_lora_rank", 0)
    query: tuple[Matrix, ...] = (Matrix("q", hidden, heads * qk),)
    if q_rank:
        query = (Matrix("q.a", hidden, q_rank, bias, False), Matrix("q.b", q_rank, heads * qk))
    mixer = Mixer(
        "latent attention",
        (
            *query,
            Matrix("kv.a", hidden, kv_rank + rope, bias, False),
            Matrix("kv.b", kv_rank, heads * (nope + value)),
            Matrix("o", heads * value, hidden, bias, False),
        ),
        score_size=heads * (qk + value) / 2,
        moved_size=2.0 * heads * 2 * qk,
        kept_size=heads * (2.0 * qk + 2.0 * value),
        kept_whole_size=2.0 * q_rank + 2.0 * kv_rank + rope,
    )
    return mixer, {"head_dim": qk, "num_kv_heads": heads, "vectors": q_rank + kv_rank}


def _deepseek_like(config: Config, family: str, mixer: Mixer, sizes: dict[str, int], num_dense: int = 3) -> Shape:
    """Return a mixture of latent attention whose first layers are dense."""
    experts = experts_of(
        config, "n_routed_experts", "num_local_experts", default=256, chosen=8, size="moe_intermediate_size"
    )
    shared = experts["ffn_size"] * config.size("n_shared_experts", 1)
    notes = (GROUPED_NOTE, *predicted_tokens(config))
    shape = decoder(config, family, **experts, **sizes, mixer=mixer, shared_ffn_size=shared, notes=notes)
    dense = without_experts(shape, config.size("intermediate_size"))
    first = config.count("first_k_dense_replace", num_dense)
    return of_layers(dense_first(config, shape, dense, first))


def deepseek_v3(config: Config) -> Shape:
    """Read a config of deepseek_v3."""
    return _deepseek_like(config, "deepseek_v3", *_latent(config))


def glm4_moe_lite(config: Config) -> Shape:
    """Read a config of glm4_moe_lite."""
    return _deepseek_like(config, "glm4_moe_lite", *_latent(config), num_dense=1)


def deepseek_v32(config: Config) -> Shape:
    """Read latent attention to the keys that an indexer chooses.

    DeepSeek-AI 2025, DeepSeek-V3.2-Exp, section 2: `index_n_heads` small heads score all keys, the best `index_topk`
    are attended to. Beside the window that this is to attention, the indexer's scores meet every key.
    """
    mixer, sizes = _latent(config)
    hidden, q_rank = config.size("hidden_size"), config.size("q_lora_rank", 1536)
    heads, width = config.size("index_n_heads", 64), config.size("index_head_dim", 128)
    matrices = (
        Matrix("index.q", q_rank, heads * width),
        Matrix("index.k", hidden, width, False, False),
        Matrix("index.weights", hidden, heads, False, False),
    )
    mixer = mixer._replace(name="indexed latent attention", matrices=(*matrices, *mixer.matrices))
    sizes = sizes | {"vectors": sizes["vectors"] + 2 * width, "sliding_window": config.size("index_topk", 2048)}
    shape = _deepseek_like(config, "deepseek_v32", mixer, sizes)
    note = "the indexer's scores over all keys, and what it keeps"
    return replace(shape, notes=(*shape.notes, note))
