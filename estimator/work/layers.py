"""The sizes of a decoder-only transformer: all that parameters, FLOP and bytes depend on."""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Matrix(NamedTuple):
    """A weight matrix of a mixer."""

    name: str
    in_size: int
    out_size: int
    has_bias: bool = False
    splits_output: bool = True
    """Tensor parallelism splits the output width, else the input width."""


class Mixer(NamedTuple):
    """What mixes the tokens of a layer where that is not attention over queries, keys and values of equal heads."""

    name: str
    """In the field's words: latent attention, gated delta rule, ..."""
    matrices: tuple[Matrix, ...]
    """Of one layer, in the order in which the forward pass meets them; the last one gives the mixer's output."""
    score_size: float = 0.0
    """Mean of the widths of all heads' queries and values, which multiply every pair of tokens; 0 without pairs."""
    state_flop: float = 0.0
    """Forward FLOP per token beside matrices and pairs: those of a recurrent state."""
    moved_size: float = 0.0
    """Elements per token that pass through memory in its ops beside these, forward."""
    kept_size: float = 0.0
    """Elements per token kept for the backward pass that tensor parallelism splits."""
    kept_whole_size: float = 0.0
    """The same of what it does not split."""


TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
"""Matrices of a layer that adapters may lie beside; libraries call them `q_proj` and the like."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one decoder-only transformer; counts are per model unless the name says otherwise.

    Layers that differ are of several kinds (`kinds`), each a shape of its own layers alone; the sizes of the whole are
    then those of the kind with attention and, in a mixture, with experts.
    """

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
    """Matrices that adapters lie beside, of `TARGETS`, each with its own; () where `lora_modules` tells it."""
    lora_modules: tuple[str, ...] = field(default=(), repr=False)
    """Modules that adapters lie beside, as peft is told them (`work.modules`); () for all linear ones."""
    residual_dropout: bool = False
    """A dropout after the feed-forward block, which keeps a mask."""
    num_pre_norms: int = field(default=2, repr=False)  # of these, `Run.digest` counts none: the name tells the model
    """Norms over the hidden size before the blocks of a layer."""
    num_post_norms: int = field(default=0, repr=False)
    """Norms over the hidden size after the blocks of a layer."""
    vectors: int = field(default=0, repr=False)
    """Parameters of a layer beside its matrices, their biases and its norms: sinks, decays, further norms, ..."""
    router_bias: bool = field(default=False, repr=False)
    shared_ffn_size: int = field(default=0, repr=False)
    """Width of the feed-forward block beside the experts that every token meets; 0 without one."""
    shared_gate: bool = field(default=False, repr=False)
    """A gate of one number per token scales what that block gives."""
    mixer: Mixer | None = field(default=None, repr=False)
    """What mixes tokens; None for attention of the sizes above."""
    end_vectors: int = field(default=0, repr=False)
    """Parameters beside the embedding, the final norm and the projection: a norm of the embedding, ..."""
    max_positions: int = field(default=0, repr=False, compare=False)
    """Tokens of the longest row that the model was made for; 0 where its config does not say."""
    parts: tuple["Shape", ...] = field(default=(), repr=False)
    """The kinds of layers, where there are several."""
    order: tuple[int, ...] = field(default=(), repr=False)
    """Which of them each layer is."""
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """What of it the counts leave out or estimate."""

    @property
    def kinds(self) -> tuple["Shape", ...]:
        """Its kinds of layers, each as a model that has these alone."""
        if not self.parts:
            return (self,)
        if not self.lora_rank:
            return self.parts
        rank, targets, modules = self.lora_rank, self.lora_targets, self.lora_modules
        return tuple(replace(part, lora_rank=rank, lora_targets=targets, lora_modules=modules) for part in self.parts)

    @property
    def common_kv_heads(self) -> int:
        """Greatest divisor of the key heads of all layers; 0 where none has any."""
        return math.gcd(*(kind.num_kv_heads for kind in self.kinds))

    @property
    def common_ffn_size(self) -> int:
        """Greatest divisor of the widths of all feed-forward blocks."""
        return math.gcd(*(size for kind in self.kinds for size in (kind.ffn_size, kind.shared_ffn_size)))

    @property
    def active_ffn_size(self) -> int:
        """Width of all that a token passes in a feed-forward block: its experts, and what all tokens share."""
        return self.ffn_size * max(self.num_experts_per_token, 1) + self.shared_ffn_size

    @property
    def num_blocks(self) -> int:
        """Blocks of a layer, each with a residual: one that mixes tokens, and a feed-forward block."""
        return (self.mixer is None or len(self.mixer.matrices) > 0) + (self.ffn_size > 0)

    @property
    def repeats_last_product(self) -> bool:
        """Whether checkpointing repeats a layer's last product: something after it keeps what it needs.

        The mask of a dropout, a norm, or a mixture's experts' outputs, which the gradient of their weights needs; after
        a block beside the experts nothing does, unless a gate scales it.
        """
        experts_are_last = self.num_experts > 0 and (self.shared_ffn_size == 0 or self.shared_gate)
        return self.residual_dropout or experts_are_last or self.num_post_norms > 0

    @property
    def score_size(self) -> float:
        """Mean of the widths of all heads' queries and values, which attention multiplies for every pair of tokens."""
        return self.q_size if self.mixer is None else self.mixer.score_size

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together; values have the same."""
        return self.num_kv_heads * self.head_dim
