# One assumes that in the trainer_state.json of a resumed run each entry's train_runtime goes on, as its steps, tokens and total_flos do.
# What happens: it starts again at the resumption: between two entries tokens/s come out negative or far too high, and at the end total_flos / train_runtime too high.
# Seen with torch 2.13.0, transformers 5.23.0, accelerate 1.15.0 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cat > show.py <<'PY'
import json
import time
import warnings
from pathlib import Path

import accelerate
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print("torch", torch.__version__, "transformers", transformers.__version__, "accelerate", accelerate.__version__)
STEP_S, FIRST, LAST, ROWS, TOKENS = 0.4, 20, 24, 4, 32
rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (128, TOKENS))]
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


class Pace(TrainerCallback):
    """Every step lasts as long, whatever the machine."""

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.began = time.monotonic()

    def on_step_end(self, *_: object, **__: object) -> None:
        time.sleep(max(0.0, STEP_S - (time.monotonic() - self.began)))


def train(resume: str | None) -> Trainer:
    arguments = TrainingArguments(
        output_dir="out",
        max_steps=LAST,
        per_device_train_batch_size=ROWS,
        logging_steps=4,
        save_steps=FIRST,
        include_num_input_tokens_seen="all",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=rows, callbacks=[Pace()])
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def summary(trainer: Trainer) -> float:
    """Return FLOP per second, of the last entry that a run logs."""
    last = trainer.state.log_history[-1]
    print(f"  at the end: total_flos {last['total_flos']:.3e}, train_runtime {last['train_runtime']:.2f}")
    return last["total_flos"] / last["train_runtime"]


print(f"a run of {LAST} steps, all alike, without a break:")
through = summary(train(None))
print(f"the same, ended after step {FIRST} and resumed from what it saved then:")
resumed = train(f"out/checkpoint-{FIRST}")
resumed.save_state()
entries = json.loads(Path("out/trainer_state.json").read_text())["log_history"]
steps = {entry["step"]: entry for entry in entries if "loss" in entry}
rates = {}
for step, entry in steps.items():
    print(f"  step {step:2}: train_runtime {entry['train_runtime']:.2f}, num_input_tokens_seen {entry['num_input_tokens_seen']}", end="")
    if before := steps.get(step - 4):
        tokens = entry["num_input_tokens_seen"] - before["num_input_tokens_seen"]
        rates[step] = tokens / (entry["train_runtime"] - before["train_runtime"])
        print(f", {rates[step]:.0f} tokens/s since step {step - 4}", end="")
    print()
again = summary(resumed)
print(f"FLOP per second of the resumed run by its summary: {again / through:.1f} times those of the run without a break")
assert list(steps) == [4, 8, 12, 16, 20, 24]
assert steps[24]["num_input_tokens_seen"] == 24 * ROWS * TOKENS  # this one goes on
assert steps[24]["train_runtime"] < steps[20]["train_runtime"] and rates[24] < 0
assert again / through > 2
PY
env/bin/python show.py
