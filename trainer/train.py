"""The loop: one step after another, each measured; whole here, from the process group to the exported model."""

import gc
import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException  # is no Exception: it would pass by

from estimator.predict.evaluate import PlanEstimate
from hardware.smi.jobs import Job, PublishedJob, publish
from trainer.build import build_stages
from trainer.config import ADAPTER_FOLDER, CHECKPOINT_FOLDER, MODEL_FOLDER, TrainConfig
from trainer.data.dataset import Data
from trainer.data.loader import Batch, Loader, evaluation_batches
from trainer.display import Reporter
from trainer.divergence import Divergence
from trainer.jobs.fault import refusing
from trainer.jobs.hang import Hang
from trainer.jobs.stop import Stop
from trainer.measure import Step, Stopwatch, gather, peak_memory
from trainer.parallel.adapter_files import export_adapter, load_adapter, merge_adapters
from trainer.parallel.checkpoint import damage, load_checkpoint, read_state
from trainer.parallel.mesh import World, local_device, make_place, start_processes
from trainer.parallel.optimizer import clip_gradients, learning_rate, make_optimizers, set_rate, trained
from trainer.parallel.parallelize import chunks_loss, compute_dtype, export_dtype
from trainer.parallel.pipeline import Passes, Rows
from trainer.parallel.saving import Keeping, Saved, Saver
from trainer.parallel.together import TogetherError, reason, together
from trainer.parallel.weights import draw_weights, export_weights, load_weights
from trainer.resume import Changes, changes, find_continued, options_of, versions
from trainer.source import ModelSource

COLLECT_EVERY = 100
"""Steps between garbage collections, which all ranks make together: one rank's pause is everybody's."""


@dataclass(frozen=True)
class Continued:
    """What a run goes on from."""

    checkpoint: Path
    passed_over: str
    """Why newer ones are not taken."""
    changes: Changes

    def report(self, reporter: Reporter, step: int) -> None:
        """Say so, in one line and in the log."""
        said = (f"continued from {self.checkpoint.name}", self.passed_over, self.changes.line())
        values = {"checkpoint": str(self.checkpoint), "passed_over": self.passed_over, **asdict(self.changes)}
        reporter.continued(step, "; ".join(filter(None, said)), values)


class Run:
    """A rank's state of a run: model, optimizer, data, and the step reached."""

    def __init__(
        self, config: TrainConfig, source: ModelSource, data: Data, world: World, device: torch.device
    ) -> None:
        """Build everything, and fill it from a checkpoint, a pretrained model, or the seed."""
        self.config, self.source, self.data, self.world, self.device = config, source, data, world, device
        self.place = make_place(config.plan, world.size, world.local_size, device.type)
        self.stages = build_stages(source.config, config, self.place)
        for stage in self.stages:
            stage.materialize(device)
        self.optimizers = make_optimizers(self.stages, config.optimizer, compiles=config.compiles)
        self.loader = Loader(data.train, **self._batching(), seed=config.data.seed)
        self.num_steps = config.num_steps
        self.step = 0
        self.held_out: tuple[int, float] | None = None
        """The last step after which held-out rows were evaluated, and their mean loss."""
        self.continued: Continued | None = None
        self.group = dist.new_group(backend="gloo")  # of checkpoints alone, beside the collectives of training
        self.divergence = Divergence(source.config.vocab_size, config.num_steps)
        self._fill()
        keeping = Keeping(config.output / CHECKPOINT_FOLDER, config.keep, config.keep_best, config.async_save)
        self.saver = Saver(keeping, device, self.group, self.step)
        dtype, length = compute_dtype(config.precision), config.data.seq_len
        self.passes = Passes(self.stages, config.plan, self.place, seq_len=length, dtype=dtype, device=device)

    def _batching(self) -> dict[str, Any]:
        config = self.config
        return {
            "seq_len": config.data.seq_len,
            "global_batch": config.global_batch,
            "dp_rank": self.place.dp_rank,
            "dp": self.place.dp,
            "packing": config.data.packing,
            "pad_id": self.data.pad_id,
        }

    def _fill(self) -> None:
        found = find_continued(self.config, self.data.train, self.source, self._damage)
        if found is None:
            self._fill_anew()
            return
        state = read_state(found.path)
        self.loader.load_state_dict(state["loader"])
        if self.config.adapters:  # whose checkpoints hold no base
            self._fill_anew()
        load_checkpoint(found.path, self.stages, self.optimizers, self.device)
        self.step = int(state["step"])
        self.continued = Continued(found.path, found.passed_over, changes(self.config, state))

    def _fill_anew(self) -> None:
        if self.source.weights is None:
            draw_weights(self.stages, self.config.seed)
        else:
            load_weights(self.stages, self.source.weights)
            draw_weights(self.stages, self.config.seed, adapters_only=True)
        if self.config.start_adapter:
            load_adapter(self.stages, Path(self.config.start_adapter))

    def _damage(self, checkpoint: Path) -> str:
        """Return what is wrong with a checkpoint, of whose files each rank looks at a share; the same on all."""
        rank, size = self.world.rank, self.world.size
        found = together(lambda: damage(checkpoint, part=rank, parts=size), self.group)
        return next(filter(None, found), "")

    @property
    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """Trained parameters of this rank."""
        return (parameter for stage in self.stages for parameter in trained(stage))

    def to_device(self, batch: Batch) -> Rows:
        """Return a batch where the model is."""
        arrays = (batch.input_ids_BT, batch.labels_BT, batch.position_ids_BT)
        ids, labels, positions = (torch.from_numpy(array).to(self.device, non_blocking=True) for array in arrays)
        if not self.config.data.packing:
            return Rows(ids, labels, positions)
        return Rows(ids, labels, positions, tuple((batch.position_ids_BT == 0).sum(axis=1).tolist()))

    def update(self) -> tuple[Tensor, float]:
        """Clip, step, and clear the gradients; return their norm before clipping, and the rate."""
        rate = learning_rate(self.step, self.num_steps, self.config.optimizer)
        norm = clip_gradients(self.parameters, self.config.optimizer.clip_norm, self.optimizers)
        set_rate(self.optimizers, rate)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm, rate

    def begin_step(self) -> None:
        """Count the step, and let what it leaves out at random depend on its number, whatever went before."""
        self.step += 1
        if self.config.adapters and self.config.adapters.dropout:
            digest = hashlib.sha256(f"{self.config.seed} {self.world.rank} {self.step}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "big"))

    def evaluate(self) -> float:
        """Return the mean loss of the targets of the held-out rows."""
        total, targets = 0.0, 0
        for stage in self.stages:
            stage.eval()
        for batch in evaluation_batches(self.data.evaluation, **self._batching()):
            part = self.passes.evaluate(self.to_device(batch), num_targets=1)
            total += gather(part, stop=False, peak=peak_memory(self.device)).loss
            targets += batch.useful_tokens
        for stage in self.stages:
            stage.train()
        loss = total / max(targets, 1)
        self.held_out = self.step, loss
        return loss

    def save(self, *, waits: bool) -> None:
        """Write a checkpoint of the step done, while training goes on or before this returns."""
        held_out = self.held_out[1] if self.held_out and self.held_out[0] == self.step else None
        adapters = self.config.adapters
        state = {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "num_steps": self.num_steps,
            "held_out_loss": held_out,
            "loader": self.loader.state_dict(),
            "plan": str(self.config.plan),
            "num_devices": self.world.size,
            "stack": self.config.stack,
            "model": {"name": self.source.name, **self.source.config.to_dict()},
            "adapters": {"base": self.source.name, **adapters.document()} if adapters else None,
            "options": options_of(self.config),
            "versions": versions(),
        }
        self.saver.save(self.step, self.stages, self.optimizers, state, waits=waits)

    def export(self) -> list[Path]:
        """Write what was trained, and return the folders.

        They are adapters as peft's `from_pretrained` reads them, and the model as Hugging Face's does, its tokenizer
        beside it: where all weights are trained, or adapters are to be merged with it.
        """
        written, adapters = [], self.config.adapters
        if adapters:
            written.append(self.config.output / ADAPTER_FOLDER)
            is_here = self.source.weights is not None and Path(self.config.model).is_dir()
            base = str(Path(self.config.model).resolve()) if is_here else self.source.name
            export_adapter(self.stages, written[0], adapters, base)
            if self.config.merges:
                merge_adapters(self.stages)
        if not adapters or self.config.merges:
            written.append(self._export_model())
        return written

    def _export_model(self) -> Path:
        config, folder = self.source.config, self.config.output / MODEL_FOLDER
        dtype = export_dtype(config, self.config.precision)
        export_weights(self.stages, folder, dtype, beside=(config, self.data.tokenizer))
        return folder

    def record(self) -> dict[str, Any]:
        """Return the first record of the step log, as the contract has it, and what else decides its times."""
        config = self.config
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {
            "model": {"name": self.source.name, **self.source.config.to_dict()},
            "plan": config.plan.document(self.place.dp),
            "accelerator": config.accelerator or name,
            "device_name": name,
            "num_devices": self.world.size,
            "num_nodes": self.world.num_nodes,
            "threads_per_device": torch.get_num_threads(),
            "tokens_per_step": config.global_batch * config.data.seq_len,
            "global_batch": config.global_batch,
            "seq_len": config.data.seq_len,
            "packing": config.data.packing,
            "documents": "lengths" if self.stages[0].takes_lengths else "mask" if config.data.packing else "rows",
            "precision": config.precision,
            **{f"lora_{name}": told for name, told in (config.adapters.document() if config.adapters else {}).items()},
            "attention": config.attention,
            "compiled": config.compiles,
            "loss": "chunked" if chunks_loss(config.plan) else "whole",
            "versions": versions(),
        }


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    steps: int
    """Done, of this and earlier parts of the run."""
    num_steps: int
    exported: tuple[Path, ...]
    """Folders of the model and of adapters; none where the run was stopped before its end, or none could be written."""


def train(config: TrainConfig, source: ModelSource, data: Data, forecast: PlanEstimate | None = None) -> Outcome:
    """Train as one rank of a run, from the process group to the exported model.

    Args:
        config: the run; what cannot run was refused before.
        source: the model.
        data: the rows.
        forecast: what the estimator says of the plan, to hold the steps against.
    """
    world = World.from_environment()
    device, stop = local_device(world), Stop(says=world.rank == 0)
    job = publish(_as_job(config, world, device, forecast))
    start_processes(world, device)
    hang = Hang(world, config.output, config.hang_timeout_s)
    with refusing():
        run = Run(config, source, data, world, device)
    reporter = Reporter(config.output, run.record(), run.num_steps, run.step, forecast, is_main=world.rank == 0)
    if run.continued:
        run.continued.report(reporter, run.step)
    gc.collect()
    gc.disable()
    watch, asked = Stopwatch(device, hang.enter), False
    while run.step < run.num_steps and not asked:
        hang.step(run.step + 1)
        asked = take_step(run, watch, stop, reporter, job)
        with watch.phase("log"), stop.patient(), hang.patient():  # in the next step's seconds
            between_steps(run, reporter)
        if is_checkpoint_due(run, asked=asked):
            with watch.phase("save"), stop.patient(), hang.patient():
                save(run, reporter, waits=asked or run.step == run.num_steps)
        report_checkpoints(run, reporter)
    gc.enable()
    run.loader.close()
    hang.enter("export")
    with stop.patient():
        run.saver.close()
        report_checkpoints(run, reporter)
        exported = export(run, reporter) if config.exports and run.step == run.num_steps else ()
    reporter.close()
    job.close()
    hang.close()
    return Outcome(run.step, run.num_steps, tuple(exported))


def _as_job(config: TrainConfig, world: World, device: torch.device, forecast: PlanEstimate | None) -> Job:
    """Return what this rank says of itself to `smi`."""
    return Job(
        job_id=os.environ.get("TORCHELASTIC_RUN_ID", str(os.getpid())),
        rank=world.rank,
        local_device=device.index,
        flavor=config.flavor or device.type,
        process=" ".join(["train", *sys.argv[1:]])[:200],
        total_steps=config.num_steps,
        predicted_step_s=forecast.step_s.value if forecast else None,
        predicted_memory_bytes=forecast.memory.per_device_bytes.value if forecast else None,
    )


def take_step(run: Run, watch: Stopwatch, stop: Stop, reporter: Reporter, job: PublishedJob) -> bool:
    """Take one optimizer step and report it; return whether some rank was asked to stop."""
    run.begin_step()
    with watch.phase("data"):
        batch = next(run.loader)
        rows = run.to_device(batch)
    with watch.phase("compute"):
        part = run.passes.train(rows, max(batch.useful_tokens, 1))
    with watch.phase("optimizer"):
        norm, rate = run.update()
    with watch.phase("log"):
        stop.progress()
        peak = peak_memory(run.device)
        found = gather(part, stop=stop.asked or job.stop_requested, peak=peak)
    seconds, phases = watch.end_step()
    step = Step(
        step=run.step,
        loss=found.loss,
        grad_norm=float(norm),
        lr=rate,
        tokens=batch.tokens,
        useful_tokens=batch.useful_tokens,
        step_s=seconds,
        **{f"{name}_s": phase for name, phase in phases.items()},
        peak_allocated_bytes=max(found.allocated_bytes),
        peak_reserved_bytes=max(found.reserved_bytes),
        peak_allocated_bytes_by_rank=found.allocated_bytes,
        peak_reserved_bytes_by_rank=found.reserved_bytes,
    )
    reporter.step(step)
    job.update(step=run.step, step_s=seconds, memory_bytes=peak.reserved_bytes)
    try:
        run.divergence.see(step.step, step.loss, step.grad_norm)
    except FloatingPointError:
        run.saver.finish()  # what is under way is of weights that were good
        raise
    return found.stop


def between_steps(run: Run, reporter: Reporter) -> None:
    """Do what is due after a step: garbage collection, evaluation."""
    config, at_end = run.config, run.step == run.num_steps
    if run.step % COLLECT_EVERY == 0:
        gc.collect()
    is_due = at_end or (config.eval_every and run.step % config.eval_every == 0)
    if len(run.data.evaluation) and (is_due or (config.keep_best and is_checkpoint_due(run, asked=False))):
        reporter.evaluation(run.step, run.evaluate())


def is_checkpoint_due(run: Run, *, asked: bool) -> bool:
    """Whether a checkpoint of the step done is to be written: at intervals, when asked to stop, before the export."""
    config = run.config
    before_export = run.step == run.num_steps and config.exports and config.final_checkpoint
    return asked or before_export or bool(config.checkpoint_every and run.step % config.checkpoint_every == 0)


def save(run: Run, reporter: Reporter, *, waits: bool) -> None:
    """Begin a checkpoint, unless it would take the place of one that is good."""
    if run.divergence.is_suspect:
        reporter.say(f"[Step {run.step}/{run.num_steps}] | No checkpoint: the loss is worse than no knowledge")
        return
    reporter.sync()
    run.save(waits=waits)


def report_checkpoints(run: Run, reporter: Reporter) -> None:
    """Report what became of checkpoints since the last call. One that cannot be written ends no run."""
    for saved in run.saver.ended():
        reporter.checkpoint(saved.step, checkpoint_line(saved), asdict(saved))


def checkpoint_line(saved: Saved) -> str:
    """Return what became of a checkpoint, in words.

    >>> checkpoint_line(Saved(20, 31_000_000, 0.012, 0.4, ""))
    'Checkpoint: 31.0 MB in 0.40 s, of which training waited 0.012 s'
    >>> checkpoint_line(Saved(20, 0, 0.012, 0.4, "No space left on device"))
    'Checkpoint not written: No space left on device; the older ones stay, and training goes on'
    """
    if saved.problem:
        return f"Checkpoint not written: {saved.problem}; the older ones stay, and training goes on"
    return (
        f"Checkpoint: {saved.num_bytes / 1e6:,.1f} MB in {saved.write_s:.2f} s, of which training waited "
        f"{saved.stall_s:.3f} s"
    )


def export(run: Run, reporter: Reporter) -> Sequence[Path]:
    """Write what was trained, and return the folders; where it cannot be written, say so, and return none."""
    try:
        return run.export()
    except (TogetherError, CheckpointException) as error:
        line = f"Model not written: {reason(error)}; give it room, then --resume auto writes it"
        reporter.checkpoint(run.step, line, {"problem": reason(error)})
        return ()
