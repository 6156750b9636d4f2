"""The command `train`: parse, prepare, then run as this process, start several, or write what a cluster starts."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from estimator.formulas.inputs import step_inputs
from estimator.formulas.machine import Machine
from estimator.predict.evaluate import PlanEstimate
from estimator.stack.recipe import Recipe
from estimator.stack.stack import Stack, load_stack
from estimator.work.defaults import SEED_BATCH, SEED_EPOCHS, SEED_MODEL, SEED_ROWS, SEED_SEQ_LEN
from estimator.work.workload import Workload, num_steps
from hardware.catalog import Catalog, load_catalog
from hardware.command import EXIT_DONE, open_console, print_json, run_command
from hardware.errors import shown, unknown_name
from hardware.models import Flavor
from hardware.smi.selection import current_flavor
from trainer.config import ATTENTIONS, PRECISIONS, TrainConfig
from trainer.data.dataset import DataConfig
from trainer.inspection import inspect_folder, print_inspected
from trainer.jobs.emit import KINDS, emit
from trainer.jobs.fault import Fault, is_heard, report
from trainer.jobs.interval import checkpoint_steps
from trainer.jobs.launch import launch
from trainer.jobs.local import local_machine, machine_text, num_accelerators
from trainer.jobs.lock import held, refuse_held
from trainer.jobs.status import BAD_INPUT
from trainer.parallel.adapter_files import read_adapter_config
from trainer.parallel.adapters import ALL_LINEAR, AdapterConfig, parse_targets
from trainer.parallel.mesh import World, is_launched, local_device
from trainer.parallel.optimizer import DECAYS, OptimizerConfig
from trainer.prepare import (
    Work,
    check_output,
    check_room,
    choose_plan,
    find_work,
    recipe_of,
    trainable_shape,
    write_machine,
)
from trainer.rank import leave, run_rank
from trainer.resume import find_continued
from trainer.source import ModelSource, find_config

TINY = {"seq_len": 512, "batch": 8, "steps": 120, "lr": 1e-3, "warmup_steps": 10, "eval_rows": 32}
"""What a run without a model does, unless told otherwise: a few minutes on two cores."""

DRY_RUN_TORCH = "2.13"
"""The version whose private names `trainer.look_ahead` uses; training itself needs none of them."""

SEED = {"seq_len": SEED_SEQ_LEN, "batch": SEED_BATCH, "steps": 0, "lr": 2e-6, "warmup_steps": 0, "eval_rows": 0}
"""What a fine-tune does, unless told otherwise: as the seed run."""

EXIT_OFF = 1
"""Status of a verification that does not hold, and of a checkpoint that is not whole."""

train_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main() -> None:
    """Run `train`, as a person's command or as one of the ranks that a launcher starts."""
    leave(run_command(train_app, "train", sys.argv[1:]))


@train_app.command()
def train_command(
    model: Annotated[str, typer.Option(help="folder, hub id, or config.json  [default: a tiny Mistral]")] = "",
    dataset: Annotated[str, typer.Option(help=".jsonl, .parquet, folder or hub id  [default: embedded]")] = "",
    tokenizer: Annotated[str, typer.Option(help="folder or hub id  [default: the model's, or the embedded]")] = "",
    plan: Annotated[str, typer.Option(help="'best', or a plan such as num_stages=2,num_micro_batches=16")] = "best",
    nproc: Annotated[int | None, typer.Option(help="processes, one per device  [default: all accelerators]")] = None,
    max_restarts: Annotated[int, typer.Option(help="times that ranks which failed begin again at a checkpoint")] = 0,
    flavor: Annotated[str | None, typer.Option(help="name of a flavor; it must be what is here")] = None,
    seq_len: Annotated[int | None, typer.Option(help="tokens per row  [default: 2048; tiny: 512]")] = None,
    batch: Annotated[int | None, typer.Option(help="rows per step, over all devices  [default: 256; tiny: 8]")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the rows  [default: 2]")] = None,
    steps: Annotated[int | None, typer.Option(help="steps, instead of epochs  [tiny: 120]")] = None,
    packing: Annotated[bool, typer.Option(help="put several rows into one; else pad each")] = False,
    mask_prompt: Annotated[bool, typer.Option(help="no loss on prompts")] = False,
    truncate: Annotated[bool, typer.Option(help="cut rows that are too long; else refuse them")] = False,
    precision: Annotated[str | None, typer.Option(help=f"{', '.join(PRECISIONS)}  [default: by device]")] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate  [default: 2e-6; tiny: 1e-3]")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="steps of a rising rate  [default: 0; tiny: 10]")] = None,
    decay: Annotated[str, typer.Option(help=f"of the rate: {', '.join(DECAYS)}")] = DECAYS[0],
    weight_decay: Annotated[float, typer.Option(help="of AdamW")] = 0.0,
    clip_norm: Annotated[float, typer.Option(help="most that the gradient's norm may be; 0 does not clip")] = 0.0,
    lora: Annotated[int, typer.Option(help="rank of adapters, all else frozen; 0 trains all weights")] = 0,
    lora_alpha: Annotated[float | None, typer.Option(help="their scale times their rank  [default: 2 x rank]")] = None,
    lora_targets: Annotated[
        str | None, typer.Option(help="modules such as q_proj,v_proj  [default: all-linear, all seven of a layer]")
    ] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="share of their inputs left out  [default: 0]")] = None,
    adapter: Annotated[str, typer.Option(help="folder of adapters to begin with, as peft writes it")] = "",
    merge: Annotated[bool, typer.Option(help="write the model with its adapters merged too")] = False,
    attention: Annotated[str, typer.Option(help=f"{', '.join(ATTENTIONS)}")] = ATTENTIONS[0],
    compiles: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="compile each layer  [default: on accelerators]")
    ] = None,
    seed: Annotated[int, typer.Option(help="of random weights and of the rows' order")] = 0,
    eval_rows: Annotated[int | None, typer.Option(help="rows held out  [default: 0; tiny: 32]")] = None,
    eval_every: Annotated[int, typer.Option(help="steps between evaluations; 0 for the end alone")] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="steps between checkpoints; 0 for none but on a stop")] = 0,
    keep: Annotated[int, typer.Option(help="checkpoints kept")] = 2,
    keep_best: Annotated[bool, typer.Option(help="keep the one of the least loss on held-out rows too")] = False,
    async_save: Annotated[bool, typer.Option(help="write checkpoints while training goes on")] = True,
    final_checkpoint: Annotated[bool, typer.Option(help="write one before the export")] = True,
    inspect: Annotated[Path | None, typer.Option(help="print what checkpoints hold, and if they are whole")] = None,
    resume: Annotated[str, typer.Option(help="'auto' for the newest checkpoint of --output, or its folder")] = "",
    passed_over: Annotated[str | None, typer.Option(hidden=True)] = None,  # ranks are told what was verified for them
    output: Annotated[Path | None, typer.Option(help="folder of the run  [default: runs/ and the time]")] = None,
    hang_timeout: Annotated[
        float, typer.Option(help="seconds without progress that end a run; 0: 120, or 10 steps if that is longer")
    ] = 0.0,
    export: Annotated[bool, typer.Option(help="write a Hugging Face checkpoint at the end")] = True,
    stack: Annotated[str, typer.Option(help="stack of the forecast, or its TOML file")] = "reference",
    catalog: Annotated[list[Path] | None, typer.Option(help="TOML file of further hardware; may be repeated")] = None,
    job_file: Annotated[str | None, typer.Option("--emit", help=f"print a job file: {', '.join(KINDS)}")] = None,
    dry_run: Annotated[bool, typer.Option(help="one step under fake tensors: memory, without a device")] = False,
    rank: Annotated[int | None, typer.Option(help="rank of the dry run  [default: one of each stage]")] = None,
    verify: Annotated[bool, typer.Option(help="hold the dry run against the formulas; status 1 if one is off")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="of --verify: print one JSON object and nothing else")
    ] = False,
) -> int:
    """Train a causal language model under a plan, every step measured."""
    if inspect is not None:
        return _inspect(inspect)
    is_elsewhere = dry_run or job_file is not None
    given = {"seq_len": seq_len, "batch": batch, "steps": steps, "lr": lr}
    given |= {"warmup_steps": warmup_steps, "eval_rows": eval_rows}
    usual = SEED if model or is_elsewhere else TINY
    value: dict[str, Any] = {name: usual[name] if told is None else told for name, told in given.items()}
    device = "cuda" if is_elsewhere else local_device(World()).type
    config = TrainConfig(
        model=model,
        data=DataConfig(
            dataset=dataset,
            tokenizer=tokenizer or ("" if model.endswith(".json") else model),
            seq_len=value["seq_len"],
            packing=packing,
            mask_prompt=mask_prompt,
            truncate=truncate,
            seed=seed,
            eval_rows=value["eval_rows"],
        ),
        optimizer=OptimizerConfig(
            lr=value["lr"],
            warmup_steps=value["warmup_steps"],
            decay=decay,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
        ),
        adapters=_adapters(lora, lora_alpha, lora_targets, lora_dropout, adapter),
        start_adapter=adapter,
        merges=merge,
        global_batch=value["batch"],
        epochs=SEED_EPOCHS if epochs is None else epochs,
        num_steps=0 if steps is None and epochs is not None else value["steps"],
        precision=precision or ("bf16-mixed" if device == "cuda" else "fp32"),
        attention=attention,
        seed=seed,
        output=output or Path("runs") / time.strftime("%Y-%m-%d-%H%M%S"),
        resume=resume,
        checkpoint_every=checkpoint_every,
        keep=keep,
        keep_best=keep_best,
        async_save=async_save,
        final_checkpoint=final_checkpoint,
        passed_over=passed_over,
        eval_every=eval_every,
        hang_timeout_s=hang_timeout,
        exports=export,
    )
    asked = _Asked(config, plan, flavor, load_stack(stack), load_catalog(catalog or []), compiles)
    if (verify and not dry_run) or (as_json and not verify):
        raise ValueError("verify: it holds a dry run against the formulas, --json prints it; give --dry-run --verify")
    if dry_run:
        return _dry_run(asked, rank, verifies=verify, as_json=as_json)
    if job_file is not None:
        return _print_job_file(asked, job_file)
    try:
        return _train(asked, nproc, max_restarts)
    except ValueError as error:
        if not is_heard():
            raise
        report(Fault(str(error), BAD_INPUT))  # once, not by every rank
        return BAD_INPUT


def _inspect(folder: Path) -> int:
    """Print what checkpoints hold, and say in the status whether each is whole."""
    found = inspect_folder(folder)
    print_inspected(open_console(), found)
    return EXIT_OFF if any(one.damage for one in found) else EXIT_DONE


def _adapters(
    rank: int, alpha: float | None, targets: str | None, dropout: float | None, folder: str
) -> AdapterConfig | None:
    """Return the adapters of a run, which its options say or a folder does."""
    told = {"lora-alpha": alpha, "lora-targets": targets, "lora-dropout": dropout}
    given = [name for name, value in told.items() if value is not None]
    if folder:
        if rank or given:
            raise ValueError(f"adapter: {shown(folder, 200)} says all of its adapters; leave out the options --lora...")
        return read_adapter_config(Path(folder))
    if not rank:
        if given:
            raise ValueError(
                f"{given[0]}: {shown(told[given[0]])} is of adapters, but no rank is given; add --lora RANK"
            )
        return None
    names = parse_targets(ALL_LINEAR if targets is None else targets)
    return AdapterConfig(rank, 2.0 * rank if alpha is None else alpha, names, dropout or 0.0)


class _Asked(NamedTuple):
    """What is asked for, before a plan is chosen."""

    config: TrainConfig
    plan: str
    flavor: str | None
    stack: Stack
    hardware: Catalog
    compiles: bool | None
    """None compiles where it can: on accelerators, but for a schedule that splits backward passes."""


def _train(asked: _Asked, nproc: int | None, max_restarts: int) -> int:
    """Prepare a run, and train as this rank, or start the ranks."""
    if nproc is not None and nproc < 1:
        raise ValueError(f"nproc: {nproc} is no number of processes; give 1 or more")
    if max_restarts < 0:
        raise ValueError(f"max-restarts: {max_restarts} is no number of times; give 0 or more")
    if not is_launched():
        refuse_held(asked.config.output)  # a rank finds it held when it takes it
    count = nproc or max(num_accelerators(), 1)
    world = World.from_environment() if is_launched() else World(size=count, local_size=count)
    hardware, flavor = local_machine(world, asked.hardware, asked.flavor, local_device(world))
    if is_launched() and asked.plan == "best" and machine_text(hardware, flavor):
        raise ValueError(
            "plan: ranks that each measured their processor may choose differently; give the --plan itself"
        )
    work = find_work(asked.config)
    config, continued = _continued(replace(asked.config, num_steps=work.workload.num_steps), work)
    compiles = num_accelerators() > 0 if asked.compiles is None else asked.compiles
    stack = recipe_of(asked.config, compiles=compiles).stack(asked.stack, work.workload.shape)
    plan, forecast = choose_plan(asked.plan, work.workload, flavor, stack, hardware, splits=config.can_split)
    config = replace(
        config,
        plan=plan,
        compiles=compiles and (asked.compiles is not None or plan.schedule != "zero_bubble"),
        flavor=flavor.id,
        accelerator=hardware.node(flavor.node).accelerator,
        stack=stack.name,
    )
    exact = ["--plan", str(plan), "--output", str(config.output)]
    if world.rank == 0:
        check_room(config, work)
        check_output(config)
        if measured := machine_text(hardware, flavor):
            exact += ["--catalog", str(write_machine(config, measured))]
    if (world.size > 1 or max_restarts) and not is_launched():
        words = [*sys.argv[1:], *exact]
        again = [*words, "--resume", "auto"]  # whatever it continued first: the newest then
        return launch(world.size, [*words, *continued], again=again, restarts=max_restarts)
    with held(config.output) if world.rank == 0 else nullcontext():
        return run_rank(config, work, forecast)


def _continued(config: TrainConfig, work: Work) -> tuple[TrainConfig, list[str]]:
    """Return a run with the checkpoint that it continues from, verified before any rank starts; and the ranks' options.

    Of options given twice, the last counts. Ranks that another launcher has started verify it themselves.
    """
    found = None if is_launched() else find_continued(config, work.data.train, work.source)
    if found is None:
        return config, []
    options = ["--resume", str(found.path), "--passed-over", found.passed_over]
    return replace(config, resume=str(found.path), passed_over=found.passed_over), options


class _Elsewhere(NamedTuple):
    """A run that is not started here: nothing of this machine, of the rows or of the weights is looked at."""

    config: TrainConfig
    source: ModelSource
    flavor: Flavor
    workload: Workload
    stack: Stack
    forecast: PlanEstimate


def _elsewhere(asked: _Asked) -> _Elsewhere:
    source = find_config(asked.config.model or SEED_MODEL)
    flavor = asked.hardware.flavor(asked.flavor) if asked.flavor else current_flavor().record(asked.hardware)
    config = asked.config
    rows = num_steps(SEED_ROWS, config.epochs, config.global_batch)
    recipe = recipe_of(config, compiles=asked.compiles)
    shape = recipe.shape(trainable_shape(source))
    workload = Workload(shape, config.data.seq_len, config.global_batch, config.num_steps or rows)
    stack = recipe.stack(asked.stack, shape)
    plan, forecast = choose_plan(asked.plan, workload, flavor, stack, asked.hardware, splits=config.can_split)
    compiles = plan.schedule != "zero_bubble" if asked.compiles is None else asked.compiles
    return _Elsewhere(replace(config, plan=plan, compiles=compiles), source, flavor, workload, stack, forecast)


def _dry_run(asked: _Asked, rank: int | None, *, verifies: bool, as_json: bool) -> int:
    """Print what a rank of each kind of stage holds at its peak, beside what the estimator says."""
    try:  # private names of torch, which other versions lack: nothing else may depend on them
        from trainer.look_ahead.dry_run import check_dry_run, dry_runs, stage_ranks  # noqa: PLC0415
        from trainer.look_ahead.dry_run_report import (  # noqa: PLC0415
            print_dry_run,
            print_verified,
            verified_document,
        )
        from trainer.look_ahead.verify import verify  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(
            f"dry-run: torch {torch.__version__} lacks what it follows inside torch ({shown(str(error), 120)}); "
            f"install torch {DRY_RUN_TORCH}"
        ) from error
    found = _elsewhere(asked)
    world = found.flavor.num_devices
    check_dry_run(found.config, world, rank)
    runs = dry_runs(
        found.config,
        found.source.config,
        world_size=world,
        local_size=asked.hardware.node(found.flavor.node).num_devices,
        ranks=stage_ranks(found.config.plan, world) if rank is None else [rank],
    )
    if not verifies:
        print_dry_run(open_console(), runs, found.forecast)
        return EXIT_DONE
    machine, habits = Machine.of(asked.hardware, found.flavor), found.stack.habits
    habits = Recipe(compiles=found.config.compiles).habits(habits, found.workload.shape)
    stages = verify(runs, step_inputs(found.config.plan, found.workload, machine, habits))
    if as_json:
        print_json(verified_document(stages))
    else:
        print_verified(open_console(), stages)
    return EXIT_DONE if all(stage.holds for stage in stages) else EXIT_OFF


def _without(words: Sequence[str], options: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command line without some options and their values.

    >>> list(_without(["--emit", "slurm", "--lr=1", "--plan=best"], ("--emit", "--plan")))
    ['--lr=1']
    """
    is_value = False
    for word in words:
        name = word.partition("=")[0]
        if not is_value and name not in options:
            yield word
        is_value = not is_value and word in options


def _print_job_file(asked: _Asked, kind: str) -> int:
    """Print the job file that runs the asked for plan on a flavor."""
    if kind not in KINDS:
        raise ValueError(unknown_name("kind of job file", kind, KINDS))
    found = _elsewhere(asked)
    exact = ["--model", asked.config.model or SEED_MODEL, "--plan", str(found.config.plan)]
    words = [*_without(sys.argv[1:], ("--emit", "--model", "--plan")), *exact]
    machine = Machine.of(asked.hardware, found.flavor)
    every = checkpoint_steps(found.workload, machine, found.stack, found.forecast.step_s.value)
    print(emit(kind, found.flavor, asked.hardware, words, checkpoint_every=every), end="")
    return EXIT_DONE
