"""Parameters and FLOP as PyTorch counts them, on the meta device: no memory, no arithmetic, all the shapes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedConfig

from estimator.formulas.counts import (
    attention_backward_flop,
    attention_flop,
    num_parameters,
)
from estimator.work.shape import Shape, builtin_configs, load_shape, shape_from_config
from tests.support.counted import (
    config_of,
    counted_flop,
    counted_parameters,
    model_of,
    predicted_flop,
)
from tests.support.strategies import MODEL_TYPES, documents, shapes

FEW = settings(max_examples=max(settings.default.max_examples // 10, 5))
"""A model is built for each example."""

LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 48,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 32,
    "vocab_size": 96,
    "bos_token_id": None,
    "eos_token_id": None,
}
SMALL = {
    "llama": LLAMA,
    "llama-tied": LLAMA | {"tie_word_embeddings": True},
    "llama-bias": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama-attention-bias": LLAMA | {"attention_bias": True},
    "llama-mlp-bias": LLAMA | {"mlp_bias": True},
    "llama-head-dim": LLAMA | {"head_dim": 20},
    "mistral": LLAMA | {"model_type": "mistral", "sliding_window": None},
    "mistral-head-dim": LLAMA | {"model_type": "mistral", "sliding_window": None, "head_dim": 20},
    "qwen2": LLAMA | {"model_type": "qwen2"},
    "qwen2-tied": LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 20},
    "qwen3-bias": LLAMA | {"model_type": "qwen3", "head_dim": 20, "attention_bias": True},
    "gpt2": GPT2,
    "gpt2-no-dropout": GPT2 | {"resid_pdrop": 0.0},
    "gpt2-untied": GPT2 | {"tie_word_embeddings": False, "n_inner": 100},
    "mixtral": LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": None},
    "mixtral-top-1": LLAMA
    | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": None},
}


def shape_of(config: PreTrainedConfig) -> Shape:
    """Return the shape that is read from what transformers writes."""
    return shape_from_config(config.to_dict(), "small")


@pytest.mark.parametrize("name", SMALL)
def test_parameters_of_a_small_model(name: str) -> None:
    """A small model of each kind has as many parameters as PyTorch holds."""
    config = config_of(SMALL[name])
    assert num_parameters(shape_of(config)) == counted_parameters(model_of(config))


@pytest.mark.parametrize("name", builtin_configs())
def test_parameters_of_a_builtin_model(name: str) -> None:
    """A built-in model has as many parameters as PyTorch holds."""
    config = config_of({key: value for key, value in builtin_configs()[name].items() if key != "source"})
    assert num_parameters(load_shape(name)) == counted_parameters(model_of(config))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@FEW
@given(st.data())
def test_parameters_of_any_model(model_type: str, data: st.DataObject) -> None:
    """A model of any sizes has as many parameters as PyTorch holds, read from what is written or saved."""
    document = data.draw(documents(model_type))
    config = config_of(document)
    counted = counted_parameters(model_of(config))
    assert num_parameters(shape_of(config)) == num_parameters(shape_from_config(document, "small")) == counted


@pytest.mark.parametrize("name", SMALL)
def test_saved_config_is_read_back(name: str, tmp_path: Path) -> None:
    """The directory that transformers saves gives the shape of the config."""
    config = config_of(SMALL[name])
    config.save_pretrained(tmp_path)
    assert load_shape(str(tmp_path)) == shape_from_config(SMALL[name], tmp_path.name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")  # since 5.20 or so
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", SMALL)
def test_flop_of_a_small_model(name: str, attention: str, checkpointing: bool) -> None:
    """Forward and backward passes take exactly the FLOP that PyTorch counts."""
    config = config_of(SMALL[name])
    counted = counted_flop(model_of(config, attention), checkpointing=checkpointing)
    assert predicted_flop(shape_of(config), checkpointing=checkpointing) == counted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@FEW
@given(st.data())
def test_flop_of_any_model(model_type: str, data: st.DataObject) -> None:
    """Models of any sizes take exactly the FLOP that PyTorch counts."""
    config, checkpointing = config_of(data.draw(documents(model_type))), data.draw(st.booleans())
    counted = counted_flop(model_of(config), checkpointing=checkpointing)
    assert predicted_flop(shape_of(config), checkpointing=checkpointing) == counted


@given(shapes(), st.integers(1, 4), st.integers(1, 300))
def test_fused_attention(shape: Shape, rows: int, seq_len: int) -> None:
    """A fused kernel does the products that PyTorch's formulas count, the scores once more in its backward pass."""
    query = (rows, shape.num_heads, seq_len, shape.head_dim)
    key = (rows, shape.num_kv_heads, seq_len, shape.head_dim)
    forward = attention_flop(rows * seq_len, seq_len, shape, causal=False)
    assert forward == sdpa_flop_count(query, key, key)
    assert attention_backward_flop(forward, keeps_scores=False) == sdpa_backward_flop_count(query, query, key, key)
