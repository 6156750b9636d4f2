"""What the trainer's own loop adds: its step beside that of a plain Hugging Face loop and of `transformers.Trainer`.

One process, one model, the same rows in the same order, the same precision and optimizer; the three take turns of a few
steps, so that a machine whose speed drifts slows them alike, and the ratios of a turn are what counts. `make overhead`.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from estimator.work.plan import Plan
from hardware.smi.jobs import Job, publish
from trainer.config import TrainConfig
from trainer.data.dataset import Data, DataConfig, load_data
from trainer.data.loader import Batch, Loader
from trainer.display import Reporter
from trainer.jobs.stop import Stop
from trainer.measure import Stopwatch
from trainer.parallel.mesh import World, local_device, start_processes
from trainer.parallel.optimizer import OptimizerConfig
from trainer.source import ModelSource, config_of
from trainer.train import Run, take_step

STEPS = 5
"""Of a turn, the first not counted: the caches are another's."""

CLIP_NORM = 1.0

Turn = Callable[[], list[float]]
"""Takes `STEPS` steps, and returns the seconds of each."""


def unshifted(batch: Batch) -> dict[str, torch.Tensor]:
    """Return a batch as Hugging Face models take it: labels at the place of the token that they are."""
    labels = torch.full(batch.labels_BT.shape, -100)
    labels[:, 1:] = torch.from_numpy(batch.labels_BT)[:, :-1]
    return {"input_ids": torch.from_numpy(batch.input_ids_BT), "labels": labels}


def plain_turns(
    source: ModelSource, rows: list[dict[str, torch.Tensor]], dtype: torch.dtype, device: torch.device
) -> Turn:
    """Return turns of the loop that every tutorial has."""
    model = AutoModelForCausalLM.from_config(source.config, dtype=dtype).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    batch_of = iter(rows * 1000)

    def turn() -> list[float]:
        seconds = []
        for _ in range(STEPS):
            begun = time.perf_counter()
            batch = {name: tensor.to(device) for name, tensor in next(batch_of).items()}
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            seconds.append(time.perf_counter() - begun)
        return seconds

    return turn


def library_turns(source: ModelSource, rows: list[dict[str, torch.Tensor]], dtype: torch.dtype, folder: Path) -> Turn:
    """Return turns of `transformers.Trainer`, each a short run of its own on the same model."""
    ends: list[float] = []

    class Ends(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    each = [{name: tensor[i] for name, tensor in batch.items()} for batch in rows for i in range(len(batch["labels"]))]
    model = AutoModelForCausalLM.from_config(source.config, dtype=dtype)
    arguments = TrainingArguments(
        output_dir=str(folder / "library"),
        per_device_train_batch_size=len(rows[0]["labels"]),
        max_steps=STEPS + 1,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=CLIP_NORM,
        optim="adamw_torch_fused",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )

    def turn() -> list[float]:
        ends.clear()
        Trainer(model=model, args=arguments, train_dataset=each, callbacks=[Ends()]).train()
        return [after - before for before, after in pairwise(ends)]

    return turn


def own_turns(config: TrainConfig, source: ModelSource, data: Data, device: torch.device) -> Turn:
    """Return turns of the trainer's own loop: its data, its measuring, its log and all."""
    run = Run(config, source, data, World(), device)
    watch, stop = Stopwatch(device), Stop()
    reporter = Reporter(config.output, run.record(), run.num_steps, 0, None, is_main=True)
    job = publish(Job(job_id="overhead", rank=0, local_device=None, flavor="here", process="overhead", total_steps=1))

    def turn() -> list[float]:
        watch.end_step()
        before = len(reporter.seconds)
        for _ in range(STEPS):
            take_step(run, watch, stop, reporter, job)
        return reporter.seconds[before:]

    return turn


def model_of(given: argparse.Namespace) -> ModelSource:
    """Return a Mistral of the sizes asked for."""
    sizes = {
        "model_type": "mistral",
        "vocab_size": 4096,
        "hidden_size": given.hidden,
        "intermediate_size": 3 * given.hidden,
        "num_hidden_layers": given.layers,
        "num_attention_heads": given.hidden // 64,
        "num_key_value_heads": max(given.hidden // 128, 1),
        "sliding_window": None,
    }
    return ModelSource("benchmark", config_of(sizes, "benchmark"), None)


def all_turns(given: argparse.Namespace, folder: Path) -> dict[str, Turn]:
    """Return the turns of the three, on the same rows."""
    data = load_data(DataConfig(seq_len=given.seq_len))
    source, device = model_of(given), local_device(World())
    start_processes(World(), device)
    config = TrainConfig(
        data=DataConfig(seq_len=given.seq_len),
        plan=Plan(batch_per_device=given.batch),
        optimizer=OptimizerConfig(lr=1e-4, clip_norm=CLIP_NORM),
        global_batch=given.batch,
        num_steps=10**6,
        precision=given.precision,
        output=folder,
    )
    with Loader(
        data.train, seq_len=given.seq_len, global_batch=given.batch, dp_rank=0, dp=1, seed=0, packing=False, pad_id=0
    ) as loader:
        rows = [unshifted(next(loader)) for _ in range(STEPS + 1)]
    dtype = torch.float32 if given.precision == "fp32" else torch.bfloat16
    return {
        "plain loop": plain_turns(source, rows, dtype, device),
        "transformers.Trainer": library_turns(source, rows, dtype, folder),
        "train": own_turns(config, source, data, device),
    }


def main() -> None:
    """Print the seconds of a step of each, and the ratios of a turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("turns", 8), ("hidden", 256), ("layers", 6), ("seq-len", 256), ("batch", 4)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    given = parser.parse_args()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        turns = all_turns(given, Path(folder))
        found: dict[str, list[float]] = {kind: [] for kind in turns}
        for _ in range(given.turns):
            for kind, turn in turns.items():
                found[kind].append(statistics.median(turn()[1:]))
    for kind, seconds in found.items():
        ratios = sorted(own / other for own, other in zip(found["train"], seconds, strict=True))
        spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"{kind:<22} {statistics.median(seconds):8.3f} s a step; train takes {spread} of it")
    sys.stdout.flush()
    os._exit(0)  # as `trainer.rank.leave` does


if __name__ == "__main__":
    main()
