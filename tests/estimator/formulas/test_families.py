"""Families whose layers differ or are unlike Llama's: parameters and FLOP as PyTorch counts them on the meta device."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from estimator.formulas.counts import head_matmul, layer_forward_flop, matmul_flop, num_parameters, step_flop
from estimator.formulas.layout import layout
from estimator.work.plan import Plan
from estimator.work.shape import Shape, load_shape, shape_from_config
from tests.support.families import SMALL_FAMILIES

ROWS, SEQ_LEN = 2, 16
TOKENS = ROWS * SEQ_LEN

COUNTED = (
    "deepseek_v3",
    "deepseek_v3-no-query-latent",
    "falcon",
    "falcon-new",
    "falcon-serial",
    "gemma",
    "gemma2",
    "gemma3",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_oss",
    "mpt",
    "olmo2",
    "phimoe",
    "qwen3_moe",
)
"""Whose products PyTorch counts as they are: no recurrent state, no indexer, no experts that all tokens run through."""


def model_of(document: dict[str, Any]) -> PreTrainedModel:
    """Return the model on the meta device, its experts as batched products, which the counter knows."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**document), attn_implementation="eager", experts_implementation="batched_mm"
        )


@pytest.mark.parametrize("name", SMALL_FAMILIES)
def test_parameters_of_a_family(name: str) -> None:
    """A small model of each family has as many parameters as PyTorch holds, read as published or as saved."""
    document = SMALL_FAMILIES[name]
    model = model_of(document)
    counted = sum(p.numel() for p in model.parameters())
    assert num_parameters(shape_from_config(document, "small")) == counted
    assert num_parameters(shape_from_config(model.config.to_dict(), "small")) == counted


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", COUNTED)
def test_flop_of_a_family(name: str) -> None:
    """Forward, backward and repeated passes take exactly the FLOP that PyTorch counts."""
    model, shape = model_of(SMALL_FAMILIES[name]).train(), shape_from_config(SMALL_FAMILIES[name], "small")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        logits = model(
            input_ids=torch.zeros(ROWS, SEQ_LEN, dtype=torch.long, device="meta"),
            attention_mask=torch.zeros(ROWS, 1, SEQ_LEN, SEQ_LEN, device="meta"),
            position_ids=torch.zeros(ROWS, SEQ_LEN, dtype=torch.long, device="meta"),
            use_cache=False,
        ).logits
        forward = counter.get_total_flops()
        logits.sum().backward()
    layers = sum(kind.num_layers * layer_forward_flop(TOKENS, SEQ_LEN, kind, causal=False) for kind in shape.kinds)
    assert layers + matmul_flop(TOKENS, head_matmul(shape)) == forward
    total = step_flop(TOKENS, SEQ_LEN, shape, causal=False, keeps_scores=True, recompute=True)
    assert total == counter.get_total_flops()


def kinds_of_stages(shape: Shape, plan: Plan) -> list[list[float]]:
    """Return the layers of each kind in the first, the mean middle and the last stage."""
    counts = layout(plan, plan.num_stages, 8).kind_layers(shape)
    return [[float(np.asarray(each).item()) for each in kind.layers] for kind in counts]


def test_stages_hold_the_kinds_of_their_layers() -> None:
    """The three dense layers of DeepSeek-V3 lie in the first stage; alternating windows lie in all alike."""
    dense, experts = kinds_of_stages(
        load_shape("DeepSeek-V3"),
        Plan(num_stages=4, num_micro_batches=8, first_layers=15, last_layers=14),
    )
    assert (dense, experts) == ([3, 0, 0], [12, 16, 14])
    local, full = kinds_of_stages(load_shape("gpt-oss-120b"), Plan(num_stages=6, num_micro_batches=8))
    assert local == full == [3, 3, 3]


def test_chunks_of_an_interleaved_stage() -> None:
    """A stage of two chunks holds the layers of both: of eight layers, the first and fifth, the fourth and eighth."""
    document = SMALL_FAMILIES["qwen3_5"] | {
        "num_hidden_layers": 8,
        "layer_types": ["full_attention", *["linear_attention"] * 6, "full_attention"],
    }
    plan = Plan(num_stages=4, num_micro_batches=8, schedule="interleaved", virtual_stages=2)
    full, linear = kinds_of_stages(shape_from_config(document, "small"), plan)
    assert (full, linear) == ([1, 0, 1], [1, 2, 1])
