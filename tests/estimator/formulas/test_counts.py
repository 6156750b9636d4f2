from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.counts import (
    attention_backward_flop,
    attention_flop,
    cast_traffic,
    dense_parameters,
    expert_parameters,
    head_matmul,
    inner_traffic,
    layer_forward_flop,
    layer_matmuls,
    layer_parameters,
    matmul_flop,
    mean_context,
    model_flop,
    norm_traffic,
    num_parameters,
    recomputed_layer_flop,
    routing_traffic,
    step_flop,
)
from estimator.work.shape import Shape, load_shape
from tests.support.strategies import DENSE_TYPES, shapes

tokens = st.integers(1, 10**6)
lengths = st.integers(1, 300)


@given(lengths, st.integers(0, 400))
def test_mean_context_is_the_mean_over_positions(seq_len: int, window: int) -> None:
    """A causal query at position i meets i + 1 keys, or the window where that is less; the mean is over positions."""
    met = [min(i + 1, window) if window else i + 1 for i in range(seq_len)]
    assert mean_context(seq_len, window, causal=True) == pytest.approx(sum(met) / seq_len, rel=1e-12)


@given(lengths, st.integers(0, 400))
def test_mean_context_of_a_full_kernel(seq_len: int, window: int) -> None:
    """A kernel that computes what the mask hides meets every key, more than a causal one."""
    assert mean_context(seq_len, window, causal=False) == seq_len
    assert 1 <= mean_context(seq_len, window, causal=True) <= (seq_len + 1) / 2


@given(shapes("mixtral"), tokens, lengths)
def test_a_mixture_holds_all_experts_and_runs_the_chosen(shape: Shape, num_tokens: int, seq_len: int) -> None:
    """One expert more adds its three matrices and a column of the router; one chosen more adds its FLOP."""
    expert, router = 3 * shape.hidden_size * shape.ffn_size, shape.hidden_size
    wider = replace(shape, num_experts=shape.num_experts + 1)
    assert layer_parameters(wider) - layer_parameters(shape) == expert + router
    chosen = replace(wider, num_experts_per_token=shape.num_experts_per_token + 1)
    assert layer_parameters(chosen) == layer_parameters(wider)
    narrow, wide, more = (layer_forward_flop(num_tokens, seq_len, s, causal=False) for s in (shape, wider, chosen))
    assert wide - narrow == pytest.approx(2 * num_tokens * router, rel=1e-6)
    assert more - wide == pytest.approx(2 * num_tokens * expert, rel=1e-6)


@given(shapes("mixtral"), tokens, lengths)
def test_a_mixture_that_chooses_all_experts_is_dense(shape: Shape, num_tokens: int, seq_len: int) -> None:
    """With every expert chosen, a token meets each weight that is held, as in a dense model of their joint width."""
    all_chosen = replace(shape, num_experts_per_token=shape.num_experts)
    dense = replace(shape, num_experts=0, num_experts_per_token=0, ffn_size=shape.num_experts * shape.ffn_size)
    router = 2 * num_tokens * shape.hidden_size * shape.num_experts
    mixture_flop = layer_forward_flop(num_tokens, seq_len, all_chosen, causal=True)
    assert mixture_flop == pytest.approx(layer_forward_flop(num_tokens, seq_len, dense, causal=True) + router)
    assert layer_parameters(all_chosen) == layer_parameters(dense) + shape.hidden_size * shape.num_experts


@given(shapes(*DENSE_TYPES), tokens, lengths)
def test_dense_products_meet_every_weight(shape: Shape, num_tokens: int, seq_len: int) -> None:
    """Without attention, a dense model's pass takes 2 FLOP per token and weight, norms and biases aside."""
    weights = sum(m.in_size * m.out_size for m in (*layer_matmuls(shape), head_matmul(shape)))
    products = layer_forward_flop(num_tokens, seq_len, shape, causal=True) + matmul_flop(num_tokens, head_matmul(shape))
    products -= attention_flop(num_tokens, seq_len, shape, causal=True)
    assert products == pytest.approx(2 * num_tokens * weights)


@given(shapes(), tokens, lengths, st.booleans(), st.booleans())
def test_step_flop_is_the_sum_of_its_passes(
    shape: Shape, num_tokens: int, seq_len: int, causal: bool, keeps_scores: bool
) -> None:
    """A step is a forward pass, a backward pass of twice its products, and the recomputation where there is one."""
    layer = layer_forward_flop(num_tokens, seq_len, shape, causal=causal)
    attention = attention_flop(num_tokens, seq_len, shape, causal=causal)
    backward = 2 * (layer - attention) + attention_backward_flop(attention, keeps_scores=keeps_scores)
    head = 3 * matmul_flop(num_tokens, head_matmul(shape))
    plain, repeated = (
        step_flop(num_tokens, seq_len, shape, causal=causal, keeps_scores=keeps_scores, recompute=recompute)
        for recompute in (False, True)
    )
    again = recomputed_layer_flop(num_tokens, seq_len, shape, causal=causal)
    assert plain == pytest.approx(shape.num_layers * (layer + backward) + head)
    assert repeated == pytest.approx(plain + shape.num_layers * again)
    assert 0 < again <= layer


@given(shapes(), tokens, lengths, st.booleans(), st.booleans(), st.booleans())
def test_model_flop_is_the_least(
    shape: Shape, num_tokens: int, seq_len: int, causal: bool, keeps_scores: bool, recompute: bool
) -> None:
    """No way of running a step takes less than the model's own FLOP."""
    step = step_flop(num_tokens, seq_len, shape, causal=causal, keeps_scores=keeps_scores, recompute=recompute)
    assert step >= model_flop(num_tokens, seq_len, shape)


def test_model_flop_of_a_published_model() -> None:
    """At a short context a training token of Mistral-7B costs 6 FLOP per parameter outside its embedding, about."""
    shape = load_shape("Mistral-7B-v0.1")
    without_embedding = num_parameters(shape) - shape.vocab_size * shape.hidden_size
    assert model_flop(1e6, 1, shape) / 1e6 == pytest.approx(6 * without_embedding, rel=1e-3)


@given(shapes(), st.lists(st.tuples(tokens, lengths), min_size=1, max_size=5), st.booleans())
def test_arrays_are_their_elements(shape: Shape, sizes: list[tuple[int, int]], causal: bool) -> None:
    """FLOP of an array of sizes are those of each size alone."""
    many_tokens, many_lengths = (np.array(column) for column in zip(*sizes, strict=True))
    options = {"causal": causal, "keeps_scores": False, "recompute": True}
    together = step_flop(many_tokens, many_lengths, shape, **options)
    alone = [step_flop(n, s, shape, **options) for n, s in sizes]
    np.testing.assert_array_equal(together, alone)


@given(shapes(), st.sampled_from([1, 2, 4]))
def test_traffic_scales_with_precision(shape: Shape, activation_bytes: int) -> None:
    """Element-wise ops move bytes in proportion to those of an element, more backward than forward."""
    for traffic_of in (norm_traffic, inner_traffic):
        traffic, unit = traffic_of(shape, activation_bytes), traffic_of(shape, 1)
        assert traffic == (activation_bytes * unit.forward, activation_bytes * unit.backward)
        assert 0 < traffic.forward < traffic.backward


@given(shapes(), st.sampled_from([1, 2, 4]))
def test_only_mixtures_route(shape: Shape, activation_bytes: int) -> None:
    """Routing moves more with each expert a token is sent to, and more backward; nothing where there are no experts."""
    traffic = routing_traffic(shape, activation_bytes)
    if not shape.num_experts:
        assert traffic == (0, 0)
        return
    assert traffic.backward - traffic.forward == 2 * activation_bytes * shape.num_experts_per_token * shape.hidden_size
    fewer = replace(shape, num_experts_per_token=1)
    assert traffic.forward >= routing_traffic(fewer, activation_bytes).forward > 0


def test_casts_of_a_published_model() -> None:
    """Of Mistral-7B 4 + 4 + 4 + 14 times 1,024 inputs and 6 + 4 + 28 + 4 times as many results are cast per token."""
    whole, inside = cast_traffic(load_shape("Mistral-7B-v0.1"))
    assert whole == (4 * 8 * 1024, 4 * 8 * 1024)
    assert inside == (4 * 18 * 1024, 4 * 34 * 1024)


@given(shapes())
def test_a_layer_is_experts_and_the_rest(shape: Shape) -> None:
    """Experts hold the feed-forward matrices of a mixture, and nothing of a dense model; the rest is every token's."""
    matrices = 3 if shape.gated_ffn else 2
    expected = shape.num_experts * matrices * shape.hidden_size * shape.ffn_size
    assert expert_parameters(shape) == expected
    assert dense_parameters(shape) + expert_parameters(shape) == layer_parameters(shape)
