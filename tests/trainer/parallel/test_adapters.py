import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from estimator.formulas.counts import trained_parameters
from estimator.stack.recipe import Recipe
from estimator.work.plan import parse_plan
from estimator.work.shape import shape_from_config
from tests.support.ranks import run_ranks
from tests.support.tiny import write_checkpoint
from trainer.build import build_stages
from trainer.config import TrainConfig
from trainer.parallel.adapters import PROJECTIONS, AdapterConfig, parse_targets
from trainer.parallel.mesh import World, make_place, start_processes
from trainer.parallel.model import Stage
from trainer.parallel.optimizer import local_part, trained
from trainer.parallel.weights import adapter_weights, base_weights, draw_weights, random_weight

ADAPTERS = AdapterConfig(4, 8.0)


def staged(checkpoint: Path, plan: str, precision: str = "fp32", adapters: AdapterConfig = ADAPTERS) -> list[Stage]:
    """Return this rank's chunks of a model with adapters, with memory."""
    world = World.from_environment()
    start_processes(world, torch.device("cpu"))
    config = TrainConfig(plan=parse_plan(plan), precision=precision, adapters=adapters)
    place = make_place(config.plan, world.size, world.local_size, "cpu")
    stages = build_stages(AutoConfig.from_pretrained(checkpoint), config, place)
    for stage in stages:
        stage.materialize(torch.device("cpu"))
    return stages


def num_trained(checkpoint: Path, adapters: AdapterConfig) -> int:
    """Return the trained parameters of a whole model."""
    (stage,) = staged(checkpoint, "num_micro_batches=1", adapters=adapters)
    return sum(parameter.numel() for parameter in trained(stage))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of transformers, at what peft calls
@pytest.mark.slow
@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj", "down_proj"])
@pytest.mark.parametrize("model", ["mistral", "qwen3"])
def test_as_many_parameters_are_trained_as_by_peft(tmp_path: Path, model: str, targets: str) -> None:
    """Peft, the trainer and the estimator count the same."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - slow to import

    write_checkpoint(model, tmp_path)
    adapters = AdapterConfig(4, 8.0, parse_targets(targets))
    network = AutoModelForCausalLM.from_pretrained(tmp_path)
    shape = Recipe(lora_rank=4, lora_targets=adapters.shape_targets).shape(
        shape_from_config(network.config.to_dict(), model)
    )
    count, _ = get_peft_model(
        network, LoraConfig(r=4, target_modules=list(adapters.targets))
    ).get_nb_trainable_parameters()
    assert run_ranks(1, num_trained, tmp_path, adapters) == [count]
    assert trained_parameters(shape) == count


def layout(checkpoint: Path, plan: str, precision: str) -> dict[str, tuple[bool, str, bool]]:
    """Return of each parameter of a rank whether it is trained, its type, and whether the rank holds all of it."""
    (stage,) = staged(checkpoint, plan, precision)
    return {
        name: (p.requires_grad, str(p.dtype), local_part(p).numel() == p.numel())
        for name, p in stage.named_parameters()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "precision", "frozen"),
    [
        ("num_micro_batches=1,zero_stage=0", "bf16-mixed", (False, "torch.bfloat16", True)),
        ("num_micro_batches=1,zero_stage=1", "fp32", (False, "torch.float32", True)),
        ("num_micro_batches=1,zero_stage=3", "bf16-mixed", (False, "torch.bfloat16", False)),
    ],
)
def test_frozen_weights_are_kept_as_products_take_them(
    tmp_path: Path, plan: str, precision: str, frozen: tuple[bool, str, bool]
) -> None:
    """In 16 bits where products are, sharded by ZeRO-3 alone; adapters are updated in 32 bits, sharded by any ZeRO."""
    write_checkpoint("mistral", tmp_path)
    for found in run_ranks(2, layout, tmp_path, plan, precision):
        assert {how for name, how in found.items() if ".lora_" not in name} == {frozen}
        adapters = {how for name, how in found.items() if ".lora_" in name}
        assert adapters == {(True, "torch.float32", "zero_stage=0" in plan)}


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["num_micro_batches=1,tp=2", "num_micro_batches=1,tp=2,sequence_parallel=false"])
def test_tensor_parallelism_trains_nothing_else(tmp_path: Path, plan: str) -> None:
    """Torch's styles make some parameters anew; of norms and products none is trained for it."""
    write_checkpoint("qwen3", tmp_path)
    for found in run_ranks(2, layout, tmp_path, plan, "fp32"):
        assert {".lora_" in name for name, (is_trained, *_) in found.items() if is_trained} == {True}
        assert len({name for name in found if ".lora_" in name}) == 2 * len(PROJECTIONS) * 4


def drawn(checkpoint: Path, plan: str, *, adapters_only: bool = False) -> dict[str, torch.Tensor]:
    """Return a rank's adapters as they are drawn, whole."""
    stages = staged(checkpoint, plan)
    for weight in base_weights(stages).values():
        weight.fill_(3.0)
    draw_weights(stages, seed=5, adapters_only=adapters_only)
    if adapters_only:
        assert all(bool((local_part(weight) == 3.0).all()) for weight in base_weights(stages).values())
    weights = adapter_weights(stages)
    return {name: getattr(weight, "full_tensor", lambda w=weight: w)() for name, weight in weights.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "plan"),
    [
        (1, "num_micro_batches=1"),
        (2, "num_stages=2,num_micro_batches=2"),
        (2, "num_micro_batches=1,tp=2"),
        (2, "num_micro_batches=1,zero_stage=3"),
    ],
)
def test_drawn_adapters_do_not_depend_on_the_plan(tmp_path: Path, world: int, plan: str) -> None:
    """Every plan draws those of each name, shape and seed, and no frozen weight with them."""
    write_checkpoint("mistral", tmp_path)
    parts = run_ranks(world, _drawn_alone, tmp_path, plan)
    weights = {name: weight for part in parts for name, weight in part.items()}
    config = AutoConfig.from_pretrained(tmp_path)
    assert len(weights) == 2 * len(PROJECTIONS) * 4
    for name, weight in weights.items():
        assert torch.equal(weight, random_weight(name, weight.shape, config, seed=5))


def _drawn_alone(checkpoint: Path, plan: str) -> dict[str, torch.Tensor]:
    return drawn(checkpoint, plan, adapters_only=True)


def test_adapters_are_drawn_as_peft_draws_them() -> None:
    """A is uniform with the bound of `kaiming_uniform_` for a = sqrt(5), whatever the spread of the model; B is 0."""
    config = AutoConfig.for_model("llama", initializer_range=0.5)
    shape = torch.Size((64, 400))
    a = random_weight("model.layers.0.mlp.up_proj.lora_A.weight", shape, config, 0)
    theirs = torch.empty(shape)
    torch.nn.init.kaiming_uniform_(theirs, a=math.sqrt(5))
    assert float(a.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=1e-3)
    assert float(a.std()) == pytest.approx(float(theirs.std()), rel=0.02)
    assert not random_weight("model.layers.0.mlp.up_proj.lora_B.weight", shape, config, 0).any()


def test_targets_are_put_in_order() -> None:
    """However they are named, a configuration has them once, in the order of a layer."""
    assert AdapterConfig(4, 8.0, ("v_proj", "q_proj", "v_proj")).targets == ("q_proj", "v_proj")
    assert AdapterConfig(4, 8.0).shape_targets == ()
    assert AdapterConfig(4, 8.0, ("q_proj",)).shape_targets == ("q",)
    assert AdapterConfig(4, 6.0).scale == 1.5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 0}, "lora: rank 0 is not from 1 to 4096; use for example --lora 16"),
        ({"alpha": float("nan")}, "lora-alpha: nan is not above 0 and to 1e[+]06; usual is twice the rank"),
        ({"dropout": -0.1}, "lora-dropout: -0.1 is not from 0 to below 1; give a share, usual are 0 to 0.1"),
        ({"targets": ("q",)}, "unknown lora-targets 'q': .*"),
        ({"targets": ()}, "lora-targets: none is named; give all-linear or some of q_proj, .*"),
    ],
)
def test_adapters_that_no_run_has_are_refused(values: dict[str, object], said: str) -> None:
    """Each value out of its range is told with its range."""
    with pytest.raises(ValueError, match=f"^{said}$"):
        AdapterConfig(**({"rank": 4, "alpha": 8.0} | values))  # type: ignore[arg-type]


def test_dropout_is_refused_where_ranks_share_inputs() -> None:
    """Tensor-parallel ranks would each leave out others of the same inputs."""
    said = "^lora-dropout: 0.1 under tp=2, whose ranks would each leave out inputs of their own; give 0, or use tp=1$"
    with pytest.raises(ValueError, match=said):
        TrainConfig(adapters=AdapterConfig(4, 8.0, dropout=0.1), plan=parse_plan("tp=2"))
