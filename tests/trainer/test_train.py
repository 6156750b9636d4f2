"""Runs of the loop: stopped, killed, broken off in a checkpoint, and continued."""

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.parallel.saving
import trainer.train
from estimator.work.plan import parse_plan
from tests.support.ranks import Ranks, run_ranks
from tests.support.tiny import tiny_config, train_tiny
from trainer.config import TrainConfig
from trainer.divergence import STEPS as STEPS_ABOVE
from trainer.measure import read_records
from trainer.parallel.checkpoint import checkpoints_in, step_of
from trainer.parallel.mesh import World
from trainer.parallel.optimizer import OptimizerConfig

pytestmark = pytest.mark.slow

STEPS = 8
TOLERANCE = 1e-5
"""Of the losses of another plan, as in the parity of plans."""

PIPELINE = "num_stages=2,num_micro_batches=4,batch_per_device=2"
SHARDED = "num_micro_batches=2,batch_per_device=2,zero_stage=3"
TENSOR = "num_micro_batches=1,batch_per_device=8,tp=2"
ALONE = "num_micro_batches=1,batch_per_device=8"


def configured(folder: Path, output: Path, plan: str, **changes: Any) -> TrainConfig:
    """Return a run whose rate rises and falls, and that evaluates."""
    rate = OptimizerConfig(lr=1e-3, weight_decay=0.1, clip_norm=1.0, warmup_steps=2, decay="cosine")
    usual = {"optimizer": rate, "eval_rows": 6, "eval_every": 2}
    return tiny_config(folder, output, plan=parse_plan(plan), **(usual | changes))


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what gives the folder of a run, which several tests go on from: made once, and copied by who goes on."""

    @cache
    def output_of(work: Callable[[TrainConfig], object], plan: str, world: int, checkpoint_every: int = 0) -> Path:
        output = tmp_path_factory.mktemp("done")
        run_ranks(world, work, configured(folder, output, plan, checkpoint_every=checkpoint_every))
        return output

    return output_of


@pytest.fixture(scope="module")
def whole(done: Callable[..., Path]) -> Callable[[str, int], Path]:
    """Return what gives the folder of the uninterrupted run of a plan on so many ranks."""
    return lambda plan, world: done(train_tiny, plan, world, checkpoint_every=STEPS // 2)


@pytest.fixture
def stopped(done: Callable[..., Path], tmp_path: Path) -> Callable[[str, int], Path]:
    """Return what gives a run of a plan that was stopped in its third step, in a folder of the test's own."""
    return lambda plan, world: shutil.copytree(done(stopped_after_3, plan, world), tmp_path / "stopped")


def logged(output: Path) -> list[float]:
    """Return the losses of a log, after checking that each step, line and evaluation is there once."""
    steps, evaluations = read_records(output, "step"), read_records(output, "evaluation")
    numbers = [step["step"] for step in steps]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [record["step"] for record in evaluations] == [number for number in numbers if number % 2 == 0]
    assert len((output / "train.log").read_text().splitlines()) == len(numbers)
    return [step["loss"] for step in steps]


def after(step: int, action: Callable[[], None], config: TrainConfig) -> None:
    """Train, and do something in the middle, when a step is done and logged."""
    take_step = trainer.train.take_step

    def take(run: Any, *rest: Any) -> bool:
        asked = take_step(run, *rest)
        if run.step == step:
            action()
        return asked

    trainer.train.take_step = take
    train_tiny(config)


def terminate_last_rank() -> None:
    """Ask the last rank alone to stop."""
    if os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1):
        os.kill(os.getpid(), signal.SIGTERM)


def kill() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def stopped_after_3(config: TrainConfig) -> None:
    """Train until the last rank is asked to stop in the middle."""
    after(3, terminate_last_rank, config)


def killed_after_5(config: TrainConfig) -> None:
    """Train until all ranks are killed."""
    after(5, kill, config)


def killed_in_a_checkpoint(config: TrainConfig) -> None:
    """Train until all ranks are killed when the files of the second checkpoint are written, but not its state."""
    write = trainer.parallel.saving.write_synced

    def fatal(path: Path, text: str) -> None:
        if path.name == "run.json" and "00000004" in path.parent.name:
            kill()
        write(path, text)

    trainer.parallel.saving.write_synced = fatal
    train_tiny(config)


@pytest.mark.parametrize(("plan", "world"), [(ALONE, 1), (PIPELINE, 2), (SHARDED, 2)])
def test_a_stopped_run_continues_bit_for_bit(
    folder: Path, stopped: Callable[[str, int], Path], whole: Callable[[str, int], Path], plan: str, world: int
) -> None:
    """SIGTERM to one rank saves the step under way on all; the continued losses are the uninterrupted ones."""
    output = stopped(plan, world)
    assert len(read_records(output, "step")) == 4  # the step in which it was asked ends before all ranks agree
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000004"]
    assert not (output / "model").exists()
    run_ranks(world, train_tiny, configured(folder, output, plan, resume="auto"))
    assert logged(output) == logged(whole(plan, world))
    assert list((output / "model").glob("*.safetensors"))


@pytest.mark.parametrize(("plan", "world"), [(ALONE, 1), (SHARDED, 2)])
def test_a_killed_run_continues_bit_for_bit(
    folder: Path, tmp_path: Path, whole: Callable[[str, int], Path], plan: str, world: int
) -> None:
    """SIGKILL loses the steps since the checkpoint; they are taken again, and logged once."""
    killed = Ranks(world, killed_after_5, configured(folder, tmp_path, plan, checkpoint_every=2)).end()
    assert -signal.SIGKILL in {rank.status for rank in killed}
    assert len(read_records(tmp_path, "step")) == 5
    run_ranks(world, train_tiny, configured(folder, tmp_path, plan, resume="auto"))
    assert logged(tmp_path) == logged(whole(plan, world))


def test_a_checkpoint_broken_off_is_invisible(folder: Path, tmp_path: Path, whole: Callable[[str, int], Path]) -> None:
    """A run killed while it writes a checkpoint continues from the one before, and then clears what was left."""
    changes = {"checkpoint_every": 2}
    Ranks(1, killed_in_a_checkpoint, configured(folder, tmp_path, ALONE, **changes)).end()
    folders = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert folders == {"step-00000002", ".partial-step-00000004"}
    (found,) = checkpoints_in(tmp_path / "checkpoints")
    assert step_of(found) == 2
    run_ranks(1, train_tiny, configured(folder, tmp_path, ALONE, resume="auto", **changes))
    assert logged(tmp_path) == logged(whole(ALONE, 1))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-00000006", "step-00000008"}


@pytest.mark.parametrize(
    ("first", "ranks", "second", "other_ranks"),
    [(PIPELINE, 2, SHARDED, 2), (SHARDED, 2, TENSOR, 2), (TENSOR, 2, ALONE, 1), (ALONE, 1, PIPELINE, 2)],
)
def test_a_run_continues_under_another_plan(
    folder: Path,
    stopped: Callable[[str, int], Path],
    whole: Callable[[str, int], Path],
    first: str,
    ranks: int,
    second: str,
    other_ranks: int,
) -> None:
    """A checkpoint of one plan is continued by another, also on another number of ranks, within parity's tolerance."""
    output = stopped(first, ranks)
    run_ranks(other_ranks, train_tiny, configured(folder, output, second, resume="auto"))
    assert logged(output) == pytest.approx(logged(whole(ALONE, 1)), abs=TOLERANCE)


def test_a_run_continues_from_a_given_checkpoint(
    folder: Path, tmp_path: Path, whole: Callable[[str, int], Path]
) -> None:
    """A checkpoint's folder continues it in another output folder, whose log begins after it."""
    checkpoint = whole(ALONE, 1) / "checkpoints" / "step-00000004"
    run_ranks(1, train_tiny, configured(folder, tmp_path, ALONE, resume=str(checkpoint)))
    assert [step["loss"] for step in read_records(tmp_path, "step")] == logged(whole(ALONE, 1))[4:]


def test_a_finished_run_is_not_trained_on(folder: Path, tmp_path: Path, whole: Callable[[str, int], Path]) -> None:
    """Continuing a run that is done takes no step, and exports the model as it was."""
    output = shutil.copytree(whole(ALONE, 1), tmp_path / "finished")
    before = read_records(output, "step")
    (exported,) = (output / "model").glob("*.safetensors")
    model = exported.read_bytes()
    shutil.rmtree(output / "model")
    (outcome,) = run_ranks(1, train_tiny, configured(folder, output, ALONE, resume="auto"))
    assert (outcome.steps, outcome.num_steps, outcome.exported) == (STEPS, STEPS, (output / "model",))
    assert read_records(output, "step") == before
    assert exported.read_bytes() == model


def test_other_rows_do_not_continue(folder: Path, stopped: Callable[[str, int], Path]) -> None:
    """A checkpoint is not continued with another order of the rows."""
    config = configured(folder, stopped(ALONE, 1), ALONE, resume="auto", seed=1)
    (rank,) = Ranks(1, train_tiny, config).end()
    assert "resume: of step-00000004 seed was 0, and is 1; give the same, or start anew" in rank.output


def breaking(target: str, config: TrainConfig) -> None:
    """Train, and turn losses or the norms of gradients into no numbers."""
    if target == "loss":
        passes = trainer.train.Passes.train
        trainer.train.Passes.train = lambda self, rows, n: passes(self, rows, n) * float("nan")  # type: ignore[method-assign]
    else:
        clip = trainer.train.clip_gradients
        trainer.train.clip_gradients = lambda *given: clip(*given) * torch.inf
    train_tiny(config)


def broken_loss(config: TrainConfig) -> None:
    """Train with a loss that is no number."""
    breaking("loss", config)


def broken_gradient(config: TrainConfig) -> None:
    """Train with a gradient whose norm is no number, while the loss still is one."""
    breaking("gradient", config)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (broken_loss, "step 1: the loss is nan, the gradient's norm [0-9.]+; lower --lr, or clip with --clip-norm"),
        (broken_gradient, "step 1: the loss is [0-9.]+, the gradient's norm inf; lower --lr, or clip with --clip-norm"),
    ],
)
def test_no_number_ends_the_run_before_a_checkpoint(
    folder: Path, tmp_path: Path, work: Callable[[TrainConfig], None], said: str
) -> None:
    """A loss or a gradient that is no number ends the run, and no checkpoint is made of such weights."""
    (rank,) = Ranks(1, work, configured(folder, tmp_path, ALONE, checkpoint_every=1)).end()
    with pytest.raises(FloatingPointError, match=said):
        raise FloatingPointError(rank.output)
    assert not (tmp_path / "checkpoints").exists()


def lost(config: TrainConfig) -> None:
    """Train, and lose everything in the sixth step: from then on the loss is that of a broken model."""
    passes, taken = trainer.train.Passes.train, itertools.count(1)
    trainer.train.Passes.train = (  # type: ignore[method-assign]
        lambda self, rows, n: passes(self, rows, n) * (1 if next(taken) < 6 else 1e4)
    )
    train_tiny(config)


def test_a_run_that_diverged_ends_and_keeps_its_last_good_checkpoint(folder: Path, tmp_path: Path) -> None:
    """A loss that stays worse than no knowledge ends the run in one line, and takes no good checkpoint's place."""
    changes = {"checkpoint_every": 1, "keep": 1, "num_steps": 40}
    (rank,) = Ranks(1, lost, configured(folder, tmp_path, ALONE, **changes)).end()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    assert len(read_records(tmp_path, "step")) == 6 + STEPS_ABOVE - 1
    assert "the run has diverged: the loss is" in rank.output
    assert "[Step 6/40] | No checkpoint: the loss is worse than no knowledge" in rank.output


def test_ranks_take_their_own_rows(whole: Callable[[str, int], Path]) -> None:
    """The log counts the tokens and the targets of the global batch, whatever the plan."""
    output = whole(SHARDED, 2)
    steps = read_records(output, "step")
    assert [step["tokens"] for step in steps] == [8 * 72] * STEPS
    assert all(0 < step["useful_tokens"] < step["tokens"] for step in steps)
    assert all(len(step["peak_allocated_bytes_by_rank"]) == 2 for step in steps)
    header = json.loads((output / "steps.jsonl").read_text().splitlines()[0])
    assert (header["record"], header["schema"], header["num_devices"]) == ("run", "steps/1", 2)


def test_a_run_of_any_length_is_shown() -> None:
    """What a rank says of itself to `smi` has room for as many steps as a run may have."""
    config = TrainConfig(num_steps=2**40 - 1)
    job = trainer.train._as_job(config, World(), torch.device("cpu"), None)  # noqa: SLF001 - a run would not end
    assert (job.total_steps, job.flavor) == (2**40 - 1, "cpu")
