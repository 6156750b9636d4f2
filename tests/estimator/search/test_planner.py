import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.search.planner import Estimate, search
from estimator.search.spaces import moai_space
from estimator.stack.stack import load_stack
from estimator.work.plan import Plan
from estimator.work.shape import load_shape
from estimator.work.workload import Workload
from hardware.catalog import load_catalog

CATALOG, STACK = load_catalog(), load_stack("moai-24.2")
SEED = Workload(load_shape("mistralai/Mistral-7B-v0.1"), 2048, 256, 144)


def estimated(flavor: str, workload: Workload = SEED, plan: Plan | None = None, space: str = "moai") -> Estimate:
    """Return the estimate of a workload on a flavor under the platform's stack."""
    return search(workload, CATALOG.flavor(flavor), STACK, CATALOG, plan, space)


@given(st.sampled_from([f.id for f in CATALOG.flavors]), st.integers(1, 64).map(lambda n: 16 * n))
@settings(max_examples=40)
def test_ranking(flavor: str, batch: int) -> None:
    """Possible plans come first, by device seconds; each fits, and each that does not says why."""
    found = estimated(flavor, Workload(SEED.shape, 2048, batch, 10))
    possible = [plan.possible for plan in found.plans]
    assert possible == sorted(possible, reverse=True)
    seconds = [plan.device_s for plan in found.plans if plan.possible]
    assert seconds == sorted(seconds)
    for plan in found.plans:
        assert plan.possible == (not plan.is_illegal and plan.memory.per_device_bytes.value <= found.usable_bytes)
    assert found.num_candidates == len(moai_space(CATALOG.flavor(flavor), batch))


def test_chosen_and_fastest_plan() -> None:
    """The stack's own planner ignores the launch of work, so that the fastest step may be another plan's."""
    found = estimated("4xlarge")
    assert found.best is not None
    assert found.fastest is not None
    assert found.best.device_s <= found.fastest.device_s
    assert found.fastest.step_s.value <= found.best.step_s.value


@pytest.mark.parametrize(("flavor", "batch"), [("xLarge.512GB", 64), ("4xLarge.2048GB", 256)])
def test_the_full_space_is_never_slower(flavor: str, batch: int) -> None:
    """The fastest plan of all that can run is as fast as the platform's fastest, or faster."""
    workload = Workload(SEED.shape, 2048, batch, 10)
    platform, full = (estimated(flavor, workload, space=space) for space in ("moai", "full"))
    assert platform.fastest is not None
    assert full.fastest is not None
    assert full.fastest.step_s.value <= platform.fastest.step_s.value * (1 + 1e-12)
    assert full.num_possible >= platform.num_possible


def test_the_full_space_is_ranked_by_step_and_safety() -> None:
    """Of all plans, those whose interval of memory fits come first, each kind by the seconds of its step."""
    found = estimated("4xLarge.2048GB", space="full").plans
    assert all(plan.possible for plan in found)
    order = [(plan.is_risky, plan.step_s.value) for plan in found]
    assert order == sorted(order)
    assert {is_risky for is_risky, _ in order} == {False, True}


def test_how_many_are_faster() -> None:
    """Between none and all of the plans that fit take less than asked for: those whose step does."""
    found = estimated("4xLarge.2048GB")
    seconds = sorted(plan.step_s.value for plan in found.plans if plan.possible)
    flavor = CATALOG.flavor("4xLarge.2048GB")
    for count, limit in enumerate(seconds):
        assert search(SEED, flavor, STACK, CATALOG, faster_than=limit).num_faster == count
