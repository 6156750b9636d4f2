# One assumes that model.to(torch.bfloat16) and from_pretrained(dtype=torch.bfloat16) give the same model: their parameters are equal bit for bit.
# What happens: the cast also rounds the rotary frequencies, a buffer that is not saved: at position 4,095 cosines are off by 0.59, a small model's logits by 61 % (rounding: 2).
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
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print("torch", torch.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
LlamaForCausalLM(
    LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.1,  # so that attention looks at some positions more than at others, as a trained model's does
    )
).save_pretrained("checkpoint")
exact = AutoModelForCausalLM.from_pretrained("checkpoint", dtype=torch.float32).eval()
loaded = AutoModelForCausalLM.from_pretrained("checkpoint", dtype=torch.bfloat16).eval()
cast = AutoModelForCausalLM.from_pretrained("checkpoint", dtype=torch.float32).to(torch.bfloat16).eval()
assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), cast.parameters(), strict=True))
for name, model in (("loaded as bfloat16", loaded), ("cast to bfloat16", cast)):
    print(f"{name}: inv_freq is {model.model.rotary_emb.inv_freq.dtype}")
for position in (127, 1023, 4095):
    cosines = [m.model.rotary_emb(torch.zeros(1), torch.tensor([[position]]))[0] for m in (loaded, cast)]
    off = (cosines[0] - cosines[1]).abs().max().item()
    print(f"position {position:4}: cosines of the two differ by up to {off:.2f}")
assert off > 0.5
ids = torch.randint(0, 256, (1, 4096))
with torch.no_grad():
    right, a, b = (model(input_ids=ids, use_cache=False).logits.float()[:, 4000:] for model in (exact, loaded, cast))
errors = [((logits - right).norm() / right.norm()).item() for logits in (a, b)]
print(f"logits of positions 4,000 to 4,095 against 32 bits: off by {errors[0]:.1%} loaded, {errors[1]:.1%} cast")
assert errors[0] < 0.05 and errors[1] > 0.4
PY
env/bin/python show.py
