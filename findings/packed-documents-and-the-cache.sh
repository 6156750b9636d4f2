# One assumes that documents packed in a row, told apart by position_ids that start again, never see each other in a transformers model.
# What happens: they do unless use_cache=False: the key-value cache, on unless refused, in training too, turns that off, so that recomputation changes the loss.
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
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
print("torch", torch.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(config).train()
documents = [torch.randint(0, 64, (length,)).tolist() for length in (50, 70)]
packed = DataCollatorWithFlattening()([{"input_ids": document} for document in documents])
print("batch:", {name: tuple(value.shape) for name, value in packed.items()})


def loss(**options: bool) -> torch.Tensor:
    return model(**packed, **options).loss.detach()


sums = [model(input_ids=torch.tensor([d]), labels=torch.tensor([d])).loss.detach() * (len(d) - 1) for d in documents]
apart = torch.stack(sums).sum() / sum(len(d) - 1 for d in documents)
unasked, refused = loss(), loss(use_cache=False)
model.gradient_checkpointing_enable()  # it refuses the cache
recomputed = loss()
print(f"each document by itself      {apart:.6f}")
print(f"packed, use_cache=False      {refused:.6f}")
print(f"packed, as one calls it      {unasked:.6f}")
print(f"packed, with recomputation   {recomputed:.6f}")
assert torch.allclose(apart, refused, atol=1e-5) and torch.allclose(apart, recomputed, atol=1e-5)
assert (unasked - apart).abs() > 1e-3
PY
env/bin/python show.py
