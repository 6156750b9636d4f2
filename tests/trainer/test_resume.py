"""Continuing: what is damaged or another run is refused before any rank starts; what is changed is told."""

import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainer.train
from estimator.work.plan import parse_plan
from tests.support.checkpoints import DAMAGE, flip, infect
from tests.support.ranks import Ranks, run_ranks
from tests.support.tiny import tiny_config, train_tiny, write_checkpoint, write_rows
from tests.trainer.test_cli import command, run
from trainer.config import TrainConfig
from trainer.measure import read_records
from trainer.parallel.checkpoint import read_state
from trainer.parallel.optimizer import OptimizerConfig

pytestmark = pytest.mark.slow

ALONE = "num_micro_batches=1,batch_per_device=8"
SHARDED = "num_micro_batches=1,batch_per_device=4,zero_stage=3"


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    """Return a folder with a checkpoint and rows; other rows, and models of the same shape and of another."""
    write_rows(folder / "others.jsonl", 63)
    shutil.copytree(folder / "checkpoint", folder / "same")
    write_checkpoint("qwen3", folder / "other")
    return folder


def configured(folder: Path, output: Path, plan: str = ALONE, **changes: Any) -> TrainConfig:
    """Return a run as `command` begins it, of four steps with a checkpoint every two."""
    usual = {"mask_prompt": False, "num_steps": 4, "checkpoint_every": 2, "exports": False}
    usual |= {"optimizer": OptimizerConfig(weight_decay=0.1)}
    return tiny_config(folder, output, plan=parse_plan(plan), **(usual | changes))


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that has the checkpoints of steps 2 and 4."""
    output = tmp_path_factory.mktemp("done")
    run_ranks(1, drawing, configured(folder, output))
    return output


@pytest.fixture
def output(done: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return shutil.copytree(done, tmp_path / "run")


def drawing(config: TrainConfig) -> dict[int, Any]:
    """Train, and return what a rank's generators draw after each step, and the weight decay then."""
    take_step, drawn = trainer.train.take_step, {}

    def take(run: Any, *rest: Any) -> bool:
        asked = take_step(run, *rest)
        numbers = torch.rand(1).item(), np.random.rand(), random.random(), random.gauss()  # noqa: NPY002, S311
        drawn[run.step] = (*numbers, run.optimizers[0].param_groups[0]["weight_decay"])
        return asked

    trainer.train.take_step = take
    train_tiny(config)
    return drawn


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 1}, "resume: of step-00000004 seed was 0, and is 1; give the same, or .* another --output"),
    "length": ({"seq_len": 80}, "resume: of step-00000004 seq-len was 72, and is 80; give the same, .*"),
    "batch": (
        {"batch": 16, "plan": "num_micro_batches=2,batch_per_device=8"},
        "resume: of step-00000004 batch was 8, and is 16; give the same, .*",
    ),
    "packing": ({"packing": True}, "resume: of step-00000004 packing was False, and is True; give the same, .*"),
    "mask": ({"mask_prompt": True}, "resume: of step-00000004 mask-prompt was False, and is True; give the same, .*"),
    "rows": (
        {"dataset": "{}/others.jsonl"},
        "resume: of step-00000004 dataset was '{}/rows.jsonl', and is '{}/others.jsonl'; give the same, .*",
    ),
    "held-out rows": ({"eval_rows": 3}, "resume: of step-00000004 eval-rows was 0, and is 3; give the same, .*"),
    "model": (
        {"model": "{}/other"},
        (
            r"resume: step-00000004 has no model.layers.0.self_attn.k_norm.weight, model 'other' "
            r"model.layers.0.self_attn.k_norm.weight in shape \[32\]; give the model that it is of"
        ),
    ),
    "fewer steps": ({"steps": 3}, "steps: 3 are fewer than the 4 done in step-00000004; give as many or more"),
}


@pytest.mark.parametrize(("changes", "said"), OTHERS.values(), ids=OTHERS)
def test_another_run_is_refused_before_any_process(
    folder: Path,
    output: Path,
    began: list[Any],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    said: str,
) -> None:
    """What is not the run of the checkpoint ends with one line and status 2; no rank starts, nothing is written."""
    changes = {name: v.replace("{}", str(folder)) if isinstance(v, str) else v for name, v in changes.items()}
    before = (output / "steps.jsonl").read_bytes()
    assert run(command(folder, output=output, resume="auto", **({"steps": 8} | changes))) == 2
    written = capsys.readouterr()
    assert re.fullmatch(said.replace("{}", re.escape(str(folder))) + "\n", written.err), written.err
    assert (written.out, began) == ("", [])
    assert (output / "steps.jsonl").read_bytes() == before


def test_a_moved_dataset_continues(folder: Path, output: Path, tmp_path: Path, began: list[Any]) -> None:
    """The same rows under another name are the same rows."""
    moved = shutil.copy(folder / "rows.jsonl", tmp_path / "moved.jsonl")
    assert run(command(folder, output=output, resume="auto", steps=8, dataset=moved)) == 0
    assert began[0].resume == str(output / "checkpoints" / "step-00000004")


def test_changed_rows_do_not_continue(
    folder: Path, began: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Other rows under the same name are told by their content."""
    rows = tmp_path / "rows.jsonl"
    shutil.copy(folder / "rows.jsonl", rows)
    run_ranks(1, train_tiny, configured(folder, tmp_path / "own", dataset=str(rows)))
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    assert run(command(folder, output=tmp_path / "own", resume="auto", steps=8, dataset=rows)) == 2
    assert "rows.jsonl' are not those of step-00000004; give the same, or start anew" in capsys.readouterr().err
    assert began == []


@pytest.mark.parametrize("how", ["bit of a shard", "metadata missing"])
def test_a_damaged_checkpoint_that_was_given_is_refused(
    folder: Path, output: Path, began: list[Any], capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """A damaged checkpoint that is named is refused in one line with status 2, and nothing is trained."""
    spoil, said = DAMAGE[how]
    newest = output / "checkpoints" / "step-00000004"
    spoil(newest)
    assert run(command(folder, output=output, resume=newest, steps=8)) == 2
    told = rf"resume: '.*step-00000004' is damaged: {said}; give another checkpoint, or auto\n"
    assert re.fullmatch(told, capsys.readouterr().err)
    assert began == []


def test_where_none_is_whole_nothing_begins(
    folder: Path, output: Path, began: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no checkpoint is whole, one line tells of all, with status 2."""
    for checkpoint in (output / "checkpoints").iterdir():
        flip(checkpoint / "__0_0.distcp")
    assert run(command(folder, output=output, resume="auto", steps=8)) == 2
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert re.match(r"resume: no checkpoint in '.*' is whole \(step-00000004 is .*; step-00000002 is .*\); ", written)
    assert began == []


def test_the_ranks_are_told_what_was_verified(
    folder: Path, output: Path, began: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command verifies, falls back, and starts ranks with the checkpoint that it found and the reason."""
    flip(output / "checkpoints" / "step-00000004" / "__0_0.distcp")
    arguments = command(folder, output=output, resume="auto", steps=8, nproc=2, plan=SHARDED)
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    assert run(arguments) == 0
    ((_, given),) = began
    more = dict(zip(given[len(arguments) :: 2], given[len(arguments) + 1 :: 2], strict=True))
    assert more["--resume"] == str(output / "checkpoints" / "step-00000002")
    assert more["--passed-over"].startswith("step-00000004 is damaged: __0_0.distcp is not as it was written")


@pytest.mark.parametrize("infected", [False, True], ids=["bit", "foreign name"])
def test_ranks_agree_on_the_checkpoint_before(folder: Path, output: Path, tmp_path: Path, infected: bool) -> None:
    """Ranks of another launcher each verify a share; what one finds, all pass over, and the log says why."""
    newest = output / "checkpoints" / "step-00000004"
    if infected:
        infect(newest, tmp_path / "trace")
    else:
        flip(newest / "__0_0.distcp")
    config = configured(folder, output, SHARDED, resume="auto")
    outcomes = run_ranks(2, train_tiny, config)
    assert [outcome.steps for outcome in outcomes] == [4, 4]
    (record,) = read_records(output, "continued")
    assert record["step"] == 2
    assert record["passed_over"].startswith("step-00000004 is damaged: ")
    assert [step["step"] for step in read_records(output, "step")] == [1, 2, 3, 4]
    assert not (tmp_path / "trace").exists()


def test_what_is_changed_is_told_and_takes_effect(folder: Path, output: Path) -> None:
    """Another rate, decay of weights, precision and model of the same shape are told, in one line and in the log."""
    config = configured(folder, output, num_steps=5, resume="auto", precision="bf16", model=str(folder / "same"))
    config = replace(config, optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.2))
    (rank,) = Ranks(1, drawing, config).end()
    assert rank.status == 0, rank.output
    assert rank.value[5][-1] == 0.2
    (line,) = (line for line in rank.output.splitlines() if line.startswith("continued"))
    assert line == (
        "continued from step-00000004; from here on steps 4 -> 5, lr 2e-06 -> 0.0001, weight-decay 0.1 -> 0.2, "
        f"precision 'fp32' -> 'bf16'; without effect model '{folder}/checkpoint' -> '{folder}/same': the weights are "
        "the checkpoint's"
    )
    (record,) = read_records(output, "continued")
    assert record["take_effect"] == {
        "steps": [4, 5],
        "lr": [2e-6, 1e-4],
        "weight-decay": [0.1, 0.2],
        "precision": ["fp32", "bf16"],
    }
    assert list(record["change_nothing"]) == ["model"]
    assert read_records(output, "step")[-1]["lr"] == 1e-4


def test_an_unchanged_run_says_where_it_goes_on(folder: Path, output: Path) -> None:
    """Where nothing differs, the line says from which checkpoint the run continues, and no more."""
    (rank,) = Ranks(1, train_tiny, configured(folder, output, resume="auto")).end()
    assert "continued from step-00000004\n" in rank.output


def test_generators_go_on_drawing(folder: Path, tmp_path: Path) -> None:
    """What torch, NumPy and Python draw after a step is the same in the uninterrupted run and the continued one."""
    (whole,) = run_ranks(1, drawing, configured(folder, tmp_path))
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")
    (continued,) = run_ranks(1, drawing, configured(folder, tmp_path, resume="auto"))
    assert continued == {step: whole[step] for step in (3, 4)}


def test_a_checkpoint_says_what_it_is_of(folder: Path, output: Path) -> None:
    """Step, plan, stack, options, place of the loader, versions and model are in it."""
    state = read_state(output / "checkpoints" / "step-00000004")
    assert (state["step"], state["num_steps"], state["num_devices"], state["held_out_loss"]) == (4, 4, 1, None)
    assert state["options"]["weight-decay"] == 0.1
    assert state["loader"]["step_in_epoch"] == 4
    assert (state["plan"], state["stack"]) == (str(parse_plan(ALONE)), "")
    assert state["versions"]["torch"] == torch.__version__
    assert state["model"]["name"] == "checkpoint"
    assert state["options"]["model"] == str(folder / "checkpoint")


def test_a_tied_model_continues(folder: Path, tmp_path: Path) -> None:
    """A model whose projection is its embedding has one weight less, and is known again."""
    write_checkpoint("qwen2, tied", folder / "tied")
    changes = {"model": str(folder / "tied"), "precision": "bf16"}
    run_ranks(1, train_tiny, configured(folder, tmp_path, num_steps=2, **changes))
    (outcome,) = run_ranks(
        1, train_tiny, configured(folder, tmp_path, resume="auto", **changes | {"precision": "fp32"})
    )
    assert outcome.steps == 4
