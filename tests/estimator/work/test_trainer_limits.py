from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.search.planner import search
from estimator.stack.stack import load_stack
from estimator.work.plan import Plan, Plans
from estimator.work.shape import Shape, load_shape
from estimator.work.trainer_limits import FAMILIES, are_trainable, untrainable_reason
from estimator.work.workload import Workload
from hardware.catalog import load_catalog
from tests.support.strategies import plans, shapes

MISTRAL = load_shape("mistralai/Mistral-7B-v0.1")


def is_trained(plan: Plan, shape: Shape) -> bool:
    """Whether the trainer runs a plan that keeps the layout's rules, written a second time."""
    rounds = max(plan.num_micro_batches // plan.num_stages, 1)
    return (
        shape.family in FAMILIES
        and plan.cp == plan.ep == 1
        and not plan.offload_optimizer
        and shape.vocab_size % plan.tp == 0
        and not (shape.tied_embeddings and (plan.num_stages, plan.tp) != (1, 1))
        and not (plan.schedule == "zero_bubble" and plan.num_micro_batches % rounds)
    )


few = plans(st.integers(1, 9), st.integers(1, 3))
mostly_alone = few.map(lambda plan: replace(plan, cp=1, ep=1, offload_optimizer=False))
shapes_with_adapters = st.builds(
    lambda shape, rank: replace(shape, lora_rank=rank), shapes(), st.sampled_from([0, 0, 0, 4])
)


@given(shape=shapes_with_adapters, chosen=st.lists(few | mostly_alone, min_size=1, max_size=20))
def test_the_rules_are_the_trainers(shape: Shape, chosen: list[Plan]) -> None:
    """The flags of many plans at once, the reason of each alone, and the rules written a second time agree."""
    flags = are_trainable(Plans.of(chosen), shape).tolist()
    assert flags == [untrainable_reason(plan, shape) == "" for plan in chosen]
    assert flags == [is_trained(plan, shape) for plan in chosen]


def test_a_grid_has_the_flags_of_its_plans() -> None:
    """Columns that broadcast against each other give each plan of the grid its own flag."""
    grid = Plans(tp=np.array([[1], [3], [64]]), cp=np.array([[1, 2]]))
    assert are_trainable(grid, MISTRAL).tolist() == [[True, False], [False, False], [True, False]]


@pytest.mark.parametrize(
    ("plan", "changes", "said"),
    [
        (
            Plan(),
            {"family": "gpt2"},
            f"the trainer has no gpt2 models such as '{MISTRAL.name}'; use one of llama, mistral, qwen2, qwen3",
        ),
        (Plan(cp=2), {}, "cp=2: the trainer splits no sequences over devices; use cp=1"),
        (Plan(ep=2), {}, "ep=2: the trainer has no experts to share; use ep=1"),
        (
            Plan(offload_optimizer=True),
            {},
            "offload_optimizer=true: the trainer keeps its optimizer on the devices; leave it out",
        ),
        (Plan(tp=3), {}, "tp=3 does not divide vocab_size=32000 of 'mistralai/Mistral-7B-v0.1'; use a divisor of it"),
        *(
            (
                plan,
                {"tied_embeddings": True},
                f"'{MISTRAL.name}' ties its embeddings, which the trainer does not split; use num_stages=1 and tp=1",
            )
            for plan in (Plan(num_stages=2), Plan(tp=2))
        ),
        (
            Plan(num_stages=4, num_micro_batches=9, schedule="zero_bubble"),
            {},
            "num_micro_batches=9 makes no equal rounds of num_stages=4; schedule=zero_bubble needs a multiple of it",
        ),
        (
            Plan(num_stages=2, num_micro_batches=4, schedule="zero_bubble", recomputation="selective"),
            {},
            (
                "recomputation=selective: what it keeps is read once, and schedule=zero_bubble's two backward passes "
                "repeat a layer each; use full or none, or schedule=1f1b"
            ),
        ),
    ],
)
def test_what_the_trainer_cannot_run_is_told(plan: Plan, changes: dict[str, object], said: str) -> None:
    """Each limit says what was given, and the mend."""
    assert untrainable_reason(plan, replace(MISTRAL, **changes)) == said


def test_the_planner_of_its_stack_keeps_the_limits() -> None:
    """Under the trainer's own stack no plan of the full space breaks a limit; under another, plans do."""
    catalog = load_catalog()
    workload = Workload(load_shape("mistralai/Mistral-7B-v0.1"), 2048, 64, 10)
    flavor = catalog.flavor("xlarge")
    own, other = (
        search(workload, flavor, load_stack(name), catalog, space="full") for name in ("reference", "moai-24.2")
    )
    assert own.num_candidates < other.num_candidates
    assert all(not untrainable_reason(found.plan, workload.shape) for found in own.plans)
    refused = search(workload, flavor, load_stack("reference"), catalog, plan=Plan(cp=8, num_micro_batches=64))
    assert refused.plans[0].is_illegal
    assert "cp=8: the trainer splits no sequences" in refused.plans[0].reason
