# One assumes that full recomputation repeats the whole forward pass of each layer, so that a step costs 4 forward passes instead of 3.
# What happens: it stops at the last tensor that is needed, before a layer's last product: 0.75 of a Mistral layer is repeated, and all of GPT-2's, for its dropout.
# Seen with torch 2.13.0, transformers 5.23.0 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
cat > show.py <<'PY'
import warnings

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
print("torch", torch.__version__, "transformers", transformers.__version__)
ROWS, TOKENS, HIDDEN, VOCABULARY = 1, 256, 512, 256


def flop(model: torch.nn.Module) -> tuple[int, int]:
    """Return the FLOP of a forward and of a backward pass, attention's products among them."""
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH):  # the kernel whose products torch counts on a processor
        with FlopCounterMode(display=False) as forward:
            total = model(input_ids=ids, use_cache=False).logits.sum()
        with FlopCounterMode(display=False) as backward:
            total.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def repeated(model: torch.nn.Module, use_reentrant: bool) -> float:
    """Return the share of the layers' forward FLOP that recomputation adds to the backward pass."""
    model.train()
    model.gradient_checkpointing_disable()
    forward, backward = flop(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    layers = forward - 2 * ROWS * TOKENS * HIDDEN * VOCABULARY  # the vocabulary projection is never repeated
    return (flop(model)[1] - backward) / layers


mistral = MistralForCausalLM(  # the proportions of Mistral-7B, an eighth as wide
    MistralConfig(
        num_hidden_layers=4,
        hidden_size=HIDDEN,
        intermediate_size=1792,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )
)
gpt2 = {"n_layer": 4, "n_embd": HIDDEN, "n_head": 8, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
found = {
    "Mistral": repeated(mistral, use_reentrant=False),
    "Mistral, reentrant": repeated(mistral, use_reentrant=True),
    "GPT-2 without dropout": repeated(GPT2LMHeadModel(GPT2Config(**gpt2, resid_pdrop=0.0)), use_reentrant=False),
    "GPT-2 with its dropout": repeated(GPT2LMHeadModel(GPT2Config(**gpt2)), use_reentrant=False),
}
for name, share in found.items():
    print(f"{name:23} repeats {share:.3f} of its layers' forward FLOP: a step is {3 + share:.2f} forward passes")
assert abs(found["Mistral"] - 0.75) < 0.01
assert abs(found["GPT-2 without dropout"] - 9 / 13) < 0.01
assert found["Mistral, reentrant"] == found["GPT-2 with its dropout"] == 1
PY
env/bin/python show.py
