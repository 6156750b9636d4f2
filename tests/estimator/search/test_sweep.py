from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.formulas.machine import Machine
from estimator.predict.evaluate import PlanEstimate, evaluate
from estimator.search.spaces import Block, full_space, moai_space
from estimator.search.sweep import sweep
from estimator.stack.stack import load_stack
from estimator.work.plan import Plans
from estimator.work.rules import are_legal
from estimator.work.shape import load_shape
from estimator.work.workload import Workload
from hardware.catalog import load_catalog
from hardware.models import Flavor

CATALOG, STACK = load_catalog(), load_stack("moai-24.2")
MISTRAL = load_shape("mistralai/Mistral-7B-v0.1")
FEW = settings(max_examples=max(settings.default.max_examples // 10, 5))
"""A whole space is evaluated for each example."""


def machine_of(accelerator: str, num_devices: int, *, memory: float = 1.0, host_memory: float = 1.0) -> Machine:
    """Return devices with so much of their memory, and of their hosts'."""
    machine = Machine.of(CATALOG, CATALOG.flavor_of(accelerator, num_devices))
    device, host = machine.accelerator, machine.node.host
    assert host is not None
    less = host.model_copy(update={"memory_bytes": host_memory * host.memory_bytes})
    return machine._replace(
        accelerator=device.model_copy(update={"hbm_bytes": memory * device.hbm_bytes}),
        node=machine.node.model_copy(update={"host": less}),
    )


def flat(block: Block) -> Plans:
    """Return a block's distinct plans without its grid."""
    shape = block.plans.shape
    kept = np.broadcast_to(block.is_distinct, shape)
    return Plans(**{name: np.broadcast_to(array, shape)[kept] for name, array in block.plans.arrays.items()})


def one_by_one(blocks: Iterable[Block], workload: Workload, machine: Machine) -> list[PlanEstimate]:
    """Return the estimate of each plan, from tables without grids, whose rows are their plans alone."""
    tables = [evaluate(flat(block), workload, machine, STACK) for block in blocks]
    return [table.row(i, None) for table in tables for i in range(len(table.plans))]


CASES = {
    "all fit": ("mi300x", 1, 1.0, 1.0, 2, 2),
    "half fit": ("h100-sxm-80gb", 2, 0.14, 0.01, 2, 4),
    "few fit": ("mi250", 4, 0.045, 0.02, 1, 4),
    "none fits": ("mi250", 1, 0.05, 1.0, 2, 4),
}
"""Accelerator, devices, part of their memory and of their host's, rows, layers."""


@pytest.mark.parametrize("case", CASES)
def test_a_sweep_finds_what_a_loop_finds(case: str) -> None:
    """The best of a sweep are the least of a loop over its plans alone: the safe ones first, or the nearest miss."""
    accelerator, num_devices, memory, host_memory, batch, layers = CASES[case]
    workload = Workload(replace(MISTRAL, num_layers=layers), 1024, batch, 10)
    machine = machine_of(accelerator, num_devices, memory=memory, host_memory=host_memory)
    found = sweep(full_space(workload, machine, STACK.habits), workload, machine, STACK, kept=5)
    alone = one_by_one(full_space(workload, machine, STACK.habits), workload, machine)
    possible = [plan for plan in alone if plan.possible]
    assert found.num_plans == len(alone)
    assert found.num_possible == len(possible)
    by_plan = {plan.plan: plan for plan in alone}
    assert len(set(found.best)) == len(found.best)
    best = [by_plan[plan] for plan in found.best]
    if not possible:
        assert [plan.memory.per_device_bytes.value for plan in best] == [
            min(plan.memory.per_device_bytes.value for plan in alone)
        ]
        return
    expected = [
        seconds
        for is_risky in (False, True)
        for seconds in sorted(plan.step_s.value for plan in possible if plan.is_risky == is_risky)[:5]
    ]
    assert [plan.step_s.value for plan in best] == pytest.approx(expected, rel=1e-12)
    assert [plan.is_risky for plan in best] == sorted(plan.is_risky for plan in best)


def test_how_many_are_faster() -> None:
    """As many plans are faster than asked for as fit and take less, whatever is kept."""
    workload, machine = (
        Workload(replace(MISTRAL, num_layers=4), 1024, 2, 10),
        machine_of("h100-sxm-80gb", 2, memory=0.14),
    )
    blocks = list(full_space(workload, machine, STACK.habits))
    rows = one_by_one(blocks, workload, machine)
    seconds = sorted(plan.step_s.value for plan in rows if plan.possible)
    for limit in (0.0, seconds[len(seconds) // 2] * (1 + 1e-9), 2 * seconds[-1]):
        found = sweep(blocks, workload, machine, STACK, kept=1, faster_than=limit)
        assert found.num_faster == sum(each < limit for each in seconds)


def optimum(blocks: Iterable[Block], workload: Workload, machine: Machine) -> float:
    """Return the seconds of the fastest step that fits; infinite where none does."""
    found = sweep(blocks, workload, machine, STACK, kept=1)
    if not found.num_possible:
        return float("inf")
    return float(evaluate(Plans.of(found.best), workload, machine, STACK).prediction.step.seconds.min())


def best_of_all(workload: Workload, machine: Machine) -> float:
    """Return the seconds of the fastest step of the full space that fits."""
    return optimum(full_space(workload, machine, STACK.habits), workload, machine)


works = st.builds(
    lambda layers, batch: Workload(replace(MISTRAL, num_layers=layers), 1024, batch, 10),
    st.integers(1, 12),
    st.integers(1, 24),
)
names = st.sampled_from(["mi250", "mi210", "h100-sxm-80gb", "mi300x"])
sizes = st.sampled_from([1, 2, 4, 8, 12, 16])
memories = st.floats(0.02, 1)


@FEW
@given(works, names, sizes, memories, st.floats(1, 4))
def test_more_memory_is_never_slower(workload: Workload, name: str, num_devices: int, part: float, more: float) -> None:
    """The fastest step of all plans gets no slower with more memory."""
    little, much = (machine_of(name, num_devices, memory=memory) for memory in (part, more * part))
    assert best_of_all(workload, much) <= best_of_all(workload, little) * (1 + 1e-12)


@FEW
@given(works, names, sizes, memories, st.floats(1, 10), st.sampled_from(["links", "network", "host"]))
def test_faster_wires_are_never_slower(
    workload: Workload, name: str, num_devices: int, part: float, factor: float, what: str
) -> None:
    """The fastest step of all plans gets no slower with faster links, a faster network, or a faster host."""
    machine = machine_of(name, num_devices, memory=part)
    node, host = machine.node, machine.node.host
    assert host is not None
    links = tuple(link.model_copy(update={"bytes_per_s": factor * link.bytes_per_s}) for link in node.links)
    network = node.network.model_copy(update={"bytes_per_s": factor * node.network.bytes_per_s})
    rates = {field: factor * getattr(host, field) for field in ("bytes_per_s", "link_bytes_per_s")}
    changed = {"links": links, "network": network, "host": host.model_copy(update=rates)}
    faster = machine._replace(node=node.model_copy(update={what: changed[what]}))
    assert best_of_all(workload, faster) <= best_of_all(workload, machine) * (1 + 1e-12)


@FEW
@given(works, st.sampled_from([f for f in CATALOG.flavors if f.num_devices <= 32]), memories)
def test_a_larger_space_is_never_slower(workload: Workload, flavor: Flavor, part: float) -> None:
    """The fastest step of all plans is no slower than that of the platform's plans."""
    machine = Machine.of(CATALOG, flavor)
    few = machine.accelerator.model_copy(update={"hbm_bytes": part * machine.accelerator.hbm_bytes})
    machine = machine._replace(accelerator=few)
    platform = moai_space(flavor, workload.global_batch)
    legal = [platform[i] for i in np.flatnonzero(are_legal(platform, workload, machine.num_devices))]
    of_platform = optimum([Block(Plans.of(legal), np.True_)] if legal else [], workload, machine)
    assert best_of_all(workload, machine) <= of_platform * (1 + 1e-12)
