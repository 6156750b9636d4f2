import json
from dataclasses import replace

import pytest

from estimator.formulas.inputs import StepInputs, step_inputs
from estimator.formulas.machine import Machine
from estimator.stack.recipe import Recipe
from estimator.stack.stack import load_premises
from estimator.work.plan import parse_plan
from estimator.work.shape import shape_from_config
from estimator.work.workload import Workload
from hardware.catalog import load_catalog
from hardware.command import open_console
from tests.trainer.look_ahead.test_dry_run import MODEL, config_of
from trainer.look_ahead.dry_run import dry_run
from trainer.look_ahead.dry_run_report import print_verified, verified_document
from trainer.look_ahead.verify import MOST_OFF, Verified, terms_of, verify
from trainer.parallel.adapters import PROJECTIONS, AdapterConfig

CATALOG = load_catalog()


def inputs_of(text: str, num_devices: int, seq_len: int = 64) -> StepInputs:
    """Return what a plan of the small model is predicted from, layers not compiled."""
    machine = Machine.of(CATALOG, CATALOG.flavor_of("h100-sxm-80gb", num_devices))
    habits = load_premises("reference").habits.model_copy(update={"execution": "eager"})
    workload = Workload(shape_from_config(MODEL.to_dict(), "small"), seq_len, 64, 1)
    return step_inputs(parse_plan(text), workload, machine, habits)


def verified(text: str, rank: int = 0) -> Verified:
    """Return the account of a rank of eight."""
    run = dry_run(config_of(text), MODEL, world_size=8, local_size=4, rank=rank)
    (found,) = verify([run], inputs_of(text, 8))
    return found


@pytest.mark.parametrize(
    ("plan", "rank"),
    [
        ("num_micro_batches=2", 0),
        ("num_micro_batches=1,recomputation=full", 0),
        ("num_micro_batches=1,recomputation=selective", 0),
        ("num_stages=2,num_micro_batches=3", 0),
        ("num_stages=2,num_micro_batches=3", 4),
    ],
)
def test_flop_of_a_stage_are_those_that_torch_counts(plan: str, rank: int) -> None:
    """To the last one, whatever is repeated or staged."""
    flop = verified(plan, rank).flop
    assert flop.counted == flop.predicted > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:Detected that context_fn")
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize(
    ("plan", "targets"),
    [
        ("num_micro_batches=2", PROJECTIONS),
        ("num_micro_batches=2", ("o_proj",)),
        ("num_micro_batches=2", ("down_proj",)),
        ("num_micro_batches=1,recomputation=full", PROJECTIONS),
        ("num_micro_batches=1,recomputation=selective", PROJECTIONS),
        ("num_micro_batches=2,tp=2", PROJECTIONS),
        ("num_micro_batches=2,tp=2,sequence_parallel=false", PROJECTIONS),
    ],
)
def test_flop_of_adapters_are_those_that_torch_counts(plan: str, targets: tuple[str, ...], compiles: bool) -> None:
    """To the last one: frozen weights ask for no gradients, and nothing asks below the first adapter."""
    adapters = AdapterConfig(4, 8.0, targets)
    inputs = inputs_of(plan, 8)
    habits = inputs.habits.model_copy(update={"execution": "compiled" if compiles else "eager"})
    shape = Recipe(lora_rank=4, lora_targets=adapters.shape_targets).shape(inputs.shape)
    config = config_of(plan, adapters=adapters, compiles=compiles)
    run = dry_run(config, MODEL, world_size=8, local_size=4, rank=0)
    (found,) = verify([run], inputs._replace(shape=shape, habits=habits))
    assert found.flop.counted == found.flop.predicted > 0


def test_every_byte_has_its_term() -> None:
    """Terms of both sides sum to their totals, and a part that no term knows is refused."""
    found = verified("num_micro_batches=2")
    assert found.total.counted == found.run.total_bytes
    with pytest.raises(AssertionError):
        terms_of({"optimizer": 1}, {"something else": 2.0})


def test_the_term_that_is_off_is_named_with_both_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """A prediction without the optimizer's state does not hold, and the line says where and by how much."""
    found = verified("num_micro_batches=2")
    right = tuple(replace(t, predicted=t.counted) for t in found.terms)
    assert replace(found, terms=right).holds
    off = replace(found, terms=tuple(replace(t, predicted=0.0) if t.name == "optimizer" else t for t in right))
    assert not off.holds
    assert off.furthest.name == "optimizer"
    assert abs(off.total.off) > MOST_OFF * off.total.counted
    print_verified(open_console(), [off])
    said = capsys.readouterr().out
    assert "most of it optimizer state" in said
    assert "0 MiB predicted" in said
    assert "does not hold" in said
    document = verified_document([off])
    assert json.loads(json.dumps(document))["stages"][0]["furthest"] == "optimizer"
    assert document["holds"] is False
