"""Measure the reference trainer on this machine's processors: runs that differ in model, batch, sequence and plan.

Each is a `train` of its own; its step log goes to `reports/measured/cpu/`, where `calibrate` reads it. `make cpu-runs`.
Nothing else should run meanwhile.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[1] / "reports" / "measured" / "cpu"
STEPS = 8


class Model(NamedTuple):
    """Sizes of a Mistral."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int = 4096

    def config(self) -> dict[str, object]:
        """Return its Hugging Face config."""
        return {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 4096,
            "sliding_window": None,
            "tie_word_embeddings": False,
        }


MODELS = {
    "5m": Model(256, 704, 4, 4, 2),
    "13m": Model(384, 1024, 6, 6, 2),
    "29m": Model(512, 1408, 8, 8, 2),
    "100m": Model(768, 2048, 12, 12, 4, vocab=16384),
}


class Case(NamedTuple):
    """One run: its global batch follows from the plan and the number of processes."""

    model: str
    seq_len: int
    nproc: int
    plan: str
    steps: int = STEPS

    @property
    def name(self) -> str:
        """Name of its log."""
        plan = self.plan.replace("=", "").replace(",", "_")
        for long, short in _SHORT:
            plan = plan.replace(long, short)
        return f"{self.model}_s{self.seq_len}_n{self.nproc}_{plan}"

    @property
    def batch(self) -> int:
        """Rows of a step."""
        value = dict(item.split("=") for item in self.plan.split(","))
        ranks = self.nproc // (int(value.get("num_stages", 1)) * int(value.get("tp", 1)))
        return ranks * int(value["num_micro_batches"]) * int(value["batch_per_device"])


_SHORT = (
    ("num_stages", "pp"),
    ("num_micro_batches", "m"),
    ("batch_per_device", "b"),
    ("recomputation", "re-"),
    ("distribute_paramfalse", "zero0"),
    ("distribute_paramtrue", "zero3"),
    ("zero_stage", "zero"),
    ("schedule", ""),
)


def cases() -> list[Case]:
    """Return every run."""
    found = [
        Case(model, *rest)
        for model, most in (("5m", 8), ("13m", 8), ("29m", 4))
        for rest in (
            (256, 1, f"num_micro_batches=1,batch_per_device={most}"),
            (512, 1, f"num_micro_batches=2,batch_per_device={most // 4}"),
            (256, 1, f"num_micro_batches=2,batch_per_device={most // 2},recomputation=full"),
            (256, 2, f"num_micro_batches=1,batch_per_device={most // 2},distribute_param=true"),
            (512, 2, f"num_micro_batches={most // 4},batch_per_device=1,distribute_param=false"),
            (256, 2, f"num_stages=2,num_micro_batches=4,batch_per_device={most // 4}"),
            (256, 2, f"num_micro_batches=1,batch_per_device={most},tp=2"),
            (
                256,
                2,
                f"num_stages=2,num_micro_batches=4,batch_per_device={most // 4},recomputation=full,schedule=gpipe",
            ),
        )
    ]
    found += [
        Case("5m", 1024, 1, "num_micro_batches=1,batch_per_device=2"),
        Case("13m", 128, 2, "num_micro_batches=1,batch_per_device=8,zero_stage=2"),
        Case("29m", 128, 1, "num_micro_batches=2,batch_per_device=4"),
        Case("100m", 256, 1, "num_micro_batches=1,batch_per_device=4", steps=30),
    ]
    return found


def measure(case: Case, folder: Path) -> None:
    """Run a case, and keep its log."""
    config, output = folder / case.model / "config.json", folder / "run"
    config.parent.mkdir(exist_ok=True)
    config.write_text(json.dumps(MODELS[case.model].config()), encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "trainer", "--model", str(config), "--output", str(output), "--no-export"]
    command += ["--seq-len", str(case.seq_len), "--batch", str(case.batch), "--steps", str(case.steps)]
    command += ["--plan", case.plan, "--nproc", str(case.nproc), "--lr", "1e-3", "--warmup-steps", "5"]
    subprocess.run(command, check=True)  # noqa: S603 - the words are those above
    kept = FOLDER / case.name
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("steps.jsonl", "train.log", "machine.toml"):
        shutil.copy(output / name, kept / name)


def main() -> None:
    """Run the cases whose names hold a word, all without one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("word", nargs="?", default="")
    wanted = [case for case in cases() if parser.parse_args().word in case.name]
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(wanted, start=1):
            print(f"--- {number} of {len(wanted)}: {case.name}", flush=True)
            measure(case, Path(folder))


if __name__ == "__main__":
    main()
