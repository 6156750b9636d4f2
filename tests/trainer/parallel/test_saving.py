"""Saving while training goes on: the same bytes, one at a time; and a disk that is full, which ends no run."""

import os
import re
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import trainer.parallel.saving
import trainer.train
from estimator.work.plan import parse_plan
from tests.support.ranks import Ranks, run_ranks
from tests.support.tiny import tiny_config, train_tiny
from trainer.config import TrainConfig
from trainer.measure import read_records
from trainer.parallel.checkpoint import checkpoints_in, damage, read_state, step_of
from trainer.parallel.metadata import Reader, read_metadata
from trainer.parallel.optimizer import OptimizerConfig

pytestmark = pytest.mark.slow

ALONE = "num_micro_batches=1,batch_per_device=8"
SHARDED = "num_micro_batches=1,batch_per_device=4,zero_stage=3"
SLOW_S = 1.5
"""How much longer a checkpoint is made to take; several steps."""


def configured(folder: Path, output: Path, plan: str = ALONE, **changes: Any) -> TrainConfig:
    """Return a run of six steps."""
    return tiny_config(folder, output, plan=parse_plan(plan), **({"num_steps": 6, "checkpoint_every": 2} | changes))


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint."""
    entries: dict[str, Any] = dict(read_metadata(checkpoint).state_dict_metadata)
    found = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    dcp.load(found, storage_reader=Reader(checkpoint), no_dist=True)
    return found


def slow(config: TrainConfig) -> list[tuple[str, int]]:
    """Train with writes that take many steps, and return when each began and ended, and when each step was taken."""
    seen: list[tuple[str, int]] = []
    write, take_step = trainer.parallel.saving.Saver._write, trainer.train.take_step  # noqa: SLF001 - it is slowed down

    def slowly(self: Any, partial: Path, state: Any, step: int, rest: Any) -> int:
        seen.append(("begins", step))
        time.sleep(SLOW_S)
        found = write(self, partial, state, step, rest)
        seen.append(("ends", step))
        return found

    def take(run: Any, *rest: Any) -> bool:
        asked = take_step(run, *rest)
        seen.append(("step", run.step))
        return asked

    trainer.parallel.saving.Saver._write = slowly  # type: ignore[method-assign]  # noqa: SLF001
    trainer.train.take_step = take
    train_tiny(config)
    return seen


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("plan", "world"), [(ALONE, 1), (SHARDED, 2)])
def test_a_step_taken_meanwhile_changes_nothing(folder: Path, tmp_path: Path, plan: str, world: int) -> None:
    """What is written while later steps are taken is what it was when it was begun; one at most is under way."""
    changes = {"keep": 5, "exports": False}
    seen, *_ = run_ranks(world, slow, configured(folder, tmp_path / "beside", plan, **changes))
    run_ranks(world, train_tiny, configured(folder, tmp_path / "alone", plan, async_save=False, **changes))
    assert seen.index(("begins", 2)) < seen.index(("step", 3)) < seen.index(("ends", 2)) < seen.index(("begins", 4))
    for beside, alone in zip(
        *(checkpoints_in(tmp_path / name / "checkpoints") for name in ("beside", "alone")), strict=True
    ):
        assert damage(beside) == ""
        first, second = tensors(beside), tensors(alone)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first if not name.startswith("random"))


def test_a_save_is_in_the_step_log(folder: Path, tmp_path: Path) -> None:
    """What a checkpoint held a step up is in the next step's record, and what became of it in a record of its own."""
    (rank,) = Ranks(1, train_tiny, configured(folder, tmp_path, async_save=False)).end()
    waited = {step["step"]: step["save_s"] for step in read_records(tmp_path, "step")}
    records = read_records(tmp_path, "checkpoint")
    assert [step for step, seconds in waited.items() if seconds] == [3, 5]
    assert [(record["step"], record["problem"]) for record in records] == [(2, ""), (4, ""), (6, "")]
    for record in records[:2]:
        assert record["stall_s"] <= waited[record["step"] + 1] <= record["stall_s"] + 1  # the log goes to the disk too
        assert record["num_bytes"] > 10**6
    assert rank.output.count("| Checkpoint: ") == 3


def full_disk(config: TrainConfig) -> None:
    """Train on a disk that has no room any more after the third step."""
    take_step, statvfs = trainer.train.take_step, os.statvfs

    def none_free(path: Any) -> os.statvfs_result:
        found = list(statvfs(path))
        found[3] = found[4] = 0
        return os.statvfs_result(found)

    def take(run: Any, *rest: Any) -> bool:
        if run.step == 3:
            run.saver.finish()
            os.statvfs = none_free
        return take_step(run, *rest)

    trainer.train.take_step = take
    train_tiny(config)


def refused_writes(config: TrainConfig) -> None:
    """Train in a last rank that can write no large file any more after the third step."""
    take_step = trainer.train.take_step

    def take(run: Any, *rest: Any) -> bool:
        if run.step == 3:
            run.saver.finish()
        if run.step == 3 and run.world.rank == run.world.size - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
        return take_step(run, *rest)

    trainer.train.take_step = take
    train_tiny(config)


@pytest.mark.parametrize(
    ("work", "world", "plan", "is_async", "said"),
    [
        (full_disk, 1, ALONE, True, r"it takes [0-9.]+ MB, and 0.0 MB are free in .*"),
        (refused_writes, 1, ALONE, False, "File too large"),
        (refused_writes, 2, SHARDED, True, "File too large"),
    ],
    ids=["no room", "a write fails", "a write of one rank fails"],
)
def test_a_full_disk_ends_no_run(
    folder: Path, tmp_path: Path, work: Any, world: int, plan: str, is_async: bool, said: str
) -> None:
    """What does not fit is told in one line, nothing is left of it, the older one stays, and training goes on."""
    ranks = Ranks(world, work, configured(folder, tmp_path, plan, async_save=is_async)).end()
    assert [rank.status for rank in ranks] == [0] * world, ranks[-1].output
    assert len(read_records(tmp_path, "step")) == 6
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert damage(tmp_path / "checkpoints" / "step-00000002") == ""
    lines = ranks[0].output.splitlines()
    for step in (4, 6):
        told = f"[Step {step}/6] | Checkpoint not written: "
        (line,) = (line for line in lines if line.startswith(told))
        assert re.search(rf"not written: {said}; the older ones stay, and training goes on$", line)
    assert "Traceback" not in ranks[0].output
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("model")] == []
    (line,) = (line for line in lines if "Model not written" in line)
    assert line.endswith("give it room, then --resume auto writes it")


def broken_after_a_save(config: TrainConfig) -> None:
    """Train with slow writes until a loss is no number, in the step after a checkpoint was begun."""
    take_step = trainer.train.take_step

    def take(run: Any, *rest: Any) -> bool:
        if run.step == 2:
            next(iter(run.parameters)).data.fill_(torch.nan)
        return take_step(run, *rest)

    trainer.train.take_step = take
    slow(config)


def test_what_is_under_way_is_finished_before_a_run_ends(folder: Path, tmp_path: Path) -> None:
    """A run that ends because its loss is no number leaves the checkpoint whole that it was writing."""
    (rank,) = Ranks(1, broken_after_a_save, configured(folder, tmp_path)).end()
    assert "step 3: the loss is nan" in rank.output
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert damage(tmp_path / "checkpoints" / "step-00000002") == ""


def test_the_best_and_the_newest_stay(folder: Path, tmp_path: Path) -> None:
    """With `keep_best` each checkpoint has a loss on held-out rows, and the least one's stays beside the newest."""
    changes = {"keep": 1, "keep_best": True, "eval_rows": 6, "exports": False, "checkpoint_every": 1}
    optimizer = OptimizerConfig(lr=0.1)  # spoils the model, so that the first is the best
    run_ranks(1, train_tiny, configured(folder, tmp_path, optimizer=optimizer, **changes))
    losses = {record["step"]: record["loss"] for record in read_records(tmp_path, "evaluation")}
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    best = min(losses, key=lambda step: losses[step])
    assert best != 6
    kept = {step_of(path): read_state(path)["held_out_loss"] for path in checkpoints_in(tmp_path / "checkpoints")}
    assert kept == {best: losses[best], 6: losses[6]}


def test_a_run_without_a_checkpoint_before_its_export_writes_none(folder: Path, tmp_path: Path) -> None:
    """The last checkpoint can be left out."""
    run_ranks(1, train_tiny, configured(folder, tmp_path, checkpoint_every=0, final_checkpoint=False, num_steps=1))
    assert (tmp_path / "model").is_dir()
    assert not (tmp_path / "checkpoints").exists()
