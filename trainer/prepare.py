"""Everything that is decided before the first process group: model, data, hardware, plan; and every refusal."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimator.api.flavors import why_nothing_fits
from estimator.formulas.counts import num_parameters, trained_parameters
from estimator.predict.evaluate import PlanEstimate
from estimator.search.planner import search
from estimator.stack.recipe import Recipe
from estimator.stack.stack import Stack
from estimator.work.plan import Plan, Plans, parse_plan
from estimator.work.rules import reasons
from estimator.work.shape import Shape, shape_from_config
from estimator.work.trainer_limits import untrainable_reason
from estimator.work.workload import Workload, num_steps
from hardware.catalog import Catalog
from hardware.errors import shown
from hardware.files import write_atomically
from hardware.models import Flavor
from trainer.config import CHECKPOINT_FOLDER, TrainConfig
from trainer.data.dataset import Data, load_data
from trainer.data.packing import Packing
from trainer.parallel.parallelize import export_dtype, weight_dtype
from trainer.parallel.room import bytes_in, free_bytes
from trainer.parallel.weights import WRITTEN_TIMES
from trainer.source import ModelSource, find_model


@dataclass(frozen=True)
class Work:
    """What is to be trained, before a plan says how."""

    source: ModelSource
    data: Data
    workload: Workload


def find_work(config: TrainConfig) -> Work:
    """Return the model, the rows and the steps of a run.

    Raises:
        ValueError: one of them cannot be used; which rule is broken, and the mend.
    """
    data = load_data(config.data)
    source = find_model(config.model, data.vocab_size)
    shape = recipe_of(config).shape(trainable_shape(source))
    packed = config.data.packing
    rows = len(Packing(data.train.lengths, config.data.seq_len if packed else None))
    if rows < config.global_batch:
        kind = "packed rows" if packed else "rows"
        raise ValueError(f"batch: {config.global_batch} rows are more than the {rows} {kind} there are; lower it")
    steps = config.num_steps or num_steps(rows, config.epochs, config.global_batch)
    return Work(source, data, Workload(shape, config.data.seq_len, config.global_batch, steps))


def recipe_of(config: TrainConfig, *, compiles: bool | None = None) -> Recipe:
    """Return how a run trains, as the estimator says it."""
    adapters = config.adapters
    own: dict[str, Any] = {}
    if adapters:
        own = {"lora_rank": adapters.rank, "lora_targets": adapters.shape_targets}
    return Recipe(precision=config.precision, compiles=compiles, **own)


def trainable_shape(source: ModelSource) -> Shape:
    """Return a model's shape.

    Raises:
        ValueError: the trainer cannot train such a model, whatever the plan.
    """
    dropout = getattr(source.config, "attention_dropout", 0.0)
    if dropout:
        raise ValueError(
            f"model: attention_dropout={dropout} of {shown(source.name)}; the trainer has none, set it to 0"
        )
    shape = shape_from_config(source.config.to_dict(), source.name)
    if reason := untrainable_reason(Plan(), shape):
        raise ValueError(f"model: {reason}")
    return shape


def choose_plan(
    text: str, workload: Workload, flavor: Flavor, stack: Stack, catalog: Catalog, *, splits: bool = True
) -> tuple[Plan, PlanEstimate]:
    """Return the plan of a run and what the estimator says of it.

    Args:
        text: a plan, or "best" for the fastest that fits and that the trainer can run.
        workload: the work.
        flavor: the devices.
        stack: the software, that is the trainer's own.
        catalog: where the flavor's hardware is.
        splits: the best may split layers between ranks (tensor parallelism).

    Raises:
        ValueError: the plan cannot run, or none fits.
    """
    if text != "best":
        plan = parse_plan(text)
        (reason,) = reasons(Plans.of([plan]), workload, flavor.num_devices)
        if reason := reason or untrainable_reason(plan, workload.shape):
            raise ValueError(f"plan: {reason}")
        return plan, search(workload, flavor, stack, catalog, plan=plan).plans[0]
    found = search(workload, flavor, stack, catalog, space="full", fixed=None if splits else {"tp": 1})
    best = next((p for p in found.plans if p.possible and not untrainable_reason(p.plan, workload.shape)), None)
    if best is None:
        raise ValueError(f"plan: {why_nothing_fits(found, catalog)}")
    return best.plan, best


COPIES = 3
"""Of each weight in a checkpoint: itself and the optimizer's two moments, of one type."""


def check_room(config: TrainConfig, work: Work) -> None:
    """Refuse a run whose checkpoints and model the disk has no room for, before it begins.

    One more checkpoint than are kept is there while it is written; those that are there already count as room.

    Raises:
        ValueError: there is less than they take.
    """
    shape = work.workload.shape
    checkpoint = COPIES * trained_parameters(shape) * weight_dtype(config.precision).itemsize
    before_export = config.exports and config.final_checkpoint
    count = config.keep + 1 + config.keep_best if config.checkpoint_every else int(before_export)
    is_whole = config.exports and (config.adapters is None or config.merges)
    exported = num_parameters(shape) * export_dtype(work.source.config, config.precision).itemsize if is_whole else 0
    needed = count * checkpoint + WRITTEN_TIMES * exported
    folder = config.output / CHECKPOINT_FOLDER
    free = free_bytes(folder) + (bytes_in(folder) if folder.is_dir() else 0)
    if needed > free:
        model = f" and {WRITTEN_TIMES} x an exported model of {exported / 1e9:,.3g} GB" if exported else ""
        raise ValueError(
            f"output: {count} x a checkpoint of {checkpoint / 1e9:,.3g} GB{model} are more than the "
            f"{max(free, 0) / 1e9:,.3g} GB free for {shown(str(config.output), 200)}; lower --keep, give "
            "--no-final-checkpoint or --no-export, or another --output"
        )


def check_output(config: TrainConfig) -> None:
    """Make the folder of a run.

    Raises:
        ValueError: it cannot be written to, or holds another run.
    """
    folder = config.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise ValueError(
            f"output: {shown(str(folder), 200)} cannot be made ({error.strerror}); give another"
        ) from error
    if not writable:
        raise ValueError(f"output: {shown(str(folder), 200)} is not writable; give another --output")
    if not config.resume and (folder / "steps.jsonl").exists():
        raise ValueError(
            f"output: {shown(str(folder), 200)} holds a run; continue it with --resume auto, or give another --output"
        )


def write_machine(config: TrainConfig, text: str) -> Path:
    """Write what was measured of this machine beside the step log, as a catalog file, and return its path.

    The log's readers need it, and so do the other ranks: the machine is measured once.
    """
    path = config.output / "machine.toml"
    write_atomically(path, text, durable=False)
    return path
