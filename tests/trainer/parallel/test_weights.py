import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import trainer.parallel.weights
from estimator.work.plan import parse_plan
from tests.support.ranks import Ranks, run_ranks
from tests.support.tiny import write_checkpoint
from trainer.build import build_stages
from trainer.config import TrainConfig
from trainer.parallel.mesh import World, make_place, start_processes
from trainer.parallel.model import Stage
from trainer.parallel.weights import draw_weights, export_weights, load_weights, named_weights, random_weight

PLANS = {
    1: ("num_micro_batches=1",),
    2: ("num_stages=2,num_micro_batches=2", "tp=2", "zero_stage=3", "tp=2,sequence_parallel=false", "zero_stage=0"),
    4: ("num_stages=2,num_micro_batches=2,zero_stage=3", "tp=2,zero_stage=3"),
}


def staged(checkpoint: Path, plan: str) -> list[Stage]:
    """Return this rank's chunks of a model, with memory."""
    world = World.from_environment()
    start_processes(world, torch.device("cpu"))
    config = TrainConfig(plan=parse_plan(plan), precision="fp32")
    place = make_place(config.plan, world.size, world.local_size, "cpu")
    stages = build_stages(AutoConfig.from_pretrained(checkpoint), config, place)
    for stage in stages:
        stage.materialize(torch.device("cpu"))
    return stages


def drawn(checkpoint: Path, plan: str, folder: Path) -> None:
    """Draw weights under a plan, and export them."""
    stages = staged(checkpoint, plan)
    draw_weights(stages, seed=5)
    export_weights(stages, folder, torch.float32, beside=())


def copied(checkpoint: Path, plan: str, folder: Path, dtype: torch.dtype, file_bytes: int) -> None:
    """Read weights under a plan, and export them in files of so many bytes."""
    trainer.parallel.weights.FILE_BYTES = file_bytes
    stages = staged(checkpoint, plan)
    load_weights(stages, checkpoint)
    export_weights(stages, folder, dtype, beside=(stages[0].config,))


@pytest.mark.slow
@pytest.mark.parametrize(("world", "plan"), [(world, plan) for world in (1, 2, 4) for plan in PLANS[world]])
def test_random_weights_do_not_depend_on_the_plan(tmp_path: Path, world: int, plan: str) -> None:
    """Every plan draws the same model to the last bit, the one of each weight's name, shape and seed."""
    write_checkpoint("qwen3", tmp_path / "checkpoint")
    run_ranks(world, drawn, tmp_path / "checkpoint", plan, tmp_path / "drawn")
    config = AutoConfig.from_pretrained(tmp_path / "checkpoint")
    weights = {name: w for path in (tmp_path / "drawn").glob("*.safetensors") for name, w in load_file(path).items()}
    shapes = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert weights.keys() == shapes.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, random_weight(name, shapes[name].shape, config, seed=5))


def test_random_weights_are_as_transformers_draws_them() -> None:
    """Matrices have the config's spread, norms are 1, biases 0; seeds and names give other numbers."""
    config = AutoConfig.for_model("llama", initializer_range=0.05)
    shape = torch.Size((300, 200))
    weight = random_weight("a.weight", shape, config, 0)
    assert float(weight.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(weight.mean())) < 1e-3
    assert torch.equal(random_weight("norm.weight", torch.Size((5,)), config, 0), torch.ones(5))
    assert torch.equal(random_weight("q_proj.bias", torch.Size((5,)), config, 0), torch.zeros(5))
    for other in (random_weight("a.weight", shape, config, 1), random_weight("b.weight", shape, config, 0)):
        assert not torch.equal(other, weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "world", "plan"),
    [("qwen2, tied", 1, PLANS[1][0]), ("llama", 2, PLANS[2][0]), ("qwen2", 2, "tp=2"), ("mistral", 4, PLANS[4][0])],
)
def test_a_checkpoint_comes_out_as_it_went_in(tmp_path: Path, model: str, world: int, plan: str) -> None:
    """Read and exported under a plan, `from_pretrained` loads the same weights to the last bit, from several files."""
    checkpoint, exported = tmp_path / "checkpoint", tmp_path / "exported"
    write_checkpoint(model, checkpoint)
    run_ranks(world, copied, checkpoint, plan, exported, torch.float32, 60_000)
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (checkpoint, exported))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    files = sorted(path.name for path in exported.glob("*.safetensors"))
    assert len(files) > 1
    index = json.loads((exported / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(set(index.values())) == files
    assert not list(tmp_path.glob("*.partial"))
    assert not [path for path in exported.iterdir() if path.is_dir()]


@pytest.mark.slow
def test_an_export_has_the_type_asked_for(tmp_path: Path) -> None:
    """Weights are rounded to the type of the file, and a second export replaces the first."""
    write_checkpoint("llama", tmp_path / "checkpoint")
    for dtype in (torch.float32, torch.bfloat16):
        run_ranks(1, copied, tmp_path / "checkpoint", PLANS[1][0], tmp_path / "exported", dtype, 10**9)
    (path,) = (tmp_path / "exported").glob("*.safetensors")
    assert {weight.dtype for weight in load_file(path).values()} == {torch.bfloat16}


def indexed(sizes: list[dict[str, int]], file_bytes: int) -> dict[str, int]:
    """Return in which file each of some ranks' weights of so many bytes goes."""
    start_processes(World.from_environment(), torch.device("cpu"))
    trainer.parallel.weights.FILE_BYTES = file_bytes
    own = {name: torch.empty(size, dtype=torch.uint8) for name, size in sizes[dist.get_rank()].items()}
    return trainer.parallel.weights._file_index(trainer.parallel.weights._sizes(own))  # noqa: SLF001 - the same on all ranks, which no file shows


@pytest.mark.slow
def test_files_are_filled_in_the_order_of_layers() -> None:
    """No file is larger than it may be unless one weight is; layer 10 follows 9, the rest the layers; ranks agree."""
    first = {f"model.layers.{i}.w": 4 for i in (0, 2, 9)} | {"model.embed_tokens.weight": 30}
    second = {f"model.layers.{i}.w": 4 for i in (10, 9)} | {"lm_head.weight": 3}
    found, other = run_ranks(2, indexed, [first, second], 10)
    assert found == other
    assert [found[f"model.layers.{i}.w"] for i in (0, 2, 9, 10)] == [1, 1, 2, 2]
    assert (found["lm_head.weight"], found["model.embed_tokens.weight"]) == (3, 4)


def loaded(checkpoint: Path, model: Path) -> None:
    """Read a checkpoint for the config of another."""
    stages = staged(model, PLANS[1][0])
    load_weights(stages, checkpoint)
    assert named_weights(stages)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda weights: weights.pop("model.norm.weight"),
            "model: checkpoint has no weight model.norm.weight; give a whole checkpoint of its config",
        ),
        (
            lambda weights: weights.update({"model.norm.weight": torch.ones(3)}),
            (
                "model: checkpoint has model.norm.weight in shape [3], its config says [64]; "
                "give the config it was made with"
            ),
        ),
    ],
)
def test_checkpoints_of_another_model_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    """A weight that is missing or of another shape is named."""
    checkpoint = tmp_path / "checkpoint"
    write_checkpoint("llama", checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    (rank,) = Ranks(1, loaded, checkpoint, checkpoint).end()
    assert rank.output.splitlines()[-1] == f"ValueError: {said}"
