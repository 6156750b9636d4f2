from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.formulas.machine import Machine
from estimator.predict.evaluate import PlanEstimate, evaluate
from estimator.stack.stack import load_stack
from estimator.work.plan import Plan, Plans
from estimator.work.shape import load_shape
from estimator.work.workload import Workload
from hardware.catalog import load_catalog
from hardware.models import Accelerator, Node
from tests.support.strategies import fitting_plans

CATALOG, STACK = load_catalog(), load_stack("moai-24.2")
SEED = Workload(load_shape("mistralai/Mistral-7B-v0.1"), 2048, 256, 144)
MACHINE = Machine.of(CATALOG, CATALOG.flavor("4xlarge"))
PLANS = fitting_plans(SEED.shape, MACHINE.num_devices)


def estimated(plan: Plan, flavor: str = "4xlarge", workload: Workload = SEED) -> PlanEstimate:
    """Return what a plan needs on a flavor under the platform's stack."""
    return evaluate(Plans.of([plan]), workload, Machine.of(CATALOG, CATALOG.flavor(flavor)), STACK).row(0, None)


@settings(max_examples=30)
@given(st.lists(PLANS, min_size=2, max_size=6))
def test_row_i_of_a_table_equals_plan_i_alone(plans: list[Plan]) -> None:
    """Many plans evaluated at once have, to the bit or nearly, the numbers that each has alone."""
    table = evaluate(Plans.of(plans), SEED, MACHINE, STACK)
    for i, plan in enumerate(plans):
        row, alone = table.row(i, None), evaluate(Plans.of([plan]), SEED, MACHINE, STACK).row(0, None)
        assert row.reason == alone.reason
        assert row.step_s == pytest.approx(alone.step_s, rel=1e-12)
        assert row.memory.per_device_bytes == pytest.approx(alone.memory.per_device_bytes, rel=1e-12)
        assert row.memory.total_bytes == pytest.approx(alone.memory.total_bytes, rel=1e-12)
        assert row.step_breakdown == pytest.approx(alone.step_breakdown, rel=1e-12)
        assert row.memory.breakdown_bytes == pytest.approx(alone.memory.breakdown_bytes, rel=1e-12)


@settings(max_examples=30)
@given(PLANS)
def test_breakdowns_sum(plan: Plan) -> None:
    """Seconds by purpose sum to the step, bytes by purpose to the fullest device."""
    found = estimated(plan)
    assert sum(found.step_breakdown.values()) == pytest.approx(found.step_s.value)
    assert sum(found.memory.breakdown_bytes.values()) == pytest.approx(found.memory.per_device_bytes.value)


def doubled(machine: Machine) -> Machine:
    """Return a machine with twice every rate and no latency."""
    accelerator, node = machine.accelerator, machine.node
    rates = {name: 2 * getattr(accelerator, name) for name in ("bf16_flop_per_s", "hbm_bytes_per_s")}
    links = tuple(
        link.model_copy(update={"bytes_per_s": 2 * link.bytes_per_s, "latency_s": 0.0}) for link in node.links
    )
    network = node.network.model_copy(update={"bytes_per_s": 2 * node.network.bytes_per_s, "latency_s": 0.0})
    host = node.host
    assert host is not None
    quicker = host.model_copy(
        update={"bytes_per_s": 2 * host.bytes_per_s, "link_bytes_per_s": 2 * host.link_bytes_per_s}
    )
    faster: Accelerator = accelerator.model_copy(update=rates)
    nearer: Node = node.model_copy(update={"links": links, "network": network, "host": quicker})
    return machine._replace(accelerator=faster, node=nearer)


@settings(max_examples=20)
@given(PLANS)
def test_twice_every_rate_halves_the_devices_time(plan: Plan) -> None:
    """With twice the FLOP/s and every bandwidth, and no latency, device seconds halve and memory stays."""
    links = tuple(link.model_copy(update={"latency_s": 0.0}) for link in MACHINE.node.links)
    network = MACHINE.node.network.model_copy(update={"latency_s": 0.0})
    plain = MACHINE._replace(node=MACHINE.node.model_copy(update={"links": links, "network": network}))
    slow, fast = (evaluate(Plans.of([plan]), SEED, m, STACK).row(0, None) for m in (plain, doubled(MACHINE)))
    assert fast.device_s == pytest.approx(slow.device_s / 2)
    assert fast.memory.per_device_bytes == pytest.approx(slow.memory.per_device_bytes)


def test_an_unmeasured_device_has_a_wider_interval() -> None:
    """The stack was fitted on MI250: on the same device under a name that it never ran the interval is wider."""
    renamed = MACHINE._replace(accelerator=MACHINE.accelerator.model_copy(update={"id": "unseen"}))
    plans = Plans.of([Plan(num_stages=2, num_micro_batches=16)])
    seen, unseen = (evaluate(plans, SEED, machine, STACK).row(0, None).step_s for machine in (MACHINE, renamed))
    assert unseen.high / unseen.low > seen.high / seen.low


def test_an_unmeasured_family_has_a_wider_interval() -> None:
    """The same model under the name of a family that the stack never ran has a wider interval."""
    unseen = Workload(replace(SEED.shape, family="unseen"), 2048, 256, 144)
    plan = Plan(num_stages=2, num_micro_batches=16)
    known, unknown = (estimated(plan, workload=workload).step_s for workload in (SEED, unseen))
    assert unknown.high / unknown.low > known.high / known.low


def test_two_paces_average_to_the_step() -> None:
    """A step at the host's fast and one at its slow pace, in their shares, average to the mean step."""
    best = estimated(Plan(num_stages=2, num_micro_batches=16))
    slow = STACK.window.slow_fraction
    assert (1 - slow) * best.fast_step_s + slow * best.slow_step_s == pytest.approx(best.step_s.value)


def test_directions_reproduce_the_covariance() -> None:
    """The 1-sigma moves of the parameters have the covariance of the fit."""
    moves = STACK.directions("mistral")
    names = [*STACK.priors, "mistral"]
    index = [STACK.fit.names.index(name) for name in names]
    assert moves.T @ moves == pytest.approx(np.asarray(STACK.fit.covariance)[np.ix_(index, index)], abs=1e-9)
