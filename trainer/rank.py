"""A rank from its first line to its last: what it trains, what it says at the end, and how it fails."""

import os
import sys

import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException  # is no Exception: it would pass by

from estimator.predict.evaluate import PlanEstimate
from estimator.predict.interval import Range
from hardware.units import MIB
from trainer.config import CHECKPOINT_FOLDER, MODEL_FOLDER, TrainConfig
from trainer.display import clear_terminal, spoken, steady
from trainer.jobs.fault import Fault, fault_of, is_interrupt, report
from trainer.jobs.status import DONE, INTERRUPTED, STOPPED
from trainer.measure import read_records
from trainer.parallel.mesh import World, is_launched
from trainer.prepare import Work
from trainer.sample import sample
from trainer.train import Outcome, train

INSTRUCTION = "Return the absolute path of a file."
"""What a tiny model is asked at its end."""


def run_rank(config: TrainConfig, work: Work, forecast: PlanEstimate | None) -> int:
    """Train as one rank, and return its exit status; a failure is one line, its traceback a file of the run's folder.

    Among several ranks a failure ends the process at once: the others answer no farewell any more.
    """
    try:
        return _run(config, work, forecast)
    except (Exception, KeyboardInterrupt, CheckpointException) as error:  # noqa: BLE001 - all ranks end for it
        rank = World.from_environment().rank
        fault = interrupted(config) if is_interrupt(error) else fault_of(error, rank, config.output)
    clear_terminal()
    report(fault)
    if not is_launched():
        return fault.status
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(fault.status)


def interrupted(config: TrainConfig) -> Fault:
    """Return what Ctrl-C twice leaves: the checkpoint before, and no one of the step under way."""
    folder = config.output / CHECKPOINT_FOLDER
    whole = sorted(path.name for path in folder.glob("step-*")) if folder.is_dir() else []
    how = f"go on from {whole[-1]} with --resume auto --output {config.output}" if whole else "there is no checkpoint"
    return Fault(f"interrupted: the steps since the last checkpoint are not saved; {how}", INTERRUPTED)


def _run(config: TrainConfig, work: Work, forecast: PlanEstimate | None) -> int:
    outcome = train(config, work.source, work.data, forecast)
    if dist.get_rank() == 0:
        for line in summary(config, outcome, forecast):
            print(line)
        models = [folder for folder in outcome.exported if folder.name == MODEL_FOLDER]
        if models and not config.model:
            print(f"\n{INSTRUCTION}\n{sample(models[0], INSTRUCTION)}")
    return DONE if outcome.steps == outcome.num_steps else STOPPED


def summary(config: TrainConfig, outcome: Outcome, forecast: PlanEstimate | None) -> list[str]:
    """Return what a run came to, beside what was predicted of it."""
    steps = read_records(config.output, "step")
    lines = []
    if steps:
        first, last = steps[0], steps[-1]
        each = [step["step_s"] for step in steps]
        done = f"{outcome.steps} of {outcome.num_steps} steps in {spoken(sum(each))}"
        pace = f"step {steady(each):.3g} s, {last['tokens'] / steady(each):,.0f} tokens/s"
        held = f"fullest device {last['peak_reserved_bytes'] / MIB:,.0f} MiB"
        lines = [
            f"{done}: loss {first['loss']:.3f} to {last['loss']:.3f}",
            pace + _predicted(forecast.step_s if forecast else None, 1.0, "s"),
            held + _predicted(forecast.memory.per_device_bytes if forecast else None, 1 / MIB, "MiB"),
        ]
    if outcome.steps < outcome.num_steps:
        lines.append(f"stopped after step {outcome.steps}; go on with --resume auto --output {config.output}")
    written = ["steps.jsonl", "train.log", "loss.png", *(folder.name for folder in outcome.exported)]
    lines.append(f"written to {config.output}: {', '.join(written)}")
    return lines


def _predicted(value: Range | None, scale: float, unit: str) -> str:
    if value is None:
        return ""
    low, middle, high = (
        f"{scale * part:,.3g}" if unit == "s" else f"{scale * part:,.0f}"
        for part in (value.low, value.value, value.high)
    )
    return f" (predicted {middle} {unit}, {low} to {high})"


def leave(status: int) -> None:
    """End the process group, if there is one, and this process.

    Threads of FSDP over gloo sometimes abort the interpreter's own end, after all work is done.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
