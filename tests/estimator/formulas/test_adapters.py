"""Adapters as peft makes them: their parameters, FLOP, and what is kept for the backward pass."""

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from estimator.formulas.adapters import adapters_keep, merged_bytes, modules_told
from estimator.formulas.counts import (
    adapted,
    matmul_flop,
    num_parameters,
    step_flop,
    trained_parameters,
)
from estimator.formulas.layout import layout
from estimator.work.modules import USUAL_TARGETS
from estimator.work.plan import Plan
from estimator.work.shape import Shape, builtin_configs, load_shape, shape_from_config
from tests.support.counted import ROWS, SEQ_LEN, TOKENS, config_of, model_of
from tests.support.families import SMALL_FAMILIES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft: Any = pytest.importorskip("peft")

RANK = 4
_PLAIN = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "vocab_size": 96}
_SIZES = _PLAIN | {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = SMALL_FAMILIES | {
    "gpt2": _PLAIN | {"model_type": "gpt2", "n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 32},
    "llama": _SIZES | {"model_type": "llama", "intermediate_size": 80},
    "mistral": _SIZES | {"model_type": "mistral", "intermediate_size": 80, "sliding_window": None},
    "mixtral": _SIZES | {"model_type": "mixtral", "intermediate_size": 80, "num_local_experts": 4},
    "qwen2": _SIZES | {"model_type": "qwen2", "intermediate_size": 80},
    "qwen3": _SIZES | {"model_type": "qwen3", "intermediate_size": 80, "head_dim": 20},
}
REFUSED = ("nemotron_h",)
"""Whose Mamba layers peft does not adapt."""
NOT_COUNTED = ("gemma4-same-keys",)
"""Whose projections of its inputs of every layer are no matrices of a layer here."""


def with_adapters(model: PreTrainedModel, targets: str, rank: int = RANK) -> Any:
    """Return a model with peft's adapters beside modules, in its own precision."""
    named = targets if targets == "all-linear" else None if targets == "default" else targets.split(",")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=rank, target_modules=named)
        return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def adapter_parameters(document: dict[str, Any], targets: str, rank: int = RANK) -> int:
    """Return the parameters that peft trains."""
    with torch.device("meta"):
        model = with_adapters(model_of(config_of(document)), targets, rank)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def shape_of(document: dict[str, Any], targets: str, rank: int = RANK) -> Shape:
    """Return the shape of a config with adapters."""
    shape = shape_from_config(document, "small")
    return replace(shape, lora_rank=rank, lora_modules=modules_told(shape, targets))


@pytest.mark.parametrize("name", [name for name in SMALL if name not in (*REFUSED, *NOT_COUNTED)])
def test_all_linear_is_what_peft_adapts(name: str) -> None:
    """Adapters on all linear modules have as many parameters as peft's, in every family."""
    assert trained_parameters(shape_of(SMALL[name], "all-linear")) == adapter_parameters(SMALL[name], "all-linear")


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", "q_proj,v_proj"),
        ("llama", "o_proj,down_proj"),
        ("phi3", "qkv_proj"),
        ("phi3", "gate_up_proj,o_proj"),
        ("gpt2", "c_proj"),
        ("falcon", "dense,query_key_value"),
        ("mixtral", "q_proj,w1,w3"),
        ("mixtral", "w2"),
        ("mixtral", "gate,v_proj"),
        ("qwen3_moe", "q_proj,gate_proj,up_proj,down_proj"),
        ("qwen2_moe", "gate_proj,shared_expert_gate"),
        ("deepseek_v3", "q_a_proj,kv_b_proj"),
        ("deepseek_v3", "o_proj,down_proj"),
        ("gpt_oss", "q_proj,o_proj"),
        ("gemma3", "k_proj,gate_proj"),
        ("qwen3_next", "in_proj_qkvz,q_proj,shared_expert_gate"),
        ("llama4", "router,up_proj"),
        ("nemotron_h", "q_proj,in_proj"),
    ],
)
def test_named_modules_are_those_that_peft_adapts(name: str, targets: str) -> None:
    """Adapters on some modules have as many parameters as peft's: fused ones, of mixtures, shared blocks, routers."""
    assert trained_parameters(shape_of(SMALL[name], targets)) == adapter_parameters(SMALL[name], targets)


@pytest.mark.parametrize("name", ["bloom", "falcon", "gemma", "gemma2", "gemma3", "gpt2", "llama", "mistral", "mpt"])
def test_default_targets_are_peft_s(name: str) -> None:
    """Without targets peft takes its own for the family, and so does "default"."""
    assert trained_parameters(shape_of(SMALL[name], "default")) == adapter_parameters(SMALL[name], "default")


def test_families_without_default_targets() -> None:
    """A family that has none here has none in peft, or peft's does not work with it."""
    for document in SMALL.values():
        family = shape_from_config(document, "m").family
        if family in USUAL_TARGETS:
            continue
        with pytest.raises(ValueError, match="target_modules"):
            adapter_parameters(document, "default")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["meta-llama/Meta-Llama-3-8B", "mistralai/Mixtral-8x7B-v0.1", "Qwen/Qwen3-30B-A3B", "openai/gpt-oss-120b"],
)
def test_real_models(name: str) -> None:
    """At full size too, rank 16."""
    document = {key: value for key, value in builtin_configs()[name].items() if key not in ("source", "checked")}
    assert trained_parameters(shape_of(document, "all-linear", 16)) == adapter_parameters(document, "all-linear", 16)


def test_mixtral_as_its_finding_says() -> None:
    """Rank 16 on all linear modules of Mixtral-8x7B: 11,239,552 parameters a layer."""
    shape = load_shape("mistralai/Mixtral-8x7B-v0.1")
    shape = replace(shape, lora_rank=16)
    assert trained_parameters(shape) == 11_239_552 * shape.num_layers
    assert num_parameters(shape) == num_parameters(replace(shape, lora_rank=0)) + trained_parameters(shape)


def counted_flop(document: dict[str, Any], targets: str) -> int:
    """Return the FLOP of forward and backward that PyTorch counts of a model with adapters.

    On the processor: peft asks which precision a device casts to, which the meta device does not say.
    """
    config = config_of(document)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="batched_mm")
    model = with_adapters(model.train(), targets)
    model.enable_input_require_grads()  # else the first layer has no gradient to hand on
    ids = torch.zeros(ROWS, SEQ_LEN, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        mask = torch.zeros(ROWS, 1, SEQ_LEN, SEQ_LEN)
        model(input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=False).logits.sum().backward()
    return counter.get_total_flops()


def merging_flop(shape: Shape) -> float:
    """Return what adapters that are added to weights take beyond those that multiply tokens, in one pass and back.

    The product of both parts, of experts twice, its two gradients, and the gradient of the sum, instead of three passes
    of each part.
    """
    flop = 0.0
    for one in (one for kind in shape.kinds for one in adapted(kind) if one.is_merged for _ in range(kind.num_layers)):
        into, out = one.adapter
        flop += (3 + (into.num_copies > 1)) * 2.0 * into.num_copies * into.in_size * out.out_size * one.rank
        flop += sum(matmul_flop(TOKENS, m) for m in one.matrices) - 3 * sum(matmul_flop(TOKENS, m) for m in (into, out))
    return flop


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", "all-linear"),
        ("llama", "q_proj,v_proj"),
        ("phi3", "all-linear"),
        ("gemma2", "down_proj"),
        ("mixtral", "all-linear"),
        ("mixtral", "q_proj,v_proj"),
        ("qwen3_moe", "all-linear"),
    ],
)
def test_flop_is_what_pytorch_counts(name: str, targets: str) -> None:
    """Frozen matrices take no gradient of their weights; experts with adapters do, and the products of these."""
    shape = shape_of(SMALL[name], targets)
    applied = step_flop(TOKENS, SEQ_LEN, shape, causal=False, keeps_scores=True, recompute=False)
    assert counted_flop(SMALL[name], targets) == applied + merging_flop(shape)


def kept_bytes(model: Any) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights left out, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.enable_input_require_grads()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=torch.zeros(ROWS, SEQ_LEN, dtype=torch.long), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def predicted_kept(shape: Shape) -> float:
    """Return the same in 16 bits, beyond what full training keeps."""
    plan, found = layout(Plan(), 1, 1), 0.0
    for kind in shape.kinds:
        kept, merged = adapters_keep(kind, fuses_attention=True), merged_bytes(kind, plan, 2.0)
        found += kind.num_layers * (2 * TOKENS * (kept.whole + kept.split) + (merged.all.item() if merged else 0.0))
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral", "qwen3_moe", "qwen2_moe"])
@pytest.mark.parametrize("targets", ["q_proj,v_proj", "o_proj", "gate_proj,up_proj", "down_proj"])
def test_kept_bytes_are_what_pytorch_keeps(name: str, targets: str) -> None:
    """A product without an adapter keeps no input; an adapter keeps its inner values, or a copy of its weights.

    Of copies of experts, peft keeps also reordered adapters, fewer bytes than these have.
    """
    if name == "mixtral" and "proj" in targets and not {"q_proj", "o_proj"} & set(targets.split(",")):
        targets = {"down_proj": "w2"}.get(targets, "w1,w3")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMALL[name]), attn_implementation="sdpa")
    base = base.to(torch.bfloat16).train()
    everywhere = kept_bytes(with_adapters(copy.deepcopy(base), "all-linear"))
    some = kept_bytes(with_adapters(copy.deepcopy(base), targets))
    all_shape, some_shape = shape_of(SMALL[name], "all-linear"), shape_of(SMALL[name], targets)
    predicted = predicted_kept(all_shape) - predicted_kept(some_shape)
    merges = any(one.is_merged for kind in all_shape.kinds for one in adapted(kind))
    assert abs(everywhere - some - predicted) <= 2 * trained_parameters(all_shape) * merges


@pytest.mark.parametrize(
    ("model", "told", "problem"),
    [
        (
            "mistral-7b-v0.1",
            "q_prj",
            "unknown lora-targets of 'mistralai/Mistral-7B-v0.1': 'q_prj': did you mean q_proj",
        ),
        (
            "mistral-7b-v0.1",
            "q_proj,",
            "unknown lora-targets of 'mistralai/Mistral-7B-v0.1': '': use one of all-linear",
        ),
        (
            "phi-3-mini-4k-instruct",
            "default",
            "lora-targets: peft has no default for .*; use all-linear, or of qkv_proj",
        ),
        ("mixtral-8x7b-v0.1", "w1,q_proj", "lora-targets: w1 and w3 of .* lie in one parameter; name both or neither"),
    ],
)
def test_bad_targets_are_refused(model: str, told: str, problem: str) -> None:
    """A module that the model has not, or that peft does not take so, is named with what it takes."""
    with pytest.raises(ValueError, match=problem):
        modules_told(load_shape(model), told)


def test_mamba_layers_are_refused_as_peft_refuses_them() -> None:
    """All linear modules of Mamba layers are none that peft adapts; what it does is named."""
    with pytest.raises(ValueError, match="peft adapts no out_proj of 'small'; name others: --lora-targets in_proj,"):
        shape_of(SMALL["nemotron_h"], "all-linear")
    with pytest.raises(ValueError, match="incompatible"):
        adapter_parameters(SMALL["nemotron_h"], "all-linear")
