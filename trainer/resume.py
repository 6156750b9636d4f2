"""What a run that continues must have in common with the one before, what it may change, and what changes nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from hardware.errors import shown
from trainer.config import CHECKPOINT_FOLDER, TrainConfig
from trainer.data.token_rows import TokenRows
from trainer.parallel.checkpoint import Found, damage, find_checkpoint, read_state, weight_shapes
from trainer.parallel.model import meta_model
from trainer.source import ModelSource

_ROWS = ("dataset", "tokenizer", "mask-prompt", "truncate", "eval-rows")
"""Options that decide which rows there are, and which of their tokens are targets."""

_FREE = (
    "steps", "plan", "lr", "warmup-steps", "decay", "weight-decay", "clip-norm", "precision", "attention", "compile",
)  # fmt: skip
"""Options that take effect from the next step on, whatever they were."""


def options_of(config: TrainConfig) -> dict[str, Any]:
    """Return the options of a run that decide what it computes, as JSON, by their names on the command line."""
    data, optimizer = config.data, config.optimizer
    return {
        "model": config.model,
        "dataset": data.dataset,
        "tokenizer": data.tokenizer,
        "mask-prompt": data.mask_prompt,
        "truncate": data.truncate,
        "eval-rows": data.eval_rows,
        "seed": data.seed,
        "seq-len": data.seq_len,
        "batch": config.global_batch,
        "packing": data.packing,
        "steps": config.num_steps,
        "plan": str(config.plan),
        "lr": optimizer.lr,
        "warmup-steps": optimizer.warmup_steps,
        "decay": optimizer.decay,
        "weight-decay": optimizer.weight_decay,
        "clip-norm": optimizer.clip_norm,
        "precision": config.precision,
        "attention": config.attention,
        "compile": config.compiles,
    }


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}


@dataclass(frozen=True)
class Changes:
    """What another run's options do to the one that is continued; of each, what it was and what is given."""

    take_effect: dict[str, tuple[Any, Any]]
    change_nothing: dict[str, tuple[Any, Any]]

    def line(self) -> str:
        """Return all in one line without a beginning; "" where nothing differs."""
        takes = [f"{name} {_text(was)} -> {_text(given)}" for name, (was, given) in self.take_effect.items()]
        nothing = [f"{name} {_text(was)} -> {_text(given)}" for name, (was, given) in self.change_nothing.items()]
        said = [f"from here on {', '.join(takes)}"] if takes else []
        if nothing:
            said.append(f"without effect {', '.join(nothing)}: the weights are the checkpoint's")
        return "; ".join(said)


def changes(config: TrainConfig, state: Mapping[str, Any]) -> Changes:
    """Return what differs from the run that wrote a checkpoint, once `refuse_another` has refused what may not."""
    before, here = state["options"], options_of(config)
    take = {name: (before.get(name), here[name]) for name in _FREE if before.get(name) != here[name]}
    take |= {
        name: (was, version) for name, version in versions().items() if (was := state["versions"].get(name)) != version
    }
    nothing = {"model": (before["model"], here["model"])} if before.get("model") != here["model"] else {}
    return Changes(take, nothing)


def find_continued(
    config: TrainConfig, rows: TokenRows, source: ModelSource, damage_of: Callable[[Path], str] = damage
) -> Found | None:
    """Return the checkpoint that a run continues from, verified, and of a run like this; None of one that begins.

    Raises:
        ValueError: it is damaged, or of another run: which rule is broken, and the mend.
    """
    looks = damage_of if config.passed_over is None else lambda _: ""
    found = find_checkpoint(config.resume, config.output / CHECKPOINT_FOLDER, looks)
    if found is None:
        return None
    refuse_another(config, rows, source, found.path, read_state(found.path))
    return Found(found.path, config.passed_over) if config.passed_over is not None else found


def refuse_another(
    config: TrainConfig, rows: TokenRows, source: ModelSource, checkpoint: Path, state: Mapping[str, Any]
) -> None:
    """Refuse to continue a checkpoint with what is another run; before any process starts, and again in each.

    Args:
        config: the run that is to continue.
        rows: to train on.
        source: the model.
        checkpoint: to continue from.
        state: what it says of its run.

    Raises:
        ValueError: seed, length, batch, packing or rows are others, the model has other weights, or more steps are done
            than are asked for.
    """
    before, here, name = state.get("options", {}), options_of(config), checkpoint.name
    loader = state.get("loader", {})
    if not all(isinstance(part, dict) for part in (before, loader, state.get("versions"))):
        raise ValueError(f"resume: {name} does not say which run it is of; give another checkpoint, or start anew")
    differing = [option for option in ("seed", "seq-len", "batch", "packing") if before.get(option) != here[option]]
    if not differing and loader.get("rows") != rows.digest:
        differing = [option for option in _ROWS if before.get(option) != here[option]]
        if not differing:
            raise ValueError(
                f"resume: the rows of {shown(config.data.dataset, 200)} are not those of {name}; give the same, or "
                "start anew with another --output"
            )
    if differing:
        was = ", ".join(
            f"{option} was {_text(before.get(option))}, and is {_text(here[option])}" for option in differing
        )
        raise ValueError(f"resume: of {name} {was}; give the same, or start anew with another --output")
    if config.num_steps and config.num_steps < state["step"]:
        raise ValueError(
            f"steps: {config.num_steps} are fewer than the {state['step']} done in {name}; give as many or more"
        )
    if config.adapters or state.get("adapters"):
        refuse_other_adapters(config, source, checkpoint, state.get("adapters"))
    else:
        _refuse_other_weights(source, checkpoint)


def refuse_other_adapters(config: TrainConfig, source: ModelSource, checkpoint: Path, told: Any) -> None:
    """Refuse to go on with other adapters than a checkpoint holds, or beside another model.

    Args:
        config: the run that is to continue.
        source: its model.
        checkpoint: to continue from.
        told: what the checkpoint says of its adapters; None of one that holds all weights.

    Raises:
        ValueError: rank, scale, targets or base are others, or one has adapters and the other none.
    """
    where = f"resume: {checkpoint.name}"
    if config.adapters is None or not isinstance(told, dict):
        what, mend = ("all weights", "leave out --lora") if config.adapters else ("adapters", "give its --lora")
        raise ValueError(f"{where} holds {what}; {mend}, or start anew with another --output")
    for name, own in {"base": source.name, **config.adapters.document()}.items():
        if name != "dropout" and told.get(name) != own:
            raise ValueError(f"{where} has adapters of {name} {shown(told.get(name))}, not {shown(own)}; give the same")


def _refuse_other_weights(source: ModelSource, checkpoint: Path) -> None:
    there = weight_shapes(checkpoint)
    model = meta_model(source.config, "sdpa", torch.float32)  # weightless, in a moment
    here = {name: list(weight.shape) for name, weight in model.named_parameters()}
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"resume: {checkpoint.name} has {_weight(name, there)}, model {shown(source.name)} "
                f"{_weight(name, here)}; give the model that it is of"
            )


def _weight(name: str, shapes: Mapping[str, list[int]]) -> str:
    return f"{name} in shape {shapes[name]}" if name in shapes else f"no {name}"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(value, 120) if isinstance(value, str) else str(value)
