"""A plan really trained, and the largest differences of its run from the plain loop's."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.parity.cases import CLIP_NORM, GLOBAL_BATCH, LR, WEIGHT_DECAY, Case
from tests.parity.plain import Trained, train_plainly
from tests.support.ranks import run_ranks
from tests.support.tiny import tiny_config, train_tiny, write_adapter, write_work
from trainer.config import TrainConfig
from trainer.data.dataset import load_data
from trainer.data.loader import Loader, evaluation_batches
from trainer.measure import read_records
from trainer.parallel.adapter_files import WEIGHTS_FILE, read_adapter_config
from trainer.parallel.optimizer import OptimizerConfig

ROW, PACKED_ROW = 72, 144
"""Tokens of a row; a packed one has room for several documents."""
EVAL_ROWS = 10
"""Held out; no multiple of the batch."""


class Difference(NamedTuple):
    """The largest differences of a run from another; 0 where they are equal to the last bit."""

    loss: float
    """Over all steps, and on the held-out rows."""
    norm: float
    """Of the gradient, relative, over all steps."""
    weight: float
    """Over all exported weights, in units of the learning rate."""


@dataclass(frozen=True)
class Work:
    """A model and rows in a folder, and what the plain loop makes of them in so many steps."""

    folder: Path
    steps: int

    def config(self, case: Case, output: Path) -> TrainConfig:
        """Return the run of a case."""
        return tiny_config(
            self.files(case.model),
            output,
            plan=case.plan,
            seq_len=PACKED_ROW if case.packing else ROW,
            packing=case.packing,
            eval_rows=EVAL_ROWS,
            optimizer=OptimizerConfig(lr=LR, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM),
            global_batch=GLOBAL_BATCH,
            num_steps=self.steps,
            precision=case.precision,
            compiles=case.compiles,
            **self._adapters(case),
        )

    def _adapters(self, case: Case) -> dict[str, Any]:
        """Return the adapters of a case, which peft draws: B too, so that the first step's gradients tell of both."""
        if not case.adapters:
            return {}
        folder = self.files(case.model) / "adapter"
        if not folder.exists():
            write_adapter(self.files(case.model) / "checkpoint", folder)
        return {"adapters": read_adapter_config(folder), "start_adapter": str(folder)}

    def files(self, model: str) -> Path:
        """Return the folder of a model's checkpoint, tokenizer and dataset, written the first time."""
        folder = self.folder / model.replace(", ", "-")
        if not folder.exists():
            folder.mkdir()
            write_work(folder, model)
        return folder

    @cache  # noqa: B019 - lives as long as the process that compares
    def plain(self, model: str, precision: str, *, packing: bool, adapters: bool = False) -> Trained:
        """Return what the plain loop comes to."""
        case = Case(1, "num_micro_batches=1", model, packing=packing, precision=precision, adapters=adapters)
        (trained,) = run_ranks(1, _train_plainly, self.config(case, Path()))
        assert isinstance(trained, Trained)
        return trained

    def difference(self, case: Case, output: Path) -> Difference:
        """Train a case as the trainer does, from the process group to the exported model, and compare."""
        variables = {"LOCAL_WORLD_SIZE": str(case.per_node)} if case.per_node else {}
        run_ranks(case.world, train_tiny, self.config(case, output), **variables)
        plain = self.plain(case.model, case.precision, packing=case.packing, adapters=case.adapters)
        steps = read_records(output, "step")
        (evaluation,) = read_records(output, "evaluation")
        losses = [step["loss"] for step in steps] + [evaluation["loss"]]
        norms = [step["grad_norm"] for step in steps]
        if case.adapters:
            weights = load_file(output / "adapter" / WEIGHTS_FILE)
        else:
            exported: Any = AutoModelForCausalLM.from_pretrained(output / "model", dtype=torch.float32)
            weights = dict(exported.named_parameters())
        assert weights.keys() == plain.weights.keys()
        return Difference(
            max(abs(a - b) for a, b in zip(losses, [*plain.losses, plain.evaluation], strict=True)),
            max(abs(a - b) / b for a, b in zip(norms, plain.norms, strict=True)),
            max(float((weights[name].detach() - w).abs().max()) for name, w in plain.weights.items()) / LR,
        )


def _train_plainly(config: TrainConfig) -> Trained:
    data = load_data(config.data, Path(config.data.dataset).parent / "cache")
    batching: dict[str, Any] = {
        "seq_len": config.data.seq_len,
        "global_batch": config.global_batch,
        "dp_rank": 0,
        "dp": 1,
        "packing": config.data.packing,
        "pad_id": data.pad_id,
    }
    with Loader(data.train, **batching, seed=config.data.seed) as loader:
        batches = [next(loader) for _ in range(config.num_steps)]
    return train_plainly(
        Path(config.model),
        batches,
        list(evaluation_batches(data.evaluation, **batching)),
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        clip_norm=CLIP_NORM,
        dtype=torch.float32 if config.precision == "fp32" else torch.bfloat16,
        adapter=Path(config.start_adapter) if config.start_adapter else None,
    )
