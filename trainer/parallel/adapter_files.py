"""Adapters in the two files of peft, which `PeftModel.from_pretrained` loads, and added to the weights beside them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hardware.errors import shown
from hardware.files import read_regular_file
from trainer.parallel.adapters import ALL_LINEAR, PROJECTIONS, AdapterConfig, adapted
from trainer.parallel.model import Stage
from trainer.parallel.weights import adapter_weights, local_parts, named_weights, read_weights, write_weights

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

PREFIX = "base_model.model."
"""Of names in `WEIGHTS_FILE`, before those of the whole model."""

MOST_CONFIG_BYTES = 2**20

READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules")
IDLE = (
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "megatron_core",
    "qalora_group_size",
)
"""Keys that change nothing of what is computed, or only beside others that are refused."""

PLAIN: dict[str, tuple[object, ...]] = {"bias": ("none",), "init_lora_weights": (True, "gaussian")}
"""Values of other keys that are as the trainer computes, beside those that say no."""


def config_document(config: AdapterConfig, base: str) -> dict[str, Any]:
    """Return `adapter_config.json`.

    Args:
        config: of the adapters.
        base: folder or hub id of the model that they lie beside.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets),
        "bias": "none",
    }


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Return what the `adapter_config.json` of a folder says.

    Raises:
        ValueError: there is none, or it is of adapters that the trainer does not have.
    """
    where = f"adapter: {shown(str(folder / CONFIG_FILE), 200)}"
    try:
        found = json.loads(read_regular_file(folder / CONFIG_FILE, MOST_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read as JSON; give the folder of an adapter that peft wrote") from error
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        raise ValueError(f"{where} is of no LoRA adapter; give one with peft_type LORA")
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"adapter: {shown(str(folder), 200)} holds no {WEIGHTS_FILE}; save the adapter as safetensors")
    for key, value in found.items():
        if key not in (*READ, *IDLE) and value and value not in PLAIN.get(key, ()):
            raise ValueError(f"{where} has {key} = {shown(value)}, which the trainer lacks; give a plain LoRA adapter")
    targets = list(PROJECTIONS) if found.get("target_modules") == ALL_LINEAR else found.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise ValueError(
            f"{where} has no list of target_modules; name the modules themselves, {', '.join(PROJECTIONS)}"
        )
    rank, alpha, dropout = (_number(found, key, where) for key in ("r", "lora_alpha", "lora_dropout"))
    if rank != int(rank):
        raise ValueError(f"{where} has r = {rank}, which is no whole number; mend it")
    try:
        return AdapterConfig(int(rank), alpha, tuple(targets), dropout)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _number(found: dict[str, Any], key: str, where: str) -> float:
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e9:
        raise ValueError(f"{where} has {key} = {shown(value)}, which is no number; mend it")
    return float(value)


def load_adapter(stages: Sequence[Stage], folder: Path) -> None:
    """Read the adapters of this rank's chunks, each rank its own part only.

    Raises:
        ValueError: the file lacks one of them, or has it in another shape.
    """
    read_weights({PREFIX + name: weight for name, weight in adapter_weights(stages).items()}, folder, "adapter")


def export_adapter(stages: Sequence[Stage], folder: Path, config: AdapterConfig, base: str) -> None:
    """Write the adapters of all ranks' chunks; all ranks call it, each writes its own part.

    Args:
        stages: this rank's chunks.
        folder: where; it is made whole or not at all.
        config: of the adapters.
        base: folder or hub id of the model that they lie beside.
    """
    state = {PREFIX + name: weight for name, weight in adapter_weights(stages).items()}
    write_weights(state, folder, (_Config(config_document(config, base)),), name_of_file=WEIGHTS_FILE)


@dataclass(frozen=True)
class _Config:
    """A config file to be."""

    document: dict[str, Any]

    def save_pretrained(self, save_directory: str) -> None:
        """Write it into a folder."""
        text = json.dumps(self.document, indent=2) + "\n"
        (Path(save_directory) / CONFIG_FILE).write_text(text, encoding="utf-8")


@torch.no_grad()
def merge_adapters(stages: Sequence[Stage]) -> None:
    """Add the adapters of this rank's chunks to the weights they lie beside, W + alpha / r B A; all ranks call it.

    The sum is made in 32 bits and rounded once. Adapters are left as they are: the chunks are of no more use but to
    write their weights.
    """
    weights = named_weights(stages)
    for stage in stages:
        for name, module in adapted(stage):
            a_RI, b_OR = (_whole(weights[f"{name}.{part}.weight"]).float() for part in ("lora_A", "lora_B"))
            for (top, left), local in local_parts(weights[f"{name}.weight"]):
                rows, columns = slice(top, top + local.shape[0]), slice(left, left + local.shape[1])
                local.copy_(local.float() + module.scale * b_OR[rows] @ a_RI[:, columns])


def _whole(weight: Tensor) -> Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
