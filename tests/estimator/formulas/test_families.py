"""Families whose layers differ or are unlike Llama's: parameters and FLOP as PyTorch counts them on the meta device."""

import numpy as np
import pytest

from estimator.formulas.counts import num_parameters
from estimator.formulas.layout import layout
from estimator.work.plan import Plan
from estimator.work.shape import Shape, load_shape, shape_from_config
from tests.support.counted import config_of, counted_flop, counted_parameters, model_of, predicted_flop
from tests.support.families import SMALL_FAMILIES

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


@pytest.mark.parametrize("name", SMALL_FAMILIES)
def test_parameters_of_a_family(name: str) -> None:
    """A small model of each family has as many parameters as PyTorch holds, read as published or as saved."""
    document = SMALL_FAMILIES[name]
    model = model_of(config_of(document))
    counted = counted_parameters(model)
    assert num_parameters(shape_from_config(document, "small")) == counted
    assert num_parameters(shape_from_config(model.config.to_dict(), "small")) == counted


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", COUNTED)
def test_flop_of_a_family(name: str) -> None:
    """Forward, backward and repeated passes take exactly the FLOP that PyTorch counts."""
    document = SMALL_FAMILIES[name]
    counted = counted_flop(model_of(config_of(document)), checkpointing=True)
    assert predicted_flop(shape_from_config(document, "small"), checkpointing=True) == counted


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
