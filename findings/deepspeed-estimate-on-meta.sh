# One assumes that DeepSpeed's estimate_zero3_model_states_mem_needs_all_live takes a model on the meta device, as one makes what no machine holds.
# What happens: it tells tensors apart by their address, 0 for all of them: Mistral-7B is "131M total params", 0.76 GB a device of 8 where 15.66 are needed.
# Seen with deepspeed 0.19.8, torch 2.13.0, transformers 5.23.0 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 setuptools wheel
env/bin/pip install --quiet --no-build-isolation deepspeed==0.19.8
cat > show.py <<'PY'
import contextlib
import io
import re
from collections.abc import Callable

import deepspeed
import torch
import transformers
from deepspeed.runtime.zero.stage3 import (
    estimate_zero3_model_states_mem_needs_all_cold,
    estimate_zero3_model_states_mem_needs_all_live,
)
from transformers import MistralConfig, MistralForCausalLM

print("deepspeed", deepspeed.__version__, "torch", torch.__version__, "transformers", transformers.__version__)


def estimated(estimate: Callable[..., None], *about: object) -> tuple[str, float]:
    """Return what an estimator prints: the model that it sees, and GB a device without offload."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        estimate(*about, num_gpus_per_node=8)
    seen = re.search(r"Model with (.* total params)", printed.getvalue())[1]
    return seen, float(re.findall(r"([\d.]+)GB \| offload_param=none, offload_optimizer=none", printed.getvalue())[0])


with torch.device("meta"):
    model = MistralForCausalLM(MistralConfig())  # Mistral-7B
count = sum(parameter.numel() for parameter in model.parameters())
largest = model.lm_head.weight.numel()
live = estimated(estimate_zero3_model_states_mem_needs_all_live, model)
cold = estimated(estimate_zero3_model_states_mem_needs_all_cold, count, largest)
print(f"Mistral-7B has {count:,} parameters, the largest layer {largest:,}; ZeRO 3 on 8 devices:")
print(f"  from the model on the meta device: {live[0]}, {live[1]} GB a device")
print(f"  from the two numbers:              {cold[0]}, {cold[1]} GB a device")
assert live[0] == "131M total params" and cold[0] == "7241M total params"
assert live[1] < 1 and cold[1] > 15
PY
env/bin/python show.py
