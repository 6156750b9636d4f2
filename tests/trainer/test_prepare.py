import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import trainer.prepare
from estimator.stack.stack import load_stack
from estimator.work.workload import Workload
from hardware.catalog import load_catalog
from tests.support.tiny import write_work
from trainer.config import TrainConfig
from trainer.data.dataset import DataConfig
from trainer.parallel.adapters import AdapterConfig
from trainer.prepare import check_output, check_room, choose_plan, find_work, trainable_shape
from trainer.source import ModelSource, config_of, find_config

CATALOG = load_catalog([])
STACK = load_stack("moai-24.2")
MISTRAL = trainable_shape(find_config("mistralai/Mistral-7B-v0.1"))
WORKLOAD = Workload(MISTRAL, 2048, 256, 144)
FLAVOR = CATALOG.flavor("4xLarge.2048GB")


def test_the_work_is_what_the_loader_does(tmp_path: Path) -> None:
    """Steps are those of whole batches of each epoch, unless they are given."""
    write_work(tmp_path, rows=20)
    data = DataConfig(dataset=str(tmp_path / "rows.jsonl"), tokenizer=str(tmp_path / "tokenizer"), seq_len=72)
    for steps, expected in ((0, 3 * (20 // 8)), (5, 5)):
        config = TrainConfig(str(tmp_path / "checkpoint"), data, global_batch=8, epochs=3, num_steps=steps)
        work = find_work(config)
        assert (work.workload.num_steps, work.workload.global_batch, work.workload.seq_len) == (expected, 8, 72)


def test_a_plan_is_taken_as_it_is_given() -> None:
    """A plan that can run is the run's, with its estimate."""
    text = "num_stages=2,num_micro_batches=16"
    plan, estimate = choose_plan(text, WORKLOAD, FLAVOR, STACK, CATALOG)
    assert (plan.num_stages, plan.num_micro_batches) == (2, 16)
    assert estimate.plan == plan
    assert estimate.step_s.value > 0


def test_the_best_plan_is_one_that_the_trainer_runs() -> None:
    """Of all plans that fit, the fastest that is neither context-parallel nor offloaded is taken."""
    plan, estimate = choose_plan("best", WORKLOAD, FLAVOR, STACK, CATALOG)
    assert estimate.possible
    assert (plan.cp, plan.ep, plan.offload_optimizer) == (1, 1, False)
    assert choose_plan(str(plan), WORKLOAD, FLAVOR, STACK, CATALOG)[0] == plan


def test_the_best_plan_splits_no_layer_where_none_may_be() -> None:
    """Where adapters leave out inputs, the best of the plans without tensor parallelism is taken."""
    wide = Workload(MISTRAL, 2048, 8, 1)
    flavor = CATALOG.flavor_of("mi250", 8)
    plans = [choose_plan("best", wide, flavor, STACK, CATALOG, splits=splits)[0] for splits in (True, False)]
    assert [plan.tp > 1 for plan in plans] == [True, False]
    assert not TrainConfig(adapters=AdapterConfig(4, 8.0, dropout=0.1)).can_split


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_stages=3", r"plan: num_stages \* tp \* cp = 3 \* 1 \* 1 does not divide 32 devices; use divisors of it"),
        ("num_micro_batches=1", r"plan: data_parallel \* .* = 32 is not the global batch 256; change one of them"),
        (
            "num_micro_batches=16,cp=2",
            "plan: cp=2: the trainer splits no sequences over devices; use cp=1",
        ),
        ("schedule=2f2b", "plan: schedule='2f2b' is not one of gpipe, 1f1b, interleaved, zero_bubble"),
        ("pp=2", "plan: unknown key 'pp'; use one of .*"),
    ],
)
def test_plans_that_cannot_run_are_refused(text: str, said: str) -> None:
    """The layout's rules and the trainer's are told before anything starts."""
    with pytest.raises(ValueError, match=f"^{said}$"):
        choose_plan(text, WORKLOAD, FLAVOR, STACK, CATALOG)


def test_no_plan_that_fits_is_refused() -> None:
    """Where no plan fits, the error names the nearest, and what would: more devices, or shorter rows, as tried."""
    small = CATALOG.flavor("xlarge")
    long = Workload(MISTRAL, 2**20, 4096, 1)
    said = rf"^plan: no plan fits {small.id}: the nearest, .*, needs [\d,]+ MiB per device, .*; .* (fits|would|is \S+)$"
    with pytest.raises(ValueError, match=said):
        choose_plan("best", long, small, STACK, CATALOG)


def test_models_that_no_plan_trains_are_refused() -> None:
    """A family that the trainer does not split, and dropout, are refused whatever the plan."""
    with pytest.raises(ValueError, match=r"^model: the trainer has no gpt2 models such as .*; use one of llama, .*$"):
        trainable_shape(source_of({"model_type": "gpt2"}))
    dropped = source_of({"model_type": "llama", "attention_dropout": 0.5})
    said = "^model: attention_dropout=0.5 of 'a test'; the trainer has none, set it to 0$"
    with pytest.raises(ValueError, match=said):
        trainable_shape(dropped)


def source_of(document: dict[str, object]) -> ModelSource:
    """Return the source of a config."""
    return ModelSource("a test", config_of(document, "a test"), None)


def test_an_output_folder_is_made(tmp_path: Path) -> None:
    """A run's folder is made with those above it, and may hold other files."""
    check_output(TrainConfig(output=tmp_path / "a" / "b"))
    (tmp_path / "a" / "b" / "notes.txt").touch()
    check_output(TrainConfig(output=tmp_path / "a" / "b"))


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the way, or a folder of another's, is told before anything starts."""
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^output: '.*file' cannot be made \(File exists\); give another$"):
        check_output(TrainConfig(output=tmp_path / "file"))
    with pytest.raises(ValueError, match=r"^output: '.*run' cannot be made \(Not a directory\); give another$"):
        check_output(TrainConfig(output=tmp_path / "file" / "run"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"^output: '.*run' is not writable; give another --output$"):
        check_output(TrainConfig(output=tmp_path / "run"))


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    """A folder that holds a run is for continuing it, and nothing else."""
    (tmp_path / "steps.jsonl").write_text("a run\n")
    said = r"^output: '.*' holds a run; continue it with --resume auto, or give another --output$"
    with pytest.raises(ValueError, match=said):
        check_output(TrainConfig(output=tmp_path))
    check_output(TrainConfig(output=tmp_path, resume="auto"))
    assert (tmp_path / "steps.jsonl").read_text() == "a run\n"


@pytest.mark.parametrize(
    ("changes", "num_bytes", "said"),
    [
        ({"checkpoint_every": 1, "keep": 3}, 4 * 1200 + 2 * 400, "4 x a checkpoint of 1.2e-06 GB and 2 x an exp"),
        ({"checkpoint_every": 1, "keep": 3, "keep_best": True}, 5 * 1200 + 2 * 400, "5 x a checkpoint"),
        ({}, 1200 + 2 * 400, "1 x a checkpoint"),
        ({"final_checkpoint": False}, 2 * 400, "0 x a checkpoint"),
        ({"exports": False, "checkpoint_every": 1, "precision": "bf16"}, 3 * 600, "3 x a checkpoint of 6e-07 GB are"),
    ],
)
def test_a_disk_without_room_is_told_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], num_bytes: int, said: str
) -> None:
    """What checkpoints and the model take is reckoned: a byte less is refused with the mend, and nothing is made."""
    monkeypatch.setattr(trainer.prepare, "num_parameters", lambda _: 100)
    monkeypatch.setattr(trainer.prepare, "trained_parameters", lambda _: 100)
    config = TrainConfig(output=tmp_path / "run", **({"precision": "fp32", "data": DataConfig(eval_rows=1)} | changes))
    work: Any = SimpleNamespace(workload=SimpleNamespace(shape=None), source=source_of({"model_type": "mistral"}))
    monkeypatch.setattr(trainer.prepare, "free_bytes", lambda _: num_bytes)
    check_room(config, work)
    monkeypatch.setattr(trainer.prepare, "free_bytes", lambda _: num_bytes - 1)
    with pytest.raises(ValueError, match=f"^output: {said}.* free for '.*run'; lower --keep, .*or another --output$"):
        check_room(config, work)
    assert list(tmp_path.iterdir()) == []


def test_what_a_continued_run_replaces_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints that are there already are among those that are kept."""
    monkeypatch.setattr(trainer.prepare, "num_parameters", lambda _: 100)
    monkeypatch.setattr(trainer.prepare, "trained_parameters", lambda _: 100)
    monkeypatch.setattr(trainer.prepare, "free_bytes", lambda _: 1200)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000001" / "shard").write_bytes(bytes(1200))
    work: Any = SimpleNamespace(workload=SimpleNamespace(shape=None), source=None)
    config = TrainConfig(output=tmp_path, precision="fp32", exports=False, checkpoint_every=1, keep=1)
    check_room(config, work)
    with pytest.raises(ValueError, match=r"^output: 3 x"):
        check_room(replace(config, keep=2), work)
