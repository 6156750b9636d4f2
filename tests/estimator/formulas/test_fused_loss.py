"""How logits are held: whole, in chunks, or fused with the projection; and quantized weights as they are unpacked."""

import dataclasses
from typing import Any

import pytest

from estimator.formulas.activations import loss_bytes
from estimator.formulas.counts import head_matmul
from estimator.formulas.fused_loss import chunk_rows
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import layout
from estimator.formulas.machine import Machine
from estimator.formulas.memory import plan_memory, unpacked_bytes
from estimator.formulas.step import plan_step
from estimator.stack.recipe import Recipe
from estimator.stack.stack import load_stack
from estimator.work.plan import Plan
from estimator.work.shape import load_shape
from hardware.catalog import load_catalog

CATALOG, STACK = load_catalog(), load_stack("generic")
LLAMA = load_shape("meta-llama/Meta-Llama-3-8B")
H100 = Machine.of(CATALOG, CATALOG.flavor_of("h100-sxm-80gb", 8))
TOKENS, LOGITS = 4 * 4096, 4 * 4096 * 128_256


def inputs_of(recipe: Recipe, **plan: Any) -> StepInputs:
    """Return what a step of 4 rows of 4,096 tokens is predicted from."""
    placed = layout(Plan(num_micro_batches=8, **{"batch_per_device": 4, **plan}), 8, 8)
    return StepInputs(recipe.shape(LLAMA), 4096, placed, H100, recipe.habits(STACK.habits, LLAMA))


def held(recipe: Recipe, **plan: Any) -> float:
    """Return the bytes of the loss of a micro-batch."""
    return float(loss_bytes(inputs_of(recipe, **plan), 1.0).item())


def test_a_whole_loss_has_all_logits() -> None:
    """As most stacks have it by themselves: logits in 16 bits, and their log-softmax in 32."""
    assert held(Recipe(loss="whole")) == held(Recipe()) == 6 * LOGITS


def test_a_fused_loss_holds_one_chunk_of_logits() -> None:
    """A chunk has about as many logits as the micro-batch has hidden values; the projection's gradient lies beside."""
    found, size = inputs_of(Recipe(loss="fused")), head_matmul(LLAMA).out_size
    rows = chunk_rows(found).item()
    assert rows == 512  # the next power of two of 16,384 / 32
    around = TOKENS * 4096 * (2 * 2 + STACK.habits.norm_copy_bytes)
    assert held(Recipe(loss="fused")) == 2 * rows * size + 2 * 4096 * size + around
    frozen = dataclasses.replace(Recipe(loss="fused"), lora_rank=8)
    assert held(frozen) == held(Recipe(loss="fused")) - 2 * 4096 * size  # it needs no gradient there


def test_fused_holds_less_than_chunks_and_these_less_than_all() -> None:
    """Of many logits; of few, the gradient of the projection is more than all of them."""
    assert held(Recipe(loss="fused")) < held(Recipe(loss="chunked")) < held(Recipe(loss="whole"))
    whole, fused = (held(Recipe(loss=loss), batch_per_device=1) / 4096 for loss in ("whole", "fused"))
    assert fused < whole


def test_a_split_vocabulary_has_its_logits_whole() -> None:
    """Ranks that share the vocabulary have all logits of their part, whatever is asked for."""
    assert held(Recipe(loss="fused"), tp=2) == held(Recipe(loss="whole"), tp=2) == 6 * LOGITS / 2


def test_a_fused_loss_moves_less() -> None:
    """It passes over logits in 16 bits three times, a whole one also over 32 bits."""
    efficiencies = STACK.efficiencies("llama")
    whole, fused = (
        plan_step(inputs_of(Recipe(loss=loss)), efficiencies).breakdown["elementwise"].item()
        for loss in ("whole", "fused")
    )
    assert fused < whole


def test_one_quantized_matrix_at_a_time_is_unpacked() -> None:
    """The largest stands in 16 bits beside the quantized ones, and nothing does where weights are not quantized."""
    plain, packed = (inputs_of(Recipe("bf16", lora_rank=8, quantize=bits)) for bits in (None, "4"))
    assert unpacked_bytes(plain) == 0
    assert unpacked_bytes(packed) == 2 * 4096 * LLAMA.ffn_size
    efficiencies = STACK.efficiencies("llama")
    workspaces = [plan_memory(inputs, efficiencies).peak["workspace"].item() for inputs in (plain, packed)]
    assert workspaces[1] - workspaces[0] == 2 * 4096 * LLAMA.ffn_size


def test_quantized_weights_are_unpacked_in_every_pass() -> None:
    """Forward and backward, and once more where full recomputation repeats the forward pass."""

    def extra_s(recomputation: str) -> float:
        step_s = []
        for bits in (None, "4"):
            found = inputs_of(Recipe("bf16", lora_rank=8, quantize=bits), recomputation=recomputation)
            step_s.append(plan_step(found, STACK.efficiencies("llama")).breakdown["elementwise"].item())
        return step_s[1] - step_s[0]

    assert extra_s("full") == pytest.approx(1.5 * extra_s("none"))


def test_an_unknown_loss_is_refused() -> None:
    """With the known ones."""
    with pytest.raises(ValueError, match=r"^unknown loss 'liger': use one of whole, chunked, fused$"):
        Recipe(loss="liger")
