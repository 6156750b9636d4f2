"""Families some of whose layers keep a recurrent state instead of keys and values."""

from dataclasses import replace
from typing import Any

from estimator.work.config import Config
from estimator.work.families.common import biases, decoder, every, experts_of, layer_types, of_layers, predicted_tokens
from estimator.work.layers import Matrix, Mixer, Shape
from hardware.errors import shown

NO_MIXER = Mixer("none", ())
"""Of a layer that is a feed-forward block alone."""

STATE_NOTE = "what layers of {} keep for the backward pass: counted from the algorithm, not measured"

DELTA_CHUNK = 64
"""Tokens of a chunk of the gated delta rule.  # documented: transformers' `chunk_gated_delta_rule`, chunk_size"""


def _gated_delta(config: Config, *, fused: bool) -> tuple[Mixer, int]:
    """Read a gated delta network, and its parameters beside matrices.

    Yang et al. 2024, arXiv:2412.06464. FLOP of a token and head in chunks of c, widths k and v: 2 (3 c k + 2 c v +
    3 k v), by the products of transformers' `torch_chunk_gated_delta_rule`; the convolution 2 per tap.
    """
    hidden, taps = config.size("hidden_size"), config.size("linear_conv_kernel_dim", 4)
    key, value = config.size("linear_key_head_dim", 128), config.size("linear_value_head_dim", 128)
    key_heads, heads = config.size("linear_num_key_heads", 16), config.size("linear_num_value_heads", 32)
    keys, values = key * key_heads, value * heads
    convolved, chunk = 2 * keys + values, DELTA_CHUNK
    into = (
        (Matrix("qkvz", hidden, convolved + values), Matrix("ba", hidden, 2 * heads))
        if fused
        else (
            Matrix("qkv", hidden, convolved),
            Matrix("z", hidden, values),
            Matrix("b", hidden, heads),
            Matrix("a", hidden, heads),
        )
    )
    mixer = Mixer(
        "gated delta rule",
        (*into, Matrix("out", values, hidden, False, False)),
        state_flop=2.0 * heads * (3 * chunk * key + 2 * chunk * value + 3 * key * value) + 2.0 * taps * convolved,
        moved_size=4.0 * convolved + 4.0 * values,
        kept_size=2.0 * convolved + 3.0 * values + heads * (chunk + 2.0),
    )
    return mixer, taps * convolved + 2 * heads + value


def _qwen3_next_like(config: Config, family: str, *, fused: bool, **traits: Any) -> Shape:
    """Return a model of gated delta networks, every fourth layer of gated attention instead."""
    head_dim = config.size("head_dim", 256)
    shape = decoder(config, family, **biases(config), qk_norm=True, head_dim=head_dim, **traits)
    hidden, q, kv = shape.hidden_size, shape.q_size, shape.kv_size
    gated = Mixer(
        "gated attention",
        (
            Matrix("q", hidden, 2 * q, shape.qkv_bias),
            Matrix("k", hidden, kv, shape.qkv_bias),
            Matrix("v", hidden, kv, shape.qkv_bias),
            Matrix("o", q, hidden, shape.out_bias, False),
        ),
        score_size=float(q),
        moved_size=2.0 * (q + kv) + 3.0 * q,
        kept_size=4.0 * q + 2.0 * kv,
    )
    delta, vectors = _gated_delta(config, fused=fused)
    notes = (STATE_NOTE.format("gated delta rule"),)
    full = replace(shape, mixer=gated, notes=notes)
    linear = replace(full, mixer=delta, vectors=vectors, qk_norm=False, num_heads=0, num_kv_heads=0, head_dim=0)
    period = config.size("full_attention_interval", 4)
    types = layer_types(config, every(period, others="linear_attention"), shape.num_layers)
    return of_layers([full if kind == "full_attention" else linear for kind in types])


def qwen3_next(config: Config) -> Shape:
    """Read a config of qwen3_next."""
    experts = experts_of(
        config, "num_experts", "num_local_experts", default=512, chosen=10, size="moe_intermediate_size"
    )
    shared = config.size("shared_expert_intermediate_size", 512)
    return _qwen3_next_like(config, "qwen3_next", fused=True, **experts, shared_ffn_size=shared, shared_gate=True)


def qwen3_5(config: Config) -> Shape:
    """Read a config of qwen3_5."""
    return _qwen3_next_like(config, "qwen3_5", fused=False)


def qwen3_5_moe(config: Config) -> Shape:
    """Read a config of qwen3_5_moe."""
    experts = experts_of(
        config, "num_experts", "num_local_experts", default=256, chosen=8, size="moe_intermediate_size"
    )
    shared = config.size("shared_expert_intermediate_size", 512)
    return _qwen3_next_like(config, "qwen3_5_moe", fused=False, **experts, shared_ffn_size=shared, shared_gate=True)


def _mamba2(config: Config, hidden: int) -> tuple[Mixer, int]:
    """Read a Mamba-2 mixer, and its parameters beside matrices.

    Dao and Gu 2024, arXiv:2405.21060, section 6: FLOP of a token in chunks of c with heads of width p, g groups and a
    state of n: 2 c n g + 2 c p per head + 4 n p per head; the convolution 2 per tap.
    """
    heads, width = config.size("mamba_num_heads", 128), config.size("mamba_head_dim", 64)
    groups, state, taps = config.size("n_groups", 8), config.size("ssm_state_size", 128), config.size("conv_kernel", 4)
    chunk, bias = config.size("chunk_size", 128), config.flag("use_bias", default=False)
    inner = heads * width
    convolved = inner + 2 * groups * state
    conv_bias = config.flag("use_conv_bias", default=True)
    mixer = Mixer(
        "Mamba-2",
        (Matrix("in", hidden, inner + convolved + heads, bias), Matrix("out", inner, hidden, bias, False)),
        state_flop=2.0 * chunk * (state * groups + inner) + 4.0 * state * inner + 2.0 * taps * convolved,
        moved_size=4.0 * convolved + 4.0 * inner,
        kept_size=2.0 * convolved + 3.0 * inner + heads,
    )
    return mixer, (taps + conv_bias) * convolved + 3 * heads + inner


_LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
_BLOCKS = {"mamba": "linear_attention", "attention": "full_attention"}


def nemotron_h(config: Config) -> Shape:
    """Read Nemotron-H: every layer one block, a Mamba-2 mixer, attention, a feed-forward block or experts."""
    pattern = config.document.get("hybrid_override_pattern")
    usual = [_LETTERS.get(letter, letter) for letter in pattern] if isinstance(pattern, str) else None
    key = "layer_types" if config.document.get("layers_block_type") is None else "layers_block_type"
    types = config.names(key, usual)
    types = [_BLOCKS.get(kind, kind) for kind in types]
    if unknown := set(types) - set(_LETTERS.values()):
        raise ValueError(f"model {shown(config.name)}: no layer is of type {shown(min(unknown))}")
    document = dict(config.document) | {"num_hidden_layers": len(types)}
    bias, head_dim = config.flag("mlp_bias", default=False), config.size("head_dim", 128)
    shape = decoder(Config(document, config.name), "nemotron_h", head_dim=head_dim, num_pre_norms=1, gated_ffn=False)
    shape = replace(shape, ffn_bias=bias, notes=(STATE_NOTE.format("Mamba-2"), *predicted_tokens(config)))
    mixer, vectors = _mamba2(config, shape.hidden_size)
    headless = replace(shape, num_heads=0, num_kv_heads=0, head_dim=0)
    kinds = {
        "full_attention": replace(shape, ffn_size=0),
        "linear_attention": replace(headless, mixer=mixer, vectors=vectors, ffn_size=0),
        "mlp": replace(headless, mixer=NO_MIXER),
    }
    if "moe" in types:
        if config.document.get("moe_latent_size") is not None:
            raise ValueError(f"model {shown(config.name)}: experts with moe_latent_size are not modelled")
        experts = experts_of(config, "n_routed_experts", default=8, chosen=2, size="moe_intermediate_size")
        shared = config.size("moe_shared_expert_intermediate_size", 7688)
        kinds["moe"] = replace(kinds["mlp"], **experts, shared_ffn_size=shared)
    return of_layers([kinds[kind] for kind in types])
