# One assumes that transformers' Trainer(bf16=True) trains 32-bit weights under autocast: 16 bytes of states a parameter, and small updates add up.
# What happens: transformers 5 loads a checkpoint in its own type, so weights and both moments are bfloat16: 8 bytes, and at 2e-6 most weights never move.
# Seen with torch 2.13.0, transformers 5.23.0, accelerate 1.15.0 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cat > show.py <<'PY'
import warnings

import accelerate
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print("torch", torch.__version__, "transformers", transformers.__version__, "accelerate", accelerate.__version__)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained("checkpoint")  # as nearly every published checkpoint is
ids = torch.randint(0, 256, (512, 32))
rows = [{"input_ids": row, "labels": row} for row in ids]


def train(**options: torch.dtype) -> tuple[float, float]:
    """Return the bytes of states per parameter, and the share of the weights that 64 steps did not move."""
    model = AutoModelForCausalLM.from_pretrained("checkpoint", **options)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    arguments = TrainingArguments(
        output_dir="out",
        num_train_epochs=1,
        per_device_train_batch_size=8,
        learning_rate=2e-6,
        lr_scheduler_type="constant",
        bf16=True,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    states = trainer.optimizer.state.values()
    count = model.num_parameters()
    held = sum(value.nbytes for state in states for value in state.values() if value.numel() > 1)
    held += sum(2 * parameter.nbytes for parameter in model.parameters())  # itself and its gradient
    still = sum((p.detach() == s).sum().item() for p, s in zip(model.parameters(), start, strict=True)) / count
    types = {str(parameter.dtype) for parameter in model.parameters()}
    print(f"{'as one loads it' if not options else 'dtype=float32':16} weights {types}: {held / count:.1f} bytes a parameter, "
          f"{still:.1%} of the weights where they were after {trainer.state.global_step} steps")
    return held / count, still


held, still = train()
held_32, still_32 = train(dtype=torch.float32)
assert held == 8 and held_32 == 16
assert still > 0.9 and still_32 < 0.01
PY
env/bin/python show.py
