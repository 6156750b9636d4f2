"""Families whose every feed-forward block is dense."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from estimator.work.config import Config
from estimator.work.families.common import (
    biases,
    decoder,
    every,
    layer_types,
    of_layers,
    plain_decoder,
    used_window,
    windowed,
)
from estimator.work.layers import Matrix, Mixer, Shape
from hardware.errors import shown

ALL_BIASES = dict.fromkeys(("qkv_bias", "out_bias", "ffn_bias", "norm_bias"), True)


def gpt2(config: Config) -> Shape:
    """Read a config of gpt2."""
    hidden = config.told("n_embd")
    return plain_decoder(
        config,
        "gpt2",
        hidden,
        config.size("n_layer"),
        config.told("n_head"),
        ffn_size=config.size("n_inner", 4 * hidden[1]),
        num_positions=config.size("n_positions"),
        residual_dropout=config.number("resid_pdrop", 0.1) > 0,
        **ALL_BIASES,
    )


def llama(config: Config, family: str = "llama") -> Shape:
    """Read a config of llama, or of a family that is like it."""
    return decoder(config, family, **biases(config), ffn_bias=config.flag("mlp_bias", default=False))


def mistral(config: Config, family: str = "mistral") -> Shape:
    """Read a config of mistral, or of a family that is like it."""
    return decoder(config, family, sliding_window=config.size("sliding_window", 0))


def ministral(config: Config) -> Shape:
    """Read a config of ministral."""
    window = config.size("sliding_window", 0)
    return windowed(config, decoder(config, "ministral"), window, lambda _: "sliding_attention")


def _qwen_window(config: Config, shape: Shape) -> Shape:
    """Return a Qwen model with its window, which its layers from `max_window_layers` on have where it is used."""
    window = used_window(config)
    first = config.count("max_window_layers", 28)
    return windowed(config, shape, window, lambda i: "sliding_attention" if window and i >= first else "full_attention")


def qwen2(config: Config) -> Shape:
    """Read a config of qwen2."""
    return _qwen_window(config, decoder(config, "qwen2", qkv_bias=True))


def qwen3(config: Config) -> Shape:
    """Read a config of qwen3."""
    head_dim = config.size("head_dim", 128)
    return _qwen_window(config, decoder(config, "qwen3", **biases(config), qk_norm=True, head_dim=head_dim))


def smollm3(config: Config) -> Shape:
    """Read a config of smollm3."""
    shape = decoder(
        config,
        "smollm3",
        **biases(config),
        ffn_bias=config.flag("mlp_bias", default=False),
        tied_embeddings=config.flag("tie_word_embeddings", default=True),
    )
    return windowed(config, shape, used_window(config), lambda _: "full_attention")


def _gemma_like(config: Config, family: str, **traits: Any) -> Shape:
    tied = config.flag("tie_word_embeddings", default=True)
    head_dim = config.size("head_dim", 256)
    return decoder(config, family, tied_embeddings=tied, head_dim=head_dim, **biases(config), **traits)


def gemma(config: Config) -> Shape:
    """Read a config of gemma."""
    return _gemma_like(config, "gemma")


def gemma2(config: Config) -> Shape:
    """Read a config of gemma2."""
    shape = _gemma_like(config, "gemma2", num_post_norms=2)
    return windowed(config, shape, config.size("sliding_window", 4096), every(2))


def gemma3(config: Config) -> Shape:
    """Read a config of gemma3."""
    shape = _gemma_like(config, "gemma3", num_post_norms=2, qk_norm=True)
    period = config.size("_sliding_window_pattern", config.size("sliding_window_pattern", 6))
    return windowed(config, shape, config.size("sliding_window", 4096), every(period))


def glm(config: Config, family: str = "glm", num_post_norms: int = 0) -> Shape:
    """Read a config of glm, or of glm4, which has norms after the blocks too."""
    bias, head_dim = config.flag("attention_bias", default=True), config.size("head_dim", 128)
    return decoder(config, family, qkv_bias=bias, head_dim=head_dim, num_post_norms=num_post_norms)


def _olmo2_like(config: Config, family: str) -> Shape:
    shape = decoder(config, family, **biases(config), num_pre_norms=0, num_post_norms=2)
    return replace(shape, vectors=shape.q_size + shape.kv_size)  # queries and keys are normalised over all heads


def olmo2(config: Config) -> Shape:
    """Read a config of olmo2."""
    return _olmo2_like(config, "olmo2")


def olmo3(config: Config) -> Shape:
    """Read a config of olmo3."""
    return windowed(config, _olmo2_like(config, "olmo3"), config.size("sliding_window", 4096), every(4))


def falcon(config: Config) -> Shape:
    """Read a config of falcon."""
    new, parallel = config.flag("new_decoder_architecture", default=False), config.flag("parallel_attn", default=True)
    heads, bias = config.size("num_attention_heads"), config.flag("bias", default=False)
    many = config.size("num_kv_heads", heads) if new or not config.flag("multi_query", default=True) else 1
    two = not parallel or config.size("num_ln_in_parallel_attn", 2 if new else 1) == 2
    return decoder(
        config,
        "falcon",
        num_kv_heads=many,
        head_dim=config.size("hidden_size") // heads,
        ffn_size=config.size("ffn_hidden_size", 4 * config.size("hidden_size")),
        gated_ffn=False,
        tied_embeddings=config.flag("tie_word_embeddings", default=True),
        qkv_bias=bias,
        out_bias=bias,
        ffn_bias=bias,
        norm_bias=True,
        num_pre_norms=1 + two,
    )


def mpt(config: Config) -> Shape:
    """Read a config of mpt; its blocks are four times as wide in transformers' class, whatever expansion_ratio says."""
    hidden, heads = config.told("d_model"), config.told("n_heads")
    most = config.size("max_seq_len", 2048)
    return plain_decoder(config, "mpt", hidden, config.size("n_layers"), heads, max_positions=most)


def bloom(config: Config) -> Shape:
    """Read a config of bloom."""
    hidden = config.told("hidden_size", "n_embed", default=64)
    return plain_decoder(
        config,
        "bloom",
        hidden,
        config.told("n_layer", "num_hidden_layers", default=2)[1],
        config.told("n_head", "num_attention_heads", default=8),
        end_vectors=2 * hidden[1],
        max_positions=config.size("seq_length", 0),
        **ALL_BIASES,
    )


def gemma4(config: Config) -> Shape:
    """Read Gemma 4: wider heads in full attention, keys that later layers share, inputs of every layer."""
    shape = _gemma_like(config, "gemma4", num_post_norms=2)
    types = layer_types(config, every(6), shape.num_layers)
    types[-1] = "full_attention"
    if config.flag("enable_moe_block", default=False):
        raise ValueError(f"model {shown(config.name)}: Gemma 4 with experts is not modelled; use one without")
    own, each = config.count("hidden_size_per_layer_input", 256), []
    first_shared = shape.num_layers - config.count("num_kv_shared_layers", 0)
    wide = config.flag("use_double_wide_mlp", default=False)
    for i, kind in enumerate(types):
        is_full, shares = kind == "full_attention", i >= first_shared
        layer = _gemma4_attention(config, shape, i, is_full=is_full, shares=shares)
        ffn = shape.ffn_size * (2 if wide and shares else 1)
        window = 0 if is_full else config.size("sliding_window", 512)
        extra = own * 2 * shape.hidden_size + shape.hidden_size if own else 0
        each.append(replace(layer, ffn_size=ffn, sliding_window=window, vectors=layer.vectors + extra))
    return replace(of_layers(each), **_gemma4_ends(config, shape, own))


def _gemma4_ends(config: Config, shape: Shape, own: int) -> dict[str, Any]:
    """Return the embeddings of every layer and their projection, which stand with the token embedding."""
    width = own * shape.num_layers
    held = (config.size("vocab_size_per_layer_input", 262144) + shape.hidden_size) * width + own
    note = "the products of its inputs of every layer; their embeddings lie with the token embedding"
    return {"end_vectors": held if own else 0, "notes": (note,) if own else ()}


def _gemma4_attention(config: Config, shape: Shape, layer: int, *, is_full: bool, shares: bool) -> Shape:
    head_dim, kv_heads = shape.head_dim, shape.num_kv_heads
    same = config.flag("attention_k_eq_v", default=False) and is_full
    if is_full:
        per_layer = config.document.get("per_layer_config")  # as transformers saves it, in place of the global_ keys
        of_layer = per_layer if isinstance(per_layer, Mapping) else {}
        own = next((of_layer[key] for key in (str(layer), f"{layer:02d}", f"{layer:03d}") if key in of_layer), None)
        given = Config(own, config.name) if isinstance(own, Mapping) else config
        prefix = "" if isinstance(own, Mapping) else "global_"
        head_dim = given.size(f"{prefix}head_dim", 512)
        kv_heads = given.size(f"num_{prefix}key_value_heads", kv_heads) if same else kv_heads
    hidden, q, kv, bias = shape.hidden_size, shape.num_heads * head_dim, kv_heads * head_dim, shape.qkv_bias
    keys = () if shares else (Matrix("k", hidden, kv, bias),) + (() if same else (Matrix("v", hidden, kv, bias),))
    mixer = Mixer(
        "attention",
        (Matrix("q", hidden, q, bias), *keys, Matrix("o", q, hidden, bias, False)),
        score_size=float(q),
        moved_size=2.0 * (q + kv),
        kept_size=2.0 * q + (0.0 if shares else 2.0 * kv),
    )
    vectors = head_dim * (1 if shares else 2)
    return replace(shape, mixer=mixer, head_dim=head_dim, num_kv_heads=kv_heads, vectors=vectors)
