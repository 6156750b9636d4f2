"""Parameters, FLOP and bytes of a transformer, op by op.

Every function is pure and takes scalars or broadcastable arrays. A multiply-add is 2 FLOP. `passes` of a matrix
product: one forward, one for the input gradient, one for the weight gradient, each with the same FLOP.
"""

from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np

from estimator.arrays import Num
from estimator.work.modules import MERGED, module_of
from estimator.work.shape import Shape

MOST_SHAPES = 256
"""Whose matrices and parameters are remembered: a fit asks for those of a few dozen models a million times."""


class MatMul(NamedTuple):
    """A weight matrix that multiplies the tokens of a layer, or of the vocabulary projection."""

    name: str
    in_size: int
    out_size: int
    num_copies: int
    """Matrices held: 1, or the experts of a mixture."""
    num_active: int
    """Matrices that one token meets."""
    has_bias: bool
    splits_output: bool
    """Tensor parallelism splits the output width (column parallel), else the input width (row parallel)."""


@lru_cache(maxsize=MOST_SHAPES)
def layer_matmuls(shape: Shape) -> tuple[MatMul, ...]:
    """Return the weight matrices of one layer, in the order in which the forward pass meets them."""
    hidden, ffn = shape.hidden_size, shape.ffn_size
    held, active = max(shape.num_experts, 1), max(shape.num_experts_per_token, 1)
    router = (MatMul("router", hidden, shape.num_experts, 1, 1, shape.router_bias, False),) if shape.num_experts else ()
    shared = _ffn_matmuls(shape, "shared.", shape.shared_ffn_size, 1, 1)
    scale = (MatMul("shared.scale", hidden, 1, 1, 1, False, False),) if shape.shared_gate else ()
    return _mixer_matmuls(shape) + router + _ffn_matmuls(shape, "", ffn, held, active) + scale + shared


def _mixer_matmuls(shape: Shape) -> tuple[MatMul, ...]:
    if shape.mixer is not None:
        return tuple(MatMul(m.name, m.in_size, m.out_size, 1, 1, *m[3:]) for m in shape.mixer.matrices)
    hidden = shape.hidden_size
    return (
        MatMul("q", hidden, shape.q_size, 1, 1, shape.qkv_bias, True),
        MatMul("k", hidden, shape.kv_size, 1, 1, shape.qkv_bias, True),
        MatMul("v", hidden, shape.kv_size, 1, 1, shape.qkv_bias, True),
        MatMul("o", shape.q_size, hidden, 1, 1, shape.out_bias, False),
    )


def _ffn_matmuls(shape: Shape, prefix: str, size: int, held: int, active: int) -> tuple[MatMul, ...]:
    if not size:
        return ()
    hidden, bias = shape.hidden_size, shape.ffn_bias
    into = tuple(
        MatMul(f"{prefix}{name}", hidden, size, held, active, bias, True)
        for name in (("gate", "up") if shape.gated_ffn else ("up",))
    )
    return (*into, MatMul(f"{prefix}down", size, hidden, held, active, bias, False))


class Adapted(NamedTuple):
    """A module with an adapter: a matrix, or several in one, which then share it."""

    name: str
    matrices: tuple[MatMul, ...]
    rank: int
    is_merged: bool = False
    """Every pass adds the adapter's product to the weights, and multiplies tokens by the sum (peft, of experts)."""

    @property
    def adapter(self) -> tuple[MatMul, MatMul]:
        """The two matrices of its adapter."""
        first, out_size = self.matrices[0]._replace(has_bias=False), sum(m.out_size for m in self.matrices)
        into = first._replace(name=f"{first.name}.a", out_size=self.rank)
        return into, first._replace(name=f"{first.name}.b", in_size=self.rank, out_size=out_size)


def layer_modules(shape: Shape) -> tuple[Adapted, ...]:
    """Return the modules of one layer that adapters can be told, by the names that peft takes, with their rank."""
    merges, rank = shape.family in MERGED, shape.lora_rank

    def place(matmul: MatMul) -> tuple[str, bool]:
        of_experts = matmul.num_copies > 1
        name = module_of(shape.family, matmul.name, of_experts=of_experts)
        in_one = of_experts and matmul.name in ("gate", "up")  # a parameter of its own, known by both names
        return ",".join(MERGED[shape.family].into) if in_one and merges else name or "", of_experts

    return tuple(
        Adapted(name, matrices, rank * name.count(",") + rank, merges and (of_experts or matrices[0].name == "router"))
        for (name, of_experts), matrices in ((key, tuple(group)) for key, group in groupby(layer_matmuls(shape), place))
        if name
    )


@lru_cache(maxsize=MOST_SHAPES)
def adapted(shape: Shape) -> tuple[Adapted, ...]:
    """Return the modules of one layer that have an adapter; none without adapters."""
    if not shape.lora_rank:
        return ()
    if shape.lora_targets:
        beside = (m for m in layer_matmuls(shape) if m.name in shape.lora_targets)
        return tuple(Adapted(m.name, (m,), shape.lora_rank) for m in beside)
    told = set(shape.lora_modules)
    return tuple(one for one in layer_modules(shape) if not told or told.issuperset(one.name.split(",")))


@lru_cache(maxsize=MOST_SHAPES)
def adapter_matmuls(shape: Shape) -> tuple[MatMul, ...]:
    """Return the two matrices of the adapter of each module of a layer that has one; none without adapters.

    W x + B A x, A of rank x in, B of out x rank (Hu et al. 2021, arXiv:2106.09685, section 4.1).
    """
    return tuple(matrix for one in adapted(shape) for matrix in one.adapter)


def head_matmul(shape: Shape) -> MatMul:
    """Return the vocabulary projection (a tied one multiplies by the embedding's matrix)."""
    return MatMul("head", shape.hidden_size, shape.vocab_size, 1, 1, False, True)


# --- parameters -------------------------------------------------------------------------------------------------------


def layer_parameters(shape: Shape) -> int:
    """Parameters of one layer: its matrices, their biases, and its norms."""
    return dense_parameters(shape) + expert_parameters(shape)


@lru_cache(maxsize=MOST_SHAPES)
def dense_parameters(shape: Shape, *, trained: bool = False) -> int:
    """Parameters of one layer that every token meets: those of no expert; all, or those that are trained."""
    matrices, norms = _matrix_sets(shape, trained=trained)
    return norms + sum(_matrix_parameters(m) for m in matrices if m.num_copies == 1)


@lru_cache(maxsize=MOST_SHAPES)
def expert_parameters(shape: Shape, *, trained: bool = False) -> int:
    """Parameters of the experts of one layer, 0 in a dense model; all, or those that are trained."""
    return sum(_matrix_parameters(m) for m in _matrix_sets(shape, trained=trained)[0] if m.num_copies > 1)


def _matrix_sets(shape: Shape, *, trained: bool) -> tuple[tuple[MatMul, ...], int]:
    """Return a layer's matrices and the parameters of its norms; with adapters, they alone are trained."""
    if trained and shape.lora_rank:
        return adapter_matmuls(shape), 0
    norms = (shape.num_pre_norms + shape.num_post_norms) * norm_parameters(shape) + shape.vectors
    norms += 2 * shape.head_dim if shape.qk_norm else 0
    return layer_matmuls(shape) + adapter_matmuls(shape), norms


def _matrix_parameters(matmul: MatMul) -> int:
    return matmul.num_copies * (matmul.in_size + matmul.has_bias) * matmul.out_size


def norm_parameters(shape: Shape) -> int:
    """Parameters of one norm over the hidden size: a scale, and a bias where it has one."""
    return shape.hidden_size * (2 if shape.norm_bias else 1)


def embedding_parameters(shape: Shape) -> int:
    """Parameters of the token embedding and of learned positions, and of what stands with them."""
    return (shape.vocab_size + shape.num_positions) * shape.hidden_size + shape.end_vectors


def trained_parameters(shape: Shape) -> int:
    """Parameters that are trained: all of them, or those of the adapters."""
    if not shape.lora_rank:
        return num_parameters(shape)
    return sum(
        kind.num_layers * (dense_parameters(kind, trained=True) + expert_parameters(kind, trained=True))
        for kind in shape.kinds
    )


def head_parameters(shape: Shape) -> int:
    """Parameters of the vocabulary projection, 0 where it is the embedding's matrix."""
    return 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size


def num_parameters(shape: Shape) -> int:
    """Parameters of the whole model, each counted once.

    >>> from estimator.work.shape import load_shape
    >>> num_parameters(load_shape("mistralai/Mistral-7B-v0.1"))  # as its card's checkpoint holds
    7241732096
    """
    return (
        embedding_parameters(shape)
        + sum(kind.num_layers * layer_parameters(kind) for kind in shape.kinds)
        + norm_parameters(shape)
        + head_parameters(shape)
    )


def end_parameters(shape: Shape, is_first: Num, is_last: Num, *, trained: bool = False) -> Num:
    """Parameters of a pipeline stage beside those of its layers; all, or those that are trained.

    The first stage holds the embedding, the last the final norm and the vocabulary projection. Where the projection is
    tied to the embedding and they lie on different stages, the last stage holds a copy.
    """
    if trained and shape.lora_rank:
        return 0.0 * np.asarray(is_first)
    head = shape.vocab_size * shape.hidden_size * (1 - shape.tied_embeddings * np.asarray(is_first))
    return is_first * embedding_parameters(shape) + is_last * (norm_parameters(shape) + head)


# --- FLOP -------------------------------------------------------------------------------------------------------------


def matmul_flop(num_tokens: Num, matmul: MatMul) -> Num:
    """FLOP of one pass of a weight matrix over its tokens: 2 n k m, m its tokens.

    >>> matmul_flop(2048, MatMul("q", 4096, 4096, 1, 1, False, True)) / 1e9
    68.719476736
    """
    return 2.0 * num_tokens * matmul.in_size * matmul.out_size * matmul.num_active


def mean_context(seq_len: Num, window: int, causal: bool) -> Num:
    """Keys that the mean query meets: all of them, or with a causal kernel those up to its own, within the window.

    causal: (S + 1) / 2; with a window w < S: w - w (w - 1) / (2 S).

    >>> float(mean_context(4, window=0, causal=True)), float(mean_context(4, window=2, causal=True))
    (2.5, 1.75)
    """
    if not causal:
        return np.asarray(seq_len, dtype=np.float64)
    look_back = np.minimum(seq_len, window) if window else np.asarray(seq_len)
    return np.asarray(look_back - look_back * (look_back - 1.0) / (2.0 * seq_len))


def attention_flop(num_tokens: Num, seq_len: Num, shape: Shape, *, causal: bool) -> Num:
    """FLOP of scores and weighted values of one layer, forward: 4 T C h, C the keys met, h the query width.

    Where values are as wide as v, h is the mean of both. A recurrent state has its own for every token.

    The two products have the same FLOP: Q K^T and P V (Dao et al. 2022, arXiv:2205.14135, Algorithm 1). The backward
    pass has four, and one more where the kernel does not keep the scores (`attention_backward_flop`).
    """
    pairs = 4.0 * num_tokens * mean_context(seq_len, shape.sliding_window, causal) * shape.score_size
    return pairs if shape.mixer is None else pairs + num_tokens * shape.mixer.state_flop


def attention_backward_flop(forward: Num, *, keeps_scores: bool) -> Num:
    """FLOP of attention's backward pass: 4 products, or 5 with the scores computed again, where forward has 2."""
    return forward * (2.0 if keeps_scores else 2.5)


def layer_forward_flop(num_tokens: Num, seq_len: Num, shape: Shape, *, causal: bool) -> Num:
    """FLOP of one layer's forward pass: its matrix products and its attention."""
    products = sum(matmul_flop(num_tokens, m) for m in layer_matmuls(shape))
    return products + attention_flop(num_tokens, seq_len, shape, causal=causal)


def recomputed_layer_flop(num_tokens: Num, seq_len: Num, shape: Shape, *, causal: bool) -> Num:
    """FLOP of repeating one layer's forward pass for its backward pass.

    The last product's result is not needed again: checkpointing stops before it, unless something after it keeps it.
    """
    skipped = 0.0 if shape.repeats_last_product else matmul_flop(num_tokens, layer_matmuls(shape)[-1])
    return layer_forward_flop(num_tokens, seq_len, shape, causal=causal) - skipped


def step_flop(num_tokens: Num, seq_len: Num, shape: Shape, *, causal: bool, keeps_scores: bool, recompute: bool) -> Num:
    """FLOP of forward and backward over `num_tokens`: what the devices do, recomputation included.

    A matrix takes three passes, or two where it is frozen: forward, and the gradients of its input and of its weights.
    """
    passes = 2.0 if shape.lora_rank else 3.0

    def of_layer(kind: Shape) -> Num:
        products = passes * sum(matmul_flop(num_tokens, m) for m in layer_matmuls(kind))
        products = products + 3.0 * sum(matmul_flop(num_tokens, m) for m in adapter_matmuls(kind))
        attention = attention_flop(num_tokens, seq_len, kind, causal=causal)
        layer = products + attention + attention_backward_flop(attention, keeps_scores=keeps_scores)
        again = recomputed_layer_flop(num_tokens, seq_len, kind, causal=causal) if recompute else 0.0
        return layer + again

    layers = sum(kind.num_layers * of_layer(kind) for kind in shape.kinds)
    return layers + passes * matmul_flop(num_tokens, head_matmul(shape))


def model_flop(num_tokens: Num, seq_len: Num, shape: Shape) -> Num:
    """FLOP that training the model takes at the least: causal attention, nothing repeated.

    The numerator of model FLOP utilization: 6 N T + 3 * (causal attention), N without the input embedding
    (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, with attention halved by causality).
    """
    return step_flop(num_tokens, seq_len, shape, causal=True, keeps_scores=True, recompute=False)


# --- bytes through memory ---------------------------------------------------------------------------------------------


class Traffic(NamedTuple):
    """Bytes that ops move through memory, forward and backward."""

    forward: float
    backward: float


def norm_traffic(shape: Shape, activation_bytes: int) -> Traffic:
    """Bytes per token through memory of a layer's norms and residuals, two each, each op fused into one pass.

    In elements, forward: norm 2 (read, write), residual 3; backward: norm 4 (input, gradient twice, write), residual 3.
    Sequence parallelism splits them over the tensor-parallel ranks; without it, each rank does all of them.
    """
    hidden = float(activation_bytes * shape.hidden_size)
    norms, residuals = shape.num_pre_norms + shape.num_post_norms, shape.num_blocks
    return Traffic((2 * norms + 3 * residuals) * hidden, (4 * norms + 3 * residuals) * hidden)


def inner_traffic(shape: Shape, activation_bytes: int) -> Traffic:
    """Bytes per token through memory of a layer's rotary and activation, which tensor parallelism splits.

    In elements, forward: rotary 2 of q and k, gated activation 3, plain 2; backward: rotary 2, gated 5, plain 3.
    """
    ffn = shape.active_ffn_size
    rotary = 0.0 if shape.num_positions else 2.0 * (shape.q_size + shape.kv_size)
    if shape.mixer is not None:
        rotary = shape.mixer.moved_size
    forward = rotary + (3 if shape.gated_ffn else 2) * ffn
    backward = rotary + (5 if shape.gated_ffn else 3) * ffn
    return Traffic(float(activation_bytes * forward), float(activation_bytes * backward))


def routing_traffic(shape: Shape, activation_bytes: int) -> Traffic:
    """Bytes per token through memory of bringing tokens to k experts and back, none where there are no experts.

    In elements of the hidden size, forward: copied for the experts 1 + k, sorted by expert 2 k, sorted back 2 k, summed
    with the router's weights k + 1; backward the same the other way, and 2 k for the gradients of the weights. Counted
    from the all-to-all dispatcher of Megatron-LM (megatron/core/transformer/moe/token_dispatcher.py).
    """
    if not shape.num_experts:
        return Traffic(0.0, 0.0)
    copies, hidden = shape.num_experts_per_token, float(activation_bytes * shape.hidden_size)
    return Traffic((6 * copies + 2) * hidden, (8 * copies + 2) * hidden)


CAST_BYTES = 4.0
"""Bytes through memory to turn a 16-bit value into 8 bits: 2 read, and 1 written as it lies and 1 transposed.

documented: each operand's copy and its transpose, for the products of both gradients (Transformer Engine's user guide)
"""


def cast_traffic(shape: Shape) -> tuple[Traffic, Traffic]:
    """Bytes per token through memory of casting a layer's operands to 8 bits: as wide as the layer, and inside it.

    Forward the inputs of query, key and value in one, of gate and up in one, of output and down; backward the gradients
    of all their results. Those as wide as the layer tensor parallelism splits only by the sequence.
    """
    active, hidden = max(shape.num_experts_per_token, 1), shape.hidden_size
    ffn = active * shape.ffn_size + shape.shared_ffn_size
    up = (2 if shape.gated_ffn else 1) * ffn
    into = shape.q_size if shape.mixer is None else sum(m.in_size for m in shape.mixer.matrices[-1:])
    whole = Traffic(CAST_BYTES * (1 + active) * hidden, CAST_BYTES * (1 + active) * hidden)
    inside = Traffic(CAST_BYTES * (into + ffn), CAST_BYTES * (into + 2 * shape.kv_size + up))
    return whole, inside


def layer_traffic(shape: Shape, activation_bytes: int, *, in_8_bits: bool) -> tuple[Traffic, Traffic]:
    """Bytes per token through memory of a layer's ops beside its products: as wide as the layer, and inside it.

    The first tensor parallelism splits only by the sequence, the second always.
    """
    whole = [norm_traffic(shape, activation_bytes), routing_traffic(shape, activation_bytes)]
    inside = [inner_traffic(shape, activation_bytes)]
    if in_8_bits:
        casts = cast_traffic(shape)
        whole, inside = [*whole, casts[0]], [*inside, casts[1]]
    return Traffic(*map(sum, zip(*whole, strict=True))), Traffic(*map(sum, zip(*inside, strict=True)))


MATERIALIZED_ATTENTION = Traffic(forward=28.0, backward=36.0)
"""Bytes per score through memory where attention is not fused, in 16-bit precision with a 32-bit softmax.

Counted from the ops of the eager attention of Hugging Face decoders, bytes read + written: forward: product 0 + 2,
scale 2 + 2, mask 2 + 4, softmax 4 + 4, cast 4 + 2, product 2 + 0; backward: product 0 + 2, cast 2 + 4, softmax 8 + 4,
mask 4 + 2, scale 2 + 2, three products 6 + 0.
"""
