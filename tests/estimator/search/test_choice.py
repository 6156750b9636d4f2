from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.failures import DEVICE_MTBF_S
from estimator.predict.evaluate import PlanEstimate
from estimator.predict.interval import Range
from estimator.search.choice import Limits, choose, differences, frontier_marks, parse_duration, worth
from estimator.search.planner import Estimate, offers, search, with_failures
from estimator.stack.stack import load_stack
from estimator.work.shape import load_shape
from estimator.work.workload import Workload
from hardware.catalog import load_catalog

CATALOG, STACK = load_catalog(), load_stack("moai-24.2")
SEED = Workload(load_shape("mistralai/Mistral-7B-v0.1"), 2048, 256, 144)
FOUND = [search(SEED, flavor, STACK, CATALOG) for flavor in offers(CATALOG)]
BEST = {estimate.flavor.id: estimate.best for estimate in FOUND if estimate.best}
some = st.lists(st.sampled_from([e for e in FOUND if e.best]), min_size=1, max_size=6, unique_by=lambda e: e.flavor.id)


def plan(estimate: Estimate) -> PlanEstimate:
    """Return the best plan of an estimate that has one."""
    assert estimate.best is not None
    return estimate.best


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2.5h", 9000), ("3d", 259200), (" 1m ", 60)]
)
def test_durations(text: str, seconds: float) -> None:
    """A number and one of s, m, h, d."""
    assert parse_duration("deadline", text) == seconds


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_one_line(text: str) -> None:
    """Any text is a positive duration, or is refused in one line that names the option."""
    try:
        assert parse_duration("deadline", text) > 0
    except ValueError as error:
        assert str(error).startswith("deadline: ")  # noqa: PT017 - a duration raises nothing
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - as above


@given(some, st.sampled_from(["time", "cost", "energy"]), st.floats(600, 20000), st.floats(1, 200))
def test_the_choice_keeps_the_limits_and_is_best(
    found: list[Estimate], objective: str, deadline_s: float, budget_usd: float
) -> None:
    """What is chosen keeps both limits, and nothing that keeps them is safer, or as safe and better."""
    limits = Limits(deadline_s, budget_usd)
    kept = [e for e in found if plan(e).wall_s.value <= deadline_s and plan(e).usd and plan(e).usd.value <= budget_usd]
    chosen = choose(found, objective, limits)
    if chosen is None:
        assert kept == []
        assert all(limits.missed_by(plan(e)) for e in found)
        return
    assert limits.missed_by(plan(chosen)) == ""
    rank = (plan(chosen).is_risky, worth(plan(chosen), objective))
    assert rank == min((plan(e).is_risky, worth(plan(e), objective)) for e in kept)


@given(some, st.sampled_from(["time", "cost", "energy"]))
def test_more_to_choose_from_is_never_worse(found: list[Estimate], objective: str) -> None:
    """Among all flavors the choice is as good as among some, or better."""
    few, all_of_them = choose(found, objective, Limits()), choose(FOUND, objective, Limits())
    assert few is not None
    assert all_of_them is not None
    assert (plan(all_of_them).is_risky, worth(plan(all_of_them), objective)) <= (
        plan(few).is_risky,
        worth(plan(few), objective),
    )


def test_missed_limits_say_by_how_much() -> None:
    """A missed limit names what the plan takes and how much that is over; an unknown price keeps no budget."""
    best = BEST["4xLarge.2048GB"]
    late = replace(best, wall_s=Range(3600.0, 3000.0, 4000.0))
    assert Limits(1800).missed_by(late) == "takes 60.0 min, 30.0 min more than the deadline"
    assert Limits(3600).missed_by(late) == ""
    assert Limits(3600).may_miss(late)
    assert not Limits(4000).may_miss(late)
    dear = replace(best, usd=Range(12.5, 10.0, 20.0))
    assert Limits(budget_usd=10).missed_by(dear) == "costs 12.50 USD, 2.50 USD more than the budget"
    assert Limits(budget_usd=15).may_miss(dear)
    assert Limits(budget_usd=10).missed_by(replace(best, usd=None)).startswith("has no known price")


@given(some)
def test_nothing_on_the_frontier_is_beaten(found: list[Estimate]) -> None:
    """A flavor is on the frontier if and only if no other is as fast and as cheap, and better in one."""
    priced = {e.flavor.id: (plan(e).wall_s.value, plan(e).usd.value) for e in found if plan(e).usd}
    marks = frontier_marks(found)
    for name, (seconds, usd) in priced.items():
        beaten = any(
            other_s <= seconds and other_usd <= usd and (other_s, other_usd) != (seconds, usd)
            for other_s, other_usd in priced.values()
        )
        assert (name in marks) != beaten
    if priced:
        assert sum("fastest" in at for at in marks.values()) == sum("cheapest" in at for at in marks.values()) == 1


@given(some, some)
def test_differences_lead_from_one_step_to_the_other(some: list[Estimate], others: list[Estimate]) -> None:
    """All differences together are the difference of the steps; they come largest first."""
    one, other = plan(some[0]), plan(others[0])
    found = differences(one, other, share=0.0)
    assert sum(d.seconds for d in found) == pytest.approx(one.step_s.value - other.step_s.value, abs=1e-6)
    sizes = [abs(d.seconds) for d in found]
    assert sizes == sorted(sizes, reverse=True)


@given(some, st.floats(1e5, 1e10))
def test_failures_make_a_run_longer_and_dearer(found: list[Estimate], device_mtbf_s: float) -> None:
    """With failures, wall time, cost and energy grow by one factor; steps and memory stay."""
    estimate = found[0]
    with_them = with_failures(estimate, device_mtbf_s)
    before, after = plan(estimate), plan(with_them)
    longer = after.wall_s.value / before.wall_s.value
    assert longer >= 1
    assert after.kwh == pytest.approx(longer * before.kwh)
    if before.usd and after.usd:
        assert after.usd.high == pytest.approx(longer * before.usd.high)
    assert (after.step_s, after.memory) == (before.step_s, before.memory)
    rarely = plan(with_failures(estimate, 10 * device_mtbf_s)).wall_s.value
    assert rarely <= after.wall_s.value * (1 + 1e-9)
    assert with_failures(estimate, DEVICE_MTBF_S).best.endurance is not None


def test_offers_have_every_flavor_and_what_nodes_count() -> None:
    """The flavors of the catalog come first; then the sizes that nodes name, 27 in all; no cloud instance is there."""
    found = offers(CATALOG)
    assert found[: len(CATALOG.flavors)] == CATALOG.flavors
    sizes = [flavor.id for flavor in found[len(CATALOG.flavors) :]]
    names = ("h100-sxm-80gb", "h200-sxm-141gb", "a100-sxm-80gb")
    assert sizes == [f"{name}-{devices}" for name in names for devices in (8, 16, 32, 64)]
    assert len(found) == 27
    assert not any(flavor.provider for flavor in found)
    assert len({flavor.id for flavor in found}) == len(found)
