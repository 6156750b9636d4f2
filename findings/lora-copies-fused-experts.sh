# One assumes that LoRA on the experts of a mixture keeps the inputs of its adapters for the backward pass: bytes that grow with the tokens.
# What happens: peft adds A times B to the fused weight in every forward pass and keeps the sum: a second copy of all experts, at any batch (90 GB for Mixtral-8x7B).
# Seen with torch 2.13.0, transformers 5.23.0, peft 0.21.2 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
cat > show.py <<'PY'
import copy
import warnings

import peft
import torch
import transformers
from transformers import MixtralConfig, MixtralForCausalLM

warnings.filterwarnings("ignore")
print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)


def kept_bytes(model: torch.nn.Module, tokens: int) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights left out, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=torch.randint(0, 256, (1, tokens)), use_cache=False).logits.sum().backward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


torch.manual_seed(0)
base = MixtralForCausalLM(  # the proportions of Mixtral-8x7B, a sixteenth as wide
    MixtralConfig(
        num_hidden_layers=4,
        hidden_size=256,
        intermediate_size=896,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=256,
    )
).to(torch.bfloat16)
base.train()
experts = sum(parameter.nbytes for name, parameter in base.named_parameters() if "experts" in name)
attention = peft.LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
everything = peft.LoraConfig(r=8, target_modules="all-linear")
print(f"experts' weights: {experts / 1e6:.1f} MB")
print("tokens    full training   LoRA of attention   LoRA of all linear layers: kept for the backward pass [MB]")
for tokens in (16, 64, 256):
    full = kept_bytes(copy.deepcopy(base), tokens)
    narrow = kept_bytes(peft.get_peft_model(copy.deepcopy(base), attention), tokens)
    wide = kept_bytes(peft.get_peft_model(copy.deepcopy(base), everything), tokens)
    print(f"{tokens:6} {full / 1e6:16.1f} {narrow / 1e6:19.1f} {wide / 1e6:27.1f}   {(wide - narrow) / experts:.2f} of the experts more")
    assert wide - narrow > 0.99 * experts  # however few the tokens
    assert wide > full
PY
env/bin/python show.py
