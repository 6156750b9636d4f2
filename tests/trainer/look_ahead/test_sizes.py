from dataclasses import replace

import pytest

from estimator.work.plan import Plan, parse_plan
from tests.support.tiny import mistral_of
from trainer.config import TrainConfig
from trainer.data.dataset import DataConfig
from trainer.look_ahead.dry_run import dry_run
from trainer.look_ahead.sizes import Measured, Size, extrapolated, measured_sizes, size_of

MODEL = mistral_of(7)


@pytest.mark.parametrize(
    ("plan", "layers", "rank"),
    [
        ("num_micro_batches=1", 7, 0),
        ("num_micro_batches=4,recomputation=full", 6, 0),
        ("num_micro_batches=4,zero_stage=1", 5, 0),
        ("num_stages=2,num_micro_batches=5", 10, 0),
        ("num_stages=2,num_micro_batches=5", 10, 4),
        ("num_stages=2,num_micro_batches=5,schedule=gpipe", 10, 4),
        ("num_stages=2,num_micro_batches=10,schedule=zero_bubble", 10, 4),
        ("num_micro_batches=1,tp=2", 5, 0),
    ],
)
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")  # of the embedding under tp
def test_a_few_layers_and_micro_batches_tell_of_all(plan: str, layers: int, rank: int) -> None:
    """What is run and extrapolated equals a run of the whole to the byte, for each purpose, and to the FLOP."""
    model = mistral_of(layers)
    config = replace(TrainConfig(plan=parse_plan(plan), data=DataConfig(seq_len=64)), precision="bf16-mixed")
    few, whole = (
        dry_run(config, model, world_size=8, local_size=4, rank=rank, in_full=in_full) for in_full in (False, True)
    )
    assert few.num_bytes == whole.num_bytes
    assert (few.num_flop, few.phase) == (whole.num_flop, whole.phase)


@pytest.mark.parametrize(
    ("plan", "whole", "run"),
    [
        (Plan(), Size(32, 1), [(3, 1), (4, 1)]),
        (Plan(num_micro_batches=64), Size(32, 64), [(3, 2), (3, 3), (4, 2), (4, 3)]),
        (Plan(), Size(4, 1), [(4, 1)]),
        (Plan(recomputation="full", recomputed_layers=5), Size(32, 1), [(32, 1)]),
        (
            Plan(num_stages=2, schedule="interleaved", virtual_stages=2),
            Size(8, 32),
            [(3, 8), (3, 10), (4, 8), (4, 10)],
        ),
    ],
)
def test_no_more_is_run_than_it_takes(plan: Plan, whole: Size, run: list[tuple[int, int]]) -> None:
    """Small models run whole, and so do those whose layers a plan tells apart."""
    assert measured_sizes(plan, whole) == run


def test_the_fullest_phase_of_the_whole_need_not_be_that_of_a_small_one() -> None:
    """With few layers the loss is fullest, with many the backward pass of the last."""
    found = {
        Size(n, 1): Measured({"loss": {"activations": 100}, "backward": {"activations": 10 * n}}, n) for n in (3, 4)
    }
    phases = extrapolated(found, Size(32, 1)).phases
    assert max(phases, key=lambda name: sum(phases[name].values())) == "backward"
    assert phases["backward"] == {"activations": 320}


def test_a_stage_of_uneven_layers_has_its_own_size() -> None:
    """Of seven layers over three stages, two, three and two."""
    plan = Plan(num_stages=3, num_micro_batches=4, first_layers=2, last_layers=2)
    assert [size_of(plan, MODEL, stage) for stage in range(3)] == [(2, 4), (3, 4), (2, 4)]
