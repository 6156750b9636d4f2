"""Small work for the trainer's tests: checkpoints of each model family, rows with a tokenizer of their own, runs."""

import json
import os
import random
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, PreTrainedTokenizerFast

from trainer.config import TrainConfig
from trainer.data.dataset import DataConfig, load_data
from trainer.data.prompt import FORM
from trainer.parallel.adapters import PROJECTIONS
from trainer.parallel.optimizer import OptimizerConfig
from trainer.prepare import check_output
from trainer.source import find_model
from trainer.train import Outcome, train

VOCAB = 384
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
MODELS: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral, window": {"model_type": "mistral", "sliding_window": 16},
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
}
"""Configs by name; the windows are shorter than the rows."""

SEED = 7


def mistral_of(num_layers: int) -> MistralConfig:
    """Return a small model of so many layers, for runs on tensors without values."""
    return MistralConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        sliding_window=None,
    )


@torch.no_grad()
def write_checkpoint(name: str, folder: Path) -> None:
    """Write a random model as Hugging Face does; no weight has the value that it would have by default."""
    values = _SHAPE | MODELS[name]
    config = AutoConfig.for_model(values["model_type"], **{k: v for k, v in values.items() if k != "model_type"})
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms are 1 and biases 0 else, and one in the place of another would not show
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)


def write_adapter(checkpoint: Path, folder: Path, **changes: Any) -> None:
    """Write adapters as peft does beside all linear modules of a checkpoint's layers.

    Neither of their matrices is 0, and all numbers are also ones of 16 bits, so that runs in either begin alike.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - slow to import, and few tests need it

    torch.manual_seed(SEED)
    usual = {"r": 4, "lora_alpha": 8, "target_modules": list(PROJECTIONS), "init_lora_weights": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, at what peft calls
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), LoraConfig(**(usual | changes)))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    model.save_pretrained(folder)


def write_rows(path: Path, count: int) -> list[str]:
    """Write a dataset of uneven rows, and return their texts."""
    draw = random.Random(SEED)  # noqa: S311 - of a test's rows
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 4))) for _ in range(60)]
    rows = [
        {
            "instruction": " ".join(draw.choices(words, k=draw.randint(1, 8))),
            "output": " ".join(draw.choices(words, k=draw.randint(1, 12))),
        }
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [FORM.format(instruction=row["instruction"], input="") + row["output"] for row in rows]


def write_tokenizer(texts: list[str], folder: Path) -> None:
    """Write a byte-level BPE of `VOCAB` tokens, trained on texts."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", pad_token="<pad>").save_pretrained(folder)  # noqa: S106


def write_work(folder: Path, model: str = "mistral", *, rows: int = 64) -> None:
    """Write a `checkpoint`, a `tokenizer` and a dataset `rows.jsonl` into a folder."""
    write_checkpoint(model, folder / "checkpoint")
    write_tokenizer(write_rows(folder / "rows.jsonl", rows), folder / "tokenizer")


def tiny_config(folder: Path, output: Path, **changes: Any) -> TrainConfig:
    """Return a run on what `write_work` wrote: 8 rows of 72 tokens a step, uneven prompts without loss, clipping.

    Args:
        folder: what `write_work` wrote into.
        output: of the run.
        changes: of the run or of its data.
    """
    data: dict[str, Any] = {
        "dataset": str(folder / "rows.jsonl"),
        "tokenizer": str(folder / "tokenizer"),
        "seq_len": 72,
        "mask_prompt": True,
    }
    data |= {key: changes.pop(key) for key in DataConfig.__dataclass_fields__.keys() & changes.keys()}
    run = {
        "model": str(folder / "checkpoint"),
        "optimizer": OptimizerConfig(lr=1e-3, weight_decay=0.1, clip_norm=1.0),
        "global_batch": 8,
        "num_steps": 8,
        "precision": "fp32",
        **changes,
    }
    return TrainConfig(data=DataConfig(**data), output=output, **run)


def train_tiny(config: TrainConfig) -> Outcome:
    """Train as one rank, with what `tiny_config` returned."""
    data = load_data(config.data, Path(config.data.dataset).parent / "cache")
    if os.environ.get("RANK", "0") == "0":
        check_output(config)
    return train(config, find_model(config.model, data.vocab_size), data)
