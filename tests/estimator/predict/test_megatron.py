"""The GPT models of Narayanan et al. 2021, against what the paper prints (tests/golden/megatron.toml)."""

import tomllib
from typing import Any

import pytest

from estimator.formulas.counts import num_parameters
from estimator.work.shape import load_shape, shape_from_config
from tests.support.paths import GOLDEN as GOLDEN_FOLDER

GOLDEN = tomllib.loads((GOLDEN_FOLDER / "megatron.toml").read_text(encoding="utf-8"))
BUILTIN = [model for model in GOLDEN["model"] if "builtin" in model]


@pytest.mark.parametrize("model", GOLDEN["model"], ids=lambda model: str(model["billion"]))
def test_parameters_to_the_digits_printed(model: dict[str, Any]) -> None:
    """A GPT-2 of the sizes of a row has the billions of parameters that the row prints."""
    document = {
        "model_type": "gpt2",
        "n_embd": model["hidden"],
        "n_head": model["heads"],
        "n_layer": model["layers"],
        "n_positions": GOLDEN["seq_len"],
        "vocab_size": GOLDEN["vocab_size"],
    }
    assert round(num_parameters(shape_from_config(document, "row")) / 1e9, 1) == model["billion"]


@pytest.mark.parametrize("model", BUILTIN, ids=lambda model: str(model["builtin"]))
def test_builtin_shapes_are_those_of_the_paper(model: dict[str, Any]) -> None:
    """The built-in shapes have the sizes, and the billions of parameters, that the paper prints."""
    shape = load_shape(model["builtin"])
    assert (shape.num_heads, shape.hidden_size, shape.num_layers) == (model["heads"], model["hidden"], model["layers"])
    assert (shape.vocab_size, shape.num_positions) == (GOLDEN["vocab_size"], GOLDEN["seq_len"])
    assert round(num_parameters(shape) / 1e9, 1) == model["billion"]
