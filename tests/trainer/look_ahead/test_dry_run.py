import gc
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.distributed as dist

from estimator.work.plan import parse_plan
from tests.support.ranks import fork_server
from tests.support.tiny import mistral_of
from trainer.build import build_stages
from trainer.config import TrainConfig
from trainer.data.dataset import DataConfig
from trainer.look_ahead.dry_run import DEVICE, DryRun, _Step, check_dry_run, dry_run, dry_runs, stage_ranks
from trainer.look_ahead.meter import PURPOSES, Meter
from trainer.parallel.mesh import make_place

MODEL = mistral_of(4)
LAYER = 64 * 64 * 2 + 64 * 16 * 2 + 3 * 64 * 128 + 2 * 64
EMBEDDING, HEAD = 512 * 64, 512 * 64 + 64
WHOLE = 4 * LAYER + EMBEDDING + HEAD
STEPS = 4  # bytes of the count of steps that AdamW keeps for each parameter


def config_of(plan: str, **changes: object) -> TrainConfig:
    """Return a run of rows of 64 tokens."""
    return replace(TrainConfig(plan=parse_plan(plan), data=DataConfig(seq_len=64)), **changes)


@cache
def found(plan: str, rank: int = 0, world_size: int = 8, precision: str = "bf16-mixed") -> DryRun:
    """Return the dry run of a rank of a plan."""
    config = config_of(plan, precision=precision)
    return dry_run(config, MODEL, world_size=world_size, local_size=4, rank=rank)


@pytest.fixture
def process_alone() -> Iterator[None]:
    """Be the only rank of a real process group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_alone")
@pytest.mark.parametrize("precision", ["bf16-mixed", "fp32"])
@pytest.mark.parametrize("recomputation", ["none", "full"])
def test_a_dry_run_holds_what_a_real_run_holds(precision: str, recomputation: str) -> None:
    """The same step on tensors with values, in a real process group of one: equal to the byte, for each purpose."""
    config = config_of(f"num_micro_batches=2,recomputation={recomputation}", precision=precision)
    place = make_place(config.plan, 1, 1, "cpu")
    stages = build_stages(MODEL, config, place)
    gc.disable()
    with Meter() as meter:
        for stage in stages:
            stage.materialize(DEVICE)
        step = _Step(config, stages, place, meter)
        step.take()
        gc.collect()
        meter.reset_peak()
        step.take()
    gc.enable()
    real = meter.peak()
    dist.destroy_process_group()
    dry = dry_run(config, MODEL, world_size=1, local_size=1, rank=0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dry.num_bytes == real


@pytest.mark.parametrize(("zero_stage", "shards"), [(0, 1), (1, 8), (2, 8), (3, 8)])
def test_zero_shards_weights_and_moments(zero_stage: int, shards: int) -> None:
    """Each rank holds 4 bytes per parameter of its shard, and 8 of moments (Rajbhandari et al. 2020, Figure 1)."""
    run = found(f"num_micro_batches=2,zero_stage={zero_stage}")
    num_tensors = 4 * 9 + 3
    assert run.num_bytes["parameters"] - 4 * WHOLE / shards == pytest.approx(0, abs=1024)  # position frequencies
    assert run.num_bytes["optimizer"] == 8 * WHOLE / shards + STEPS * num_tensors


def test_zero_stages_differ_in_what_they_gather_and_reduce() -> None:
    """ZeRO-1 sums whole 32-bit gradients over micro-batches, ZeRO-2 their shards; ZeRO-3 gathers a layer at a time."""
    one, two, three = (found(f"num_micro_batches=2,zero_stage={stage}") for stage in (1, 2, 3))
    assert one.num_bytes["gradients"] >= 4 * WHOLE
    assert two.num_bytes["gradients"] < 4 * WHOLE / 2
    assert one.num_bytes["gathered_parameters"] == two.num_bytes["gathered_parameters"] == 2 * WHOLE
    assert three.num_bytes["gathered_parameters"] < WHOLE


def test_a_pipeline_keeps_weights_gathered_and_gradients_whole() -> None:
    """2 bytes per parameter of the stage, and 4 of gradient, though both are sharded over 4 ranks between steps."""
    run = found("num_stages=2,num_micro_batches=4")
    stage = 2 * LAYER + EMBEDDING
    assert run.num_bytes["gathered_parameters"] == 2 * stage
    assert run.num_bytes["gradients"] >= 4 * stage
    assert run.num_bytes["optimizer"] < 8 * stage / 3


def test_1f1b_holds_fewer_micro_batches_the_later_the_stage() -> None:
    """Stages 0 and 1 of 4 hold 4 and 3 micro-batches; twice as many in all are far from twice the activations."""
    plan = "num_stages=4,num_micro_batches=8"
    first, second, _ = stage_ranks(parse_plan(plan), 8)
    held = found(plan, first).num_bytes["activations"]
    assert held > found(plan, second).num_bytes["activations"]
    assert held < 1.5 * found("num_stages=4,num_micro_batches=4").num_bytes["activations"]


def test_gpipe_holds_all_micro_batches() -> None:
    """Twice as many are twice the activations or more: the peak moves to where all are held and gradients are there."""
    few, many = (found(f"num_stages=4,num_micro_batches={m},schedule=gpipe").num_bytes for m in (4, 8))
    assert many["activations"] >= 2 * few["activations"]
    assert many["parameters"] == few["parameters"]


@pytest.mark.parametrize("schedule", ["interleaved,virtual_stages=2", "zero_bubble"])
def test_other_schedules_hold_the_same_weights(schedule: str) -> None:
    """Whatever the order of passes, a rank keeps, gathers and updates its layers."""
    run, usual = (
        found(f"num_stages=2,num_micro_batches=4,schedule={schedule}"),
        found("num_stages=2,num_micro_batches=4"),
    )
    for purpose in ("parameters", "gathered_parameters", "optimizer"):
        assert run.num_bytes[purpose] == pytest.approx(usual.num_bytes[purpose], abs=256), purpose
    assert run.num_bytes["activations"] > 0


def test_recomputation_trades_activations() -> None:
    """Full recomputation keeps less than half of the activations, and the same weights."""
    none, full = found("num_micro_batches=2"), found("num_micro_batches=2,recomputation=full")
    assert 2 * full.num_bytes["activations"] < none.num_bytes["activations"]
    assert full.num_bytes["parameters"] == none.num_bytes["parameters"]


def test_pure_bf16_keeps_half() -> None:
    """Weights and moments in 2 bytes; fp32 gathers and computes in 4, but norms and the loss do so in mixed too."""
    mixed, half, full = (found("num_micro_batches=1", precision=name) for name in ("bf16-mixed", "bf16", "fp32"))
    assert half.num_bytes["optimizer"] == pytest.approx(mixed.num_bytes["optimizer"] / 2, rel=0.01)
    assert full.num_bytes["gathered_parameters"] == 2 * mixed.num_bytes["gathered_parameters"]
    assert 1 < full.num_bytes["activations"] / mixed.num_bytes["activations"] < 2


def test_tensor_parallel_ranks_share_each_layer() -> None:
    """In processes of their own, in the order of the ranks asked for; sequence parallelism splits what lies between."""
    fork_server()  # those of `dry_runs` are then forked from it too
    plans = [f"num_stages=2,num_micro_batches=2,tp=2,sequence_parallel={flag}" for flag in ("true", "false")]
    split, whole = (dry_runs(config_of(plan), MODEL, world_size=4, local_size=4, ranks=[0, 2]) for plan in plans)
    assert [(run.rank, run.stage, run.num_stages) for run in split] == [(0, 0, 2), (2, 1, 2)]
    assert split[0].num_bytes["parameters"] == pytest.approx(4 * (2 * LAYER + EMBEDDING) / 2, rel=0.02)
    assert split[0].num_bytes["activations"] < whole[0].num_bytes["activations"]
    assert all(tuple(run.num_bytes) == PURPOSES and run.total_bytes == sum(run.num_bytes.values()) for run in split)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_each_stage_of_split_layers_can_be_asked_for_in_turn() -> None:
    """One dry run leaves nothing behind that names the process groups of another."""
    config = config_of("num_stages=2,num_micro_batches=2,tp=2")
    stages = [dry_run(config, MODEL, world_size=8, local_size=4, rank=rank).stage for rank in (0, 4, 0)]
    assert stages == [0, 1, 0]


def test_packed_rows_run_dry() -> None:
    """Their masks are made from positions, whose values fake tensors do not have."""
    config = config_of("num_micro_batches=1", data=DataConfig(seq_len=64, packing=True))
    run = dry_run(config, MODEL, world_size=2, local_size=2, rank=1)
    assert run.total_bytes > found("num_micro_batches=1", world_size=2, rank=1).total_bytes


def test_nothing_is_left_behind() -> None:
    """Afterwards there is no process group, and tensors have values again."""
    found("num_stages=2,num_micro_batches=4")
    assert not dist.is_initialized()
    assert torch.ones(2).sum().item() == 2


@pytest.mark.parametrize("rank", [-1, 8])
def test_a_rank_that_is_none_of_the_run_is_refused(rank: int) -> None:
    """The message says which there are."""
    with pytest.raises(ValueError, match=f"rank: {rank} is none of 8 ranks; give one from 0 to 7"):
        check_dry_run(config_of("num_micro_batches=1"), 8, rank)


def test_attention_that_needs_a_device_is_refused() -> None:
    """The message says which kernel stands for it."""
    config = config_of("num_micro_batches=1", attention="flash_attention_2")
    with pytest.raises(ValueError, match=r"attention: flash_attention_2 cannot be run dry.*give --attention sdpa"):
        dry_run(config, MODEL, world_size=8, local_size=4, rank=0)
