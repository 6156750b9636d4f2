# One assumes that peft's target_modules="all-linear" on Mixtral at rank 16 adapts attention's projections, or every expert's products, at rank 16.
# What happens: beside them it adapts the router, and gate and up of the experts as one matrix at rank 32: 11,239,552 parameters a layer, not 425,984 or 7,503,872.
# Seen with torch 2.13.0, transformers 5.23.0, peft 0.21.2 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
cat > show.py <<'PY'
import warnings

import peft
import torch
import transformers
from transformers import MixtralConfig, MixtralForCausalLM

warnings.filterwarnings("ignore")
print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
RANK, HIDDEN, KV, FFN, EXPERTS = 16, 4096, 1024, 14336, 8
with torch.device("meta"):
    model = MixtralForCausalLM(MixtralConfig(num_hidden_layers=1))  # a layer of Mixtral-8x7B
    model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, target_modules="all-linear"))
found = {}
for name, parameter in model.named_parameters():
    if parameter.requires_grad:
        found[name.removeprefix("base_model.model.model.layers.0.").removesuffix(".default.weight")] = parameter
        print(f"{name.removeprefix('base_model.model.model.layers.0.'):48} {tuple(parameter.shape)}")
total = sum(parameter.numel() for parameter in found.values())
attention = RANK * (2 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + KV))
experts = EXPERTS * RANK * 3 * (HIDDEN + FFN)
print(f"trained: {total:,} a layer; attention alone {attention:,}; with every expert's gate, up and down {attention + experts:,}")
gate_up = found["mlp.experts.base_layer.lora_A"]
print(f"gate and up of an expert share one adapter of rank {gate_up.shape[0] // EXPERTS}, where {RANK} was asked for")
assert total == 11_239_552
assert gate_up.shape[0] // EXPERTS == 2 * RANK
assert "mlp.gate.lora_A" in found  # the router
assert "mlp.experts.lora_A" in found  # down, at the rank asked for
PY
env/bin/python show.py
