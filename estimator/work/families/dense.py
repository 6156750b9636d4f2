"""Families whose every feed-forward block is dense."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from estimator.work.config import Config
from estimator.work.families.common import biases, decoder, every, layer_types, of_layers, windowed
from estimator.work.layers import Matrix, Mixer, Shape
from hardware.errors import shown


def gpt2(config: Config) -> Shape:
    """Read a config of gpt2."""
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


def llama(config: Config) -> Shape:
    """Read a config of llama."""
    return decoder(config, "llama", **biases(config), ffn_bias=config.flag("mlp_bias", default=False))


def granite(config: Config) -> Shape:
    """Read a config of granite."""
    return decoder(config, "granite", **biases(config), ffn_bias=config.flag("mlp_bias", default=False))


def mistral(config: Config) -> Shape:
    """Read a config of mistral."""
    return decoder(config, "mistral", sliding_window=config.size("sliding_window", 0))


def ministral(config: Config) -> Shape:
    """Read a config of ministral."""
    window = config.size("sliding_window", 0)
    return windowed(config, decoder(config, "ministral"), window, lambda _: "sliding_attention")


def ministral3(config: Config) -> Shape:
    """Read a config of ministral3."""
    return decoder(config, "ministral3", sliding_window=config.size("sliding_window", 0))


def _qwen_window(config: Config, shape: Shape) -> Shape:
    """Return a Qwen model with its window, which its layers from `max_window_layers` on have where it is used."""
    window = config.size("sliding_window", 0) if config.flag("use_sliding_window", default=False) else 0
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
    window = config.size("sliding_window", 0) if config.flag("use_sliding_window", default=False) else 0
    return windowed(config, shape, window, lambda _: "full_attention")


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


def phi3(config: Config) -> Shape:
    """Read a config of phi3."""
    return decoder(config, "phi3", sliding_window=config.size("sliding_window", 0))


def glm(config: Config) -> Shape:
    """Read a config of glm."""
    bias = config.flag("attention_bias", default=True)
    return decoder(config, "glm", qkv_bias=bias, head_dim=config.size("head_dim", 128))


def glm4(config: Config) -> Shape:
    """Read a config of glm4."""
    bias = config.flag("attention_bias", default=True)
    return decoder(config, "glm4", qkv_bias=bias, head_dim=config.size("head_dim", 128), num_post_norms=2)


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
    new, parallel = (config.flag(key, default) for key, default in FALCON_FLAGS.items())
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


FALCON_FLAGS = {"new_decoder_architecture": False, "parallel_attn": True}


def mpt(config: Config) -> Shape:
    """Read a config of mpt."""
    hidden, heads = config.size("d_model"), config.size("n_heads")
    return Shape(
        name=config.name,
        family="mpt",
        hidden_size=hidden,
        num_layers=config.size("n_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        ffn_size=4 * hidden,  # transformers' class has that, whatever expansion_ratio says
        vocab_size=config.size("vocab_size"),
        gated_ffn=False,
        tied_embeddings=config.flag("tie_word_embeddings", default=True),
        max_positions=config.size("max_seq_len", 2048),
    )


def bloom(config: Config) -> Shape:
    """Read a config of bloom."""
    hidden = config.size("hidden_size", config.size("n_embed", 64))
    heads = config.size("n_head", config.size("num_attention_heads", 8))
    return Shape(
        name=config.name,
        family="bloom",
        hidden_size=hidden,
        num_layers=config.size("n_layer", config.size("num_hidden_layers", 2)),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        ffn_size=4 * hidden,
        vocab_size=config.size("vocab_size"),
        gated_ffn=False,
        tied_embeddings=config.flag("tie_word_embeddings", default=True),
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        norm_bias=True,
        end_vectors=2 * hidden,
        max_positions=config.size("seq_length", 0),
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
