from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import compress, product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.formulas.machine import Machine
from estimator.search.spaces import CHUNK, Block, full_space, moai_space, nearest_batch
from estimator.work.plan import RECOMPUTATIONS, SCHEDULES, Plan, Plans
from estimator.work.rules import are_legal
from estimator.work.shape import Shape, load_shape
from estimator.work.workload import Workload
from hardware.catalog import load_catalog
from hardware.models import Flavor
from tests.support.legality import runs, stage_lengths
from tests.support.strategies import HABITS

CATALOG = load_catalog()
NAMES = tuple(field.name for field in fields(Plans))
DENSE, MIXTURE = load_shape("mistral-7b-v0.1"), load_shape("mistralai/Mixtral-8x7B-v0.1")
FEW = settings(max_examples=max(settings.default.max_examples // 5, 5))
"""A whole space is listed for each example."""

Row = tuple[int, ...]
"""The fields of a plan in order, names as indices."""


def rows_of(plans: Plans) -> list[Row]:
    """Return every plan of a grid."""
    columns = [np.broadcast_to(getattr(plans, name), plans.shape).ravel().tolist() for name in NAMES]
    return list(zip(*columns, strict=True))


def distinct_rows(block: Block) -> list[Row]:
    """Return every plan of a block that differs from all others."""
    kept = np.broadcast_to(block.is_distinct, block.plans.shape).ravel().tolist()
    return list(compress(rows_of(block.plans), kept))


@given(st.sampled_from(CATALOG.flavors), st.integers(1, 6), st.integers(0, 10), st.sampled_from(["always", ()]))
@FEW
def test_blocks_stay_small(flavor: Flavor, odd: int, power: int, fused: str) -> None:
    """A block is a grid of a bounded number of plans, unless it is one layout; most of them differ from all others."""
    habits = HABITS.model_copy(update={"fused_attention": fused})
    workload = Workload(MIXTURE, 2048, odd * 2**power, 1)
    for block in full_space(workload, Machine.of(CATALOG, flavor), habits):
        layouts, *ways = block.plans.shape
        assert layouts == 1 or len(block.plans) <= CHUNK
        assert len(block.plans) == layouts * prod(ways) > 0
        assert np.broadcast_to(block.is_distinct, block.plans.shape).mean() > 0.3


def every_layout(workload: Workload, num_devices: int) -> Iterator[Plan]:
    """Yield each way to spread a small workload's work that runs, one by one."""
    degrees, layers, rows = range(1, num_devices + 1), workload.shape.num_layers, range(1, workload.global_batch + 1)
    ends = range(layers + 1)
    for p, tp, cp, ep, batch, m in product(degrees, degrees, degrees, degrees, rows, rows):
        if p * tp * cp > num_devices or batch * m > workload.global_batch:
            continue
        for schedule, virtual, first, last in product(SCHEDULES, range(1, layers + 1), ends, ends):
            plan = Plan(p, m, batch, tp, cp, ep, "none", 0, 3, False, schedule, virtual, first, last)
            if runs(plan, workload, num_devices):
                yield plan


def is_worth_it(plan: Plan, workload: Workload) -> bool:
    """Whether a layout has the usual schedule of one stage, and ends, where they differ, no fuller than the rest."""
    lengths = stage_lengths(plan, workload.shape.num_layers)
    assert lengths is not None
    even = plan.first_layers == 0
    return (plan.num_stages > 1 or plan.schedule == "1f1b") and (
        even or (len(set(lengths)) > 1 and (len(lengths) == 2 or max(lengths) == lengths[1]))
    )


def every_way(plan: Plan, workload: Workload, machine: Machine, *, fused: bool) -> Iterator[Plan]:
    """Yield each way to save memory in a layout that changes what happens, and runs."""
    replicas = machine.num_devices // (plan.num_stages * plan.tp)
    in_node = min(max(machine.devices_per_node // plan.tp, 1), replicas)
    flags = (False, True)
    for name, repeated, zero, within, sequence, offload in product(
        RECOMPUTATIONS, (0, 1, 2), range(4), flags, flags, flags
    ):
        changed = replace(plan, recomputation=name, recomputed_layers=repeated, zero_stage=zero)
        changed = replace(changed, shard_within_node=within, sequence_parallel=sequence, offload_optimizer=offload)
        if (
            runs(changed, workload, machine.num_devices)
            and not (fused and name == "selective")
            and (replicas > 1 or zero == 3)
            and not (within and in_node in (1, replicas))
            and (plan.tp > 1 or sequence)
        ):
            yield changed


@settings(max_examples=max(settings.default.max_examples // 10, 5))
@given(
    st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (6, 3)]),
    st.sampled_from([(DENSE, 1), (DENSE, 2), (DENSE, 3), (MIXTURE, 2)]),
    st.integers(1, 4),
    st.sampled_from([1, 8]),
    st.sampled_from(["always", ()]),
)
def test_the_full_space_is_what_loops_find(
    devices_and_nodes: tuple[int, int], model: tuple[Shape, int], batch: int, seq_len: int, fused: str
) -> None:
    """The full space holds each plan once that loops over every field find to run and to differ in what happens."""
    num_devices, num_nodes = devices_and_nodes
    machine = Machine.of(CATALOG, CATALOG.flavor("large"))._replace(num_devices=num_devices, num_nodes=num_nodes)
    workload = Workload(replace(model[0], num_layers=model[1]), seq_len, batch, 1)
    expected = [
        way
        for plan in every_layout(workload, machine.num_devices)
        if is_worth_it(plan, workload)
        for way in every_way(plan, workload, machine, fused=bool(fused))
    ]
    found = [
        row
        for block in full_space(workload, machine, HABITS.model_copy(update={"fused_attention": fused}))
        for row in distinct_rows(block)
    ]
    assert sorted(found) == sorted(rows_of(Plans.of(expected)) if expected else [])


def holds(block: Block, plan: Row) -> bool:
    """Whether a block has a plan."""
    equal = [getattr(block.plans, name) == value for name, value in zip(NAMES, plan, strict=True)]
    shape = block.plans.shape
    return bool(np.logical_and.reduce([np.broadcast_to(each, shape) for each in (*equal, block.is_distinct)]).any())


@FEW
@given(st.sampled_from(CATALOG.flavors), st.integers(1, 6), st.integers(0, 10), st.sampled_from(["always", ()]))
def test_the_full_space_holds_the_platforms(flavor: Flavor, odd: int, power: int, fused: str) -> None:
    """Each of the platform's candidates that can run is a plan of the full space."""
    machine, workload = Machine.of(CATALOG, flavor), Workload(DENSE, 2048, odd * 2**power, 1)
    candidates = moai_space(flavor, workload.global_batch)
    legal = are_legal(candidates, workload, machine.num_devices)
    missing = {row for row, runs in zip(rows_of(candidates), legal.tolist(), strict=True) if runs}
    for block in full_space(workload, machine, HABITS.model_copy(update={"fused_attention": fused})):
        missing = {row for row in missing if not holds(block, row)}
    assert not missing


@given(st.sampled_from(CATALOG.flavors), st.integers(1, 4096))
def test_moai_space_holds_the_batch(flavor: Flavor, batch: int) -> None:
    """Every candidate makes the batch, has at most 8 rows per device, and stands once, recomputed and not."""
    space = moai_space(flavor, batch)
    candidates = [space[i] for i in range(len(space))]
    dp = space.data_parallel(flavor.num_devices)
    assert (dp * space.num_micro_batches * space.batch_per_device == batch).all()
    assert all(plan.batch_per_device <= 8 and plan.tp == 1 and plan.zero_stage == 3 for plan in candidates)
    assert len(set(candidates)) == len(candidates)
    both = {RECOMPUTATIONS.index("none"), RECOMPUTATIONS.index("full")}
    assert set(space.recomputation.tolist()) in (both, set())
    assert np.count_nonzero(space.recomputation) * 2 == len(space)


@pytest.mark.parametrize(("flavor", "batch", "count"), [("4xLarge.2048GB", 256, 16), ("8xLarge.4096GB", 512, 24)])
def test_moai_space_is_as_large_as_the_logs_say(flavor: str, batch: int, count: int) -> None:
    """The space has as many candidates as the platform's log prints."""
    assert len(moai_space(CATALOG.flavor(flavor), batch)) == count


def test_moai_space_without_a_pipeline() -> None:
    """On one node the platform runs without a pipeline."""
    space = moai_space(CATALOG.flavor("Large.256GB"), 16)
    assert sorted(set(space.num_stages.tolist())) == [1]
    assert len(space) == 2 * 3  # 1, 2 or 4 micro-batches of 4, 2 or 1 rows


@given(st.sampled_from(CATALOG.flavors), st.integers(1, 4096))
@FEW
def test_the_nearest_batch_leaves_a_candidate(flavor: Flavor, batch: int) -> None:
    """No batch between the nearest and the given one leaves the platform a candidate, and the nearest does."""
    found = nearest_batch(flavor, batch, "moai")
    empty = range(batch, found or max(batch - 1024, 0), -1)
    assert found is None or (found <= batch and len(moai_space(flavor, found)) > 0)
    assert all(len(moai_space(flavor, n)) == 0 for n in empty)
