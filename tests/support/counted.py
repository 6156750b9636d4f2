"""Parameters and FLOP of a model: as PyTorch counts them on the meta device, and as the formulas do."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from estimator.formulas.counts import head_matmul, layer_forward_flop, matmul_flop, step_flop
from estimator.work.shape import Shape

ROWS, SEQ_LEN = 2, 16
TOKENS = ROWS * SEQ_LEN


def config_of(document: dict[str, Any]) -> PreTrainedConfig:
    """Return the config that transformers makes of a document."""
    return AutoConfig.for_model(**document)


def model_of(config: PreTrainedConfig, attention: str = "eager") -> PreTrainedModel:
    """Return the model on the meta device.

    Experts run as batched products: the counter does not know grouped ones, and the loop over the experts needs data.
    """
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, experts_implementation="batched_mm"
        )


def counted_parameters(model: PreTrainedModel) -> int:
    """Return the parameters that PyTorch holds, a shared one once."""
    return sum(p.numel() for p in model.parameters())


def counted_flop(model: PreTrainedModel, *, checkpointing: bool) -> tuple[int, int]:
    """Return the FLOP that PyTorch counts in a forward pass, and in it and its backward pass."""
    model.train()
    if checkpointing:
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
        return forward, counter.get_total_flops()


def predicted_flop(shape: Shape, *, checkpointing: bool) -> tuple[float, float]:
    """Return the same two by our counts; attention of the tested models computes the masked scores, and keeps them."""
    layers = sum(kind.num_layers * layer_forward_flop(TOKENS, SEQ_LEN, kind, causal=False) for kind in shape.kinds)
    forward = layers + matmul_flop(TOKENS, head_matmul(shape))
    total = step_flop(TOKENS, SEQ_LEN, shape, causal=False, keeps_scores=True, recompute=checkpointing)
    return float(forward), float(total)
