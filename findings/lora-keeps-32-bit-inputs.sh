# One assumes that LoRA on a bfloat16 model keeps fewer activation bytes for the backward pass than training all of it.
# What happens: peft makes adapters 32-bit and, outside autocast, keeps the input of each in 32 bits: 1.4 times the bytes of full training, 2.1 with dropout.
# Seen with torch 2.13.0, transformers 5.23.0, peft 0.21.2 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
cat > show.py <<'PY'
import contextlib
import copy
import warnings

import peft
import torch
import transformers
from transformers import MistralConfig, MistralForCausalLM

warnings.filterwarnings("ignore")
print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)


def kept_bytes(model: torch.nn.Module) -> dict[torch.dtype, int]:
    """Return the bytes that a forward pass keeps for the backward pass, weights left out, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=torch.randint(0, 256, (2, 128)), use_cache=False).logits.sum()
    loss.backward()
    found: dict[torch.dtype, int] = {}
    for tensor in kept.values():
        found[tensor.dtype] = found.get(tensor.dtype, 0) + tensor.untyped_storage().nbytes()
    return found


torch.manual_seed(0)
base = MistralForCausalLM(  # the proportions of Mistral-7B, a sixteenth as wide
    MistralConfig(
        num_hidden_layers=4,
        hidden_size=256,
        intermediate_size=896,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=256,
    )
).to(torch.bfloat16)
base.train()
totals = {}
for name, dropout, cast, autocast in (
    ("full training", None, None, False),
    ("LoRA, as peft makes it", 0.0, True, False),
    ("LoRA, as peft makes it, dropout 0.05", 0.05, True, False),
    ("LoRA, as peft makes it, under autocast", 0.0, True, True),
    ("LoRA, autocast_adapter_dtype=False", 0.0, False, False),
):
    model = copy.deepcopy(base)
    if cast is not None:
        config = peft.LoraConfig(r=8, target_modules="all-linear", lora_dropout=dropout)
        model = peft.get_peft_model(model, config, autocast_adapter_dtype=cast)
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        found = kept_bytes(model)
    totals[name] = sum(found.values())
    types = ", ".join(f"{str(dtype).removeprefix('torch.')} {count / 1e6:.1f}" for dtype, count in found.items() if count > 1e4)
    print(f"{name:39} keeps {totals[name] / 1e6:5.1f} MB, {totals[name] / totals['full training']:.2f} of full training ({types})")
full, lora, dropped, _, narrow = totals.values()
assert 1.35 < lora / full < 1.5 and dropped / full > 2
assert narrow < full
PY
env/bin/python show.py
