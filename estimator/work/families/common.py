"""What the readers of configs share.

What a config leaves out takes the default of its configuration class (transformers 5.23). A reader counts the
parameters of src/transformers/models/NAME/modeling_NAME.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from estimator.work.config import Config
from estimator.work.layers import Shape
from hardware.errors import shown


def of_layers(layers: Sequence[Shape]) -> Shape:
    """Return the model that has these layers, each given as a model of such layers.

    >>> one = Shape("m", "llama", 64, 1, 4, 4, 16, 128, 100, gated_ffn=True, tied_embeddings=False)
    >>> of_layers([one, replace(one, sliding_window=8), one]).order
    (0, 1, 0)
    """
    kinds = list(dict.fromkeys(layers))
    order = tuple(kinds.index(layer) for layer in layers)
    if len(kinds) == 1:
        return replace(kinds[0], num_layers=len(order))
    parts = tuple(replace(kind, num_layers=order.count(i)) for i, kind in enumerate(kinds))
    main = max(parts, key=lambda kind: (kind.num_heads > 0, kind.num_experts > 0, kind.sliding_window == 0))
    experts = max(parts, key=lambda kind: (kind.num_experts > 0, kind.ffn_size))
    return replace(
        main,
        num_layers=len(order),
        ffn_size=experts.ffn_size,
        num_experts=experts.num_experts,
        num_experts_per_token=experts.num_experts_per_token,
        parts=parts,
        order=order,
    )


def decoder(config: Config, family: str, **traits: Any) -> Shape:
    """Read the keys that most decoders share; traits that are given stand for those of the config."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = traits.pop("num_kv_heads", None) or config.size("num_key_value_heads", heads)
    if "head_dim" not in traits:
        if config.document.get("head_dim") is None and hidden % heads:
            raise ValueError(
                f"model {shown(config.name)}: num_attention_heads = {heads} does not divide hidden_size = {hidden}; "
                "give head_dim"
            )
        traits["head_dim"] = config.size("head_dim", hidden // heads)
    if heads % kv_heads:
        raise ValueError(
            f"model {shown(config.name)}: num_key_value_heads = {kv_heads} does not divide "
            f"num_attention_heads = {heads}; use a divisor"
        )
    usual = {"gated_ffn": True, "tied_embeddings": config.flag("tie_word_embeddings", default=False)}
    if "ffn_size" not in traits:
        traits["ffn_size"] = config.size("intermediate_size")
    return Shape(
        name=config.name,
        family=family,
        hidden_size=hidden,
        num_layers=config.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        vocab_size=config.size("vocab_size"),
        max_positions=config.size("max_position_embeddings", 0),
        **(usual | traits),
    )


def plain_decoder(
    config: Config, family: str, hidden: tuple[str, int], layers: int, heads: tuple[str, int], **traits: Any
) -> Shape:
    """Return a model of plain blocks, all of whose heads have keys of their own; two sizes come with their keys."""
    (hidden_key, width), (heads_key, count) = hidden, heads
    if width % count:
        raise ValueError(f"model {shown(config.name)}: {heads_key} = {count} does not divide {hidden_key} = {width}")
    return Shape(
        name=config.name,
        family=family,
        hidden_size=width,
        num_layers=layers,
        num_heads=count,
        num_kv_heads=count,
        head_dim=width // count,
        vocab_size=config.size("vocab_size"),
        gated_ffn=False,
        tied_embeddings=config.flag("tie_word_embeddings", default=True),
        **({"ffn_size": 4 * width} | traits),
    )


def layer_types(config: Config, default: Callable[[int], str], num_layers: int) -> list[str]:
    """Return the type of each layer, by transformers' names."""
    return config.names("layer_types", [default(i) for i in range(num_layers)])


def windowed(config: Config, shape: Shape, window: int, default: Callable[[int], str]) -> Shape:
    """Return a model some of whose layers look back over a window only."""
    types = layer_types(config, default, shape.num_layers)
    full = replace(shape, sliding_window=0)
    local = replace(shape, sliding_window=window)
    return of_layers([full if kind == "full_attention" else local for kind in types])


def every(period: int, last: str = "full_attention", others: str = "sliding_attention") -> Callable[[int], str]:
    """Return the type of each layer where the last one of each period is of another."""
    return lambda i: others if (i + 1) % period else last


def used_window(config: Config) -> int:
    """Read a window that a flag of its own turns on; 0 without one."""
    return config.size("sliding_window", 0) if config.flag("use_sliding_window", default=False) else 0


def biases(config: Config, *, default: bool = False) -> dict[str, bool]:
    """Read whether attention has biases, where one key tells that of all its matrices."""
    bias = config.flag("attention_bias", default=default)
    return {"qkv_bias": bias, "out_bias": bias}


def experts_of(config: Config, held: str, *others: str, default: int, chosen: int, size: str) -> dict[str, Any]:
    """Read how many experts a layer holds, how many a token meets, and how wide they are."""
    (key, experts), active = config.told(held, *others, default=default), config.size("num_experts_per_tok", chosen)
    if active > experts:
        raise ValueError(f"model {shown(config.name)}: num_experts_per_tok = {active} is more than {key} = {experts}")
    return {"num_experts": experts, "num_experts_per_token": active, "ffn_size": config.size(size)}


def dense_first(config: Config, experts: Shape, dense: Shape, first: int) -> list[Shape]:
    """Return the layers of a mixture whose first ones have one wide block: by `mlp_layer_types`, else so many."""
    types = config.names("mlp_layer_types", ["dense" if i < first else "sparse" for i in range(experts.num_layers)])
    return [dense if kind == "dense" else experts for kind in types]


def without_experts(shape: Shape, ffn_size: int) -> Shape:
    """Return a layer with a dense block of this width instead of its experts."""
    return replace(
        shape,
        num_experts=0,
        num_experts_per_token=0,
        router_bias=False,
        shared_ffn_size=0,
        shared_gate=False,
        ffn_size=ffn_size,
    )


def predicted_tokens(config: Config) -> tuple[str, ...]:
    """Return a note where a model has layers that predict further tokens, which transformers does not load."""
    if not config.count("num_nextn_predict_layers", 0):
        return ()
    return ("the layers of multi-token prediction: transformers leaves them out, and so do these counts",)
