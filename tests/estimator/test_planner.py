from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.machine import Machine
from estimator.plan import Plan, Plans, moai_space
from estimator.planner import Estimate, evaluate, search
from estimator.shape import load_shape
from estimator.stack import load_stack
from estimator.workload import Workload
from hardware.catalog import load_catalog
from hardware.models import Accelerator, Node

CATALOG, STACK = load_catalog(), load_stack("moai-24.2")
SEED = Workload(load_shape("mistralai/Mistral-7B-v0.1"), 2048, 256, 144)
PLANS = st.builds(
    Plan,
    num_stages=st.sampled_from([1, 2, 4, 8]),
    num_micro_batches=st.sampled_from([1, 2, 8, 16, 64]),
    batch_per_device=st.integers(1, 8),
    tp=st.sampled_from([1, 2, 4]),
    recomputation=st.sampled_from(["none", "selective", "full"]),
    zero_stage=st.integers(0, 3),
    schedule=st.sampled_from(["gpipe", "1f1b"]),
)


def estimated(flavor: str, workload: Workload = SEED, plan: Plan | None = None) -> Estimate:
    """Return the estimate of a workload on a flavor under the platform's stack."""
    return search(workload, CATALOG.flavor(flavor), STACK, CATALOG, plan)


@settings(max_examples=30)
@given(st.lists(PLANS, min_size=2, max_size=6))
def test_row_i_of_a_table_equals_plan_i_alone(plans: list[Plan]) -> None:
    """Many plans evaluated at once have, to the bit or nearly, the numbers that each has alone."""
    machine = Machine.of(CATALOG, CATALOG.flavor("4xlarge"))
    table = evaluate(Plans.of(plans), SEED, machine, STACK)
    for i, plan in enumerate(plans):
        row, alone = table.row(i, None), evaluate(Plans.of([plan]), SEED, machine, STACK).row(0, None)
        assert row.reason == alone.reason
        assert row.step_s == pytest.approx(alone.step_s, rel=1e-12)
        assert row.total_bytes == pytest.approx(alone.total_bytes, rel=1e-12)
        assert row.step_breakdown == pytest.approx(alone.step_breakdown, rel=1e-12)
        assert row.memory_breakdown == pytest.approx(alone.memory_breakdown, rel=1e-12)


@settings(max_examples=30)
@given(PLANS)
def test_breakdowns_sum(plan: Plan) -> None:
    """Seconds by purpose sum to the step, bytes by purpose to the fullest device."""
    found = estimated("4xlarge", plan=plan).plans[0]
    assert sum(found.step_breakdown.values()) == pytest.approx(found.step_s.value)
    assert sum(found.memory_breakdown.values()) == pytest.approx(found.device_bytes.value)


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
        assert plan.possible == (not plan.is_illegal and plan.device_bytes.value <= found.usable_bytes)
    assert found.num_candidates == len(moai_space(CATALOG.flavor(flavor), batch))


def doubled(machine: Machine) -> Machine:
    """Return a machine with twice every rate and no latency."""
    accelerator, node = machine.accelerator, machine.node
    rates = {name: 2 * getattr(accelerator, name) for name in ("bf16_flop_per_s", "hbm_bytes_per_s")}
    links = tuple(
        link.model_copy(update={"bytes_per_s": 2 * link.bytes_per_s, "latency_s": 0.0}) for link in node.links
    )
    network = node.network.model_copy(update={"bytes_per_s": 2 * node.network.bytes_per_s, "latency_s": 0.0})
    faster: Accelerator = accelerator.model_copy(update=rates)
    nearer: Node = node.model_copy(update={"links": links, "network": network})
    return machine._replace(accelerator=faster, node=nearer)


@settings(max_examples=20)
@given(PLANS)
def test_twice_every_rate_halves_the_devices_time(plan: Plan) -> None:
    """With twice the FLOP/s and every bandwidth, and no latency, device seconds halve and memory stays."""
    machine = Machine.of(CATALOG, CATALOG.flavor("4xlarge"))
    links = tuple(link.model_copy(update={"latency_s": 0.0}) for link in machine.node.links)
    network = machine.node.network.model_copy(update={"latency_s": 0.0})
    plain = machine._replace(node=machine.node.model_copy(update={"links": links, "network": network}))
    slow, fast = (evaluate(Plans.of([plan]), SEED, m, STACK).row(0, None) for m in (plain, doubled(machine)))
    assert fast.device_s == pytest.approx(slow.device_s / 2)
    assert fast.device_bytes == pytest.approx(slow.device_bytes)


def test_an_unmeasured_device_has_a_wider_interval() -> None:
    """The stack was fitted on MI250: on MI300X the interval of the step is wider."""
    seen, unseen = estimated("xlarge").plans[0].step_s, estimated("mi300x8").plans[0].step_s
    assert unseen.high / unseen.low > seen.high / seen.low


def test_an_unmeasured_family_has_a_wider_interval() -> None:
    """The same model under the name of a family that the stack never ran has a wider interval."""
    unseen = Workload(replace(SEED.shape, family="unseen"), 2048, 256, 144)
    plan = Plan(num_stages=2, num_micro_batches=16)
    known, unknown = (estimated("4xlarge", workload, plan).plans[0].step_s for workload in (SEED, unseen))
    assert unknown.high / unknown.low > known.high / known.low


def test_chosen_and_fastest_plan() -> None:
    """The stack's own planner ignores the issue of work, so that the fastest step may be another plan's."""
    found = estimated("4xlarge")
    assert found.best is not None
    assert found.fastest is not None
    assert found.best.device_s <= found.fastest.device_s
    assert found.fastest.step_s.value <= found.best.step_s.value


def test_two_paces_average_to_the_step() -> None:
    """A step at the host's fast and one at its slow pace, in their shares, average to the mean step."""
    best = estimated("4xlarge").best
    assert best is not None
    slow = STACK.window.slow_fraction
    assert (1 - slow) * best.fast_step_s + slow * best.slow_step_s == pytest.approx(best.step_s.value)


def test_directions_reproduce_the_covariance() -> None:
    """The 1-sigma moves of the parameters have the covariance of the fit."""
    moves = STACK.directions("mistral")
    names = [*STACK.priors, "mistral"]
    index = [STACK.fit.names.index(name) for name in names]
    assert moves.T @ moves == pytest.approx(np.asarray(STACK.fit.covariance)[np.ix_(index, index)], abs=1e-9)


def test_every_plan_field_is_an_array_field() -> None:
    """A plan and the arrays of many plans have the same fields, in the same order."""
    assert [f.name for f in fields(Plan)] == [f.name for f in fields(Plans)]
