# One assumes that total_flos in trainer_state.json is the model FLOP of the run, so that over seconds and peak it gives MFU.
# What happens: it is 6 x parameters x tokens, padding included: all experts of Mixtral (3.7 times its FLOP), LoRA as full training (1.5), no tied head (0.72).
# Seen with torch 2.13.0, transformers 5.23.0, accelerate 1.15.0, peft 0.21.2 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
cat > show.py <<'PY'
import warnings
from types import SimpleNamespace

import peft
import torch
import transformers
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
)

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)


def counted(model: torch.nn.Module) -> float:
    """Return what Trainer adds to total_flos per token."""
    row = {"input_ids": torch.zeros(1, 1000, dtype=torch.long)}
    return Trainer.floating_point_ops(SimpleNamespace(model=model), row) / 1000  # a Trainer cannot hold a model without data


def products(model: torch.nn.Module) -> float:
    """Return FLOP per token of a step's products with weights: 2 forward, 2 to the inputs, 2 to weights that train."""
    total, config = 0.0, model.config
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or ("embed_tokens" in name and not config.tie_word_embeddings):
            continue  # a lookup is no product; a tied table is one, as the head
        active = config.num_experts_per_tok / config.num_local_experts if ".experts." in name else 1.0
        total += weight.numel() * active * (6 if weight.requires_grad else 4)
    return total


half_b = Qwen2Config(  # the shape of Qwen2-0.5B
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
)
with torch.device("meta"):
    mistral = MistralForCausalLM(MistralConfig())
    models = {
        "Mistral-7B": mistral,
        "Mixtral-8x7B": MixtralForCausalLM(MixtralConfig()),
        "Qwen2-0.5B, tied": Qwen2ForCausalLM(half_b),
    }
ratios = {name: counted(model) / products(model) for name, model in models.items()}
with torch.device("meta"):
    lora = peft.get_peft_model(mistral, peft.LoraConfig(r=16, target_modules="all-linear"))
ratios["Mistral-7B, LoRA"] = counted(lora) / products(lora)
for name, ratio in ratios.items():
    print(f"{name:17} total_flos grows by {ratio:.2f} of the FLOP of its products with weights")
assert abs(ratios["Mistral-7B"] - 1) < 0.01
assert ratios["Mixtral-8x7B"] > 3.5 and 1.4 < ratios["Mistral-7B, LoRA"] < 1.5 and ratios["Qwen2-0.5B, tied"] < 0.75
PY
env/bin/python show.py
