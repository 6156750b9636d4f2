"""Sets of plans: what the MoAI platform searches, and everything that can run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.formulas.machine import Machine
from estimator.stack.habits import Habits
from estimator.work.plan import PLAN_FIELDS, PLAN_NAMES, RECOMPUTATIONS, SCHEDULES, Ints, Plan, Plans
from estimator.work.rules import are_legal
from estimator.work.workload import Workload
from hardware.models import Flavor

Fixed = Mapping[str, Any]
"""Fields of a plan that are given, by name: the rest is searched."""


def moai_space(flavor: Flavor, global_batch: int, fixed: Fixed | None = None) -> Plans:
    """Return the candidates that the MoAI platform, version 24.2, generates for a flavor and a batch.

    Stages s of 2, 4, 8 with s dividing the nodes; data parallel over the devices of a stage, which must divide the
    batch; micro-batches a power of two, 2 or more, that leaves at most 8 sequences per device; each with recomputation
    off and on; no tensor parallelism; parameters distributed. This rule, inferred from the platform's logs, gives the
    count of candidates that 22 of 23 logs print. assumed: where it gives none (a flavor on one node), the platform
    runs without a pipeline, any power of two of micro-batches.

    >>> from hardware.catalog import load_catalog
    >>> len(moai_space(load_catalog().flavor("4xLarge.2048GB"), global_batch=256))
    16
    """
    staged = [
        plan
        for stages in (2, 4, 8)
        if flavor.num_nodes % stages == 0
        for plan in _moai_plans(stages, flavor.num_devices, global_batch, fewest=2)
    ]
    plans = staged or _moai_plans(1, flavor.num_devices, global_batch, fewest=1)
    given = (fixed or {}).items()
    return Plans.of([plan for plan in plans if all(getattr(plan, name) == value for name, value in given)])


def nearest_batch(flavor: Flavor, global_batch: int, space: str) -> int | None:
    """Return a batch near the given one that leaves a space a candidate: no larger, if one is; None if none is near.

    Of the full space it is whole rows for each device.
    """
    if space == "full":
        return max(global_batch // flavor.num_devices, 1) * flavor.num_devices
    near = range(global_batch, max(global_batch - 1024, 0), -1)
    return next((batch for batch in near if len(moai_space(flavor, batch))), None)


def _moai_plans(stages: int, num_devices: int, global_batch: int, fewest: int) -> list[Plan]:
    dp = num_devices // stages
    if num_devices % stages or global_batch % dp:
        return []
    sequences = global_batch // dp
    counts = [m for m in (2**i for i in range(41)) if m >= fewest and sequences % m == 0 and sequences // m <= 8]
    return [
        Plan(stages, m, sequences // m, recomputation=recomputation)
        for m in counts
        for recomputation in ("none", "full")
    ]


# --- the full space ---------------------------------------------------------------------------------------------------

MOST_SEQUENCES = 32
"""Sequences of a micro-batch at most: larger ones fill no device better and hold more."""

MOST_VIRTUAL = 16
"""Chunks of an interleaved stage at most."""

CHUNK = 2**17
"""Plans evaluated at once: enough that numbers, not calls, take the time, few enough that memory stays bounded."""


class Block(NamedTuple):
    """A grid of plans: layouts along the first axis, then an axis for each choice of what saves memory.

    Its shape is (layouts, recomputations, shardings, 2 or 1, 2 or 1), so that a term of a formula is computed once for
    each combination of the choices that it depends on, and not for each plan.
    """

    plans: Plans
    is_distinct: Array
    """Which of the plans differ from all others in something that happens; broadcasts against them."""


def full_space(workload: Workload, machine: Machine, habits: Habits, fixed: Fixed | None = None) -> Iterator[Block]:
    """Yield every plan that can run, once, in blocks that are grids.

    A plan that differs from another in nothing that happens is left out: sharding over one replica, sequence
    parallelism of one rank, dropping scores that a fused kernel never writes. What is given of a plan stays as it is.
    """
    fixed = fixed or {}
    layouts = _layouts(workload, machine, fixed)
    drops = not habits.fuses_attention(workload.shape) or habits.selective_keeps_products
    has_host = machine.node.host is not None
    largest = _largest_stage(layouts, workload)
    kinds, kind_of = np.unique(_kinds(layouts, machine), axis=0, return_inverse=True)
    for i, kind in enumerate(kinds.tolist()):
        rows = np.flatnonzero(kind_of.ravel() == i)
        rows = rows[np.argsort(-largest[rows], kind="stable")]  # neighbours have as many layers to choose from
        while len(rows):
            ways = _ways(_Kind(*kind), int(largest[rows[0]]), fixed, drops=drops, has_host=has_host)
            count = math.prod(len(choices) for choices in ways)
            size = max(CHUNK // max(count, 1), 1)
            if count:
                plans = _grid(_chosen(layouts, rows[:size]), ways)
                yield Block(plans, plans.recomputed_layers < largest[rows[:size]].reshape(-1, *[1] * len(ways)))
            rows = rows[size:]


class _Kind(NamedTuple):
    """What the ways to save memory depend on in a layout, beside the layers of its fullest stage."""

    has_tp: int
    replica_kind: int
    """0 with one replica, 1 with several in one node or one per node, 2 with several in each of several nodes."""


def _layouts(workload: Workload, machine: Machine, fixed: Fixed) -> Plans:
    """Return where the work can be, memory saved as usual: shape (layouts,)."""
    shape, num_devices, batch = workload.shape, machine.num_devices, workload.global_batch
    degrees = _divisors_of(num_devices)
    experts = [d for d in degrees if shape.num_experts and shape.num_experts % d == 0] or [1]
    tensor = [d for d in degrees if shape.common_kv_heads % d == 0]
    ends = fixed.get("first_layers", 0), fixed.get("last_layers", 0)
    pipelines = np.array([row for p in degrees for row in _pipelines(p, shape.num_layers, ends)], dtype=np.int64)
    most = max(MOST_SEQUENCES, fixed.get("batch_per_device", 1))
    per_device = [d for d in _divisors_of(batch) if d <= most]
    index = np.meshgrid(np.arange(len(pipelines)), tensor, degrees, experts, per_device, indexing="ij")
    which, tp, cp, ep, sequences = (axis.ravel() for axis in index)
    stages, schedule, virtual, first, last = pipelines[which].T
    plans = Plans(
        num_stages=stages,
        tp=tp,
        cp=cp,
        ep=ep,
        schedule=schedule,
        virtual_stages=virtual,
        first_layers=first,
        last_layers=last,
        batch_per_device=sequences,
    )
    ranks = np.maximum(plans.data_parallel(num_devices) * sequences, 1)
    plans = replace(plans, num_micro_batches=np.where(batch % ranks == 0, batch // ranks, 0))
    plans = _chosen(plans, (plans.data_parallel(num_devices) > 0) & (plans.num_micro_batches > 0))
    own = {name: value for name, value in fixed.items() if not PLAN_FIELDS[PLAN_NAMES.index(name)].saves_memory}
    plans = _chosen(plans, _has(plans, own))
    return _chosen(plans, are_legal(plans, workload, num_devices))


def _has(plans: Plans, given: Fixed) -> Array:
    """Whether each plan, of one axis, has what is given."""
    kept = np.ones(plans.shape, dtype=np.bool_)
    for own in PLAN_FIELDS:
        if own.name in given:
            kept &= getattr(plans, own.name) == own.array([given[own.name]])
    return kept


def _chosen(layouts: Plans, rows: Array) -> Plans:
    """Return some of the layouts, by their places or by a mask."""
    shape, arrays = layouts.shape, layouts.arrays
    names = [own.name for own in PLAN_FIELDS if not own.saves_memory]
    return Plans(**{name: np.broadcast_to(arrays[name], shape)[rows] for name in names})


def _largest_stage(layouts: Plans, workload: Workload) -> Ints:
    """Return the layers of the fullest stage of each layout, shape (layouts,)."""
    stages, first, last = layouts.num_stages, layouts.first_layers, layouts.last_layers
    between = np.maximum(np.where(first > 0, stages - 2, stages), 1)
    middle = (workload.shape.num_layers - first - last) // between
    return np.asarray(np.maximum(middle, np.maximum(first, last)))


def _kinds(layouts: Plans, machine: Machine) -> Ints:
    """Return the kind of each layout, shape (layouts, 2)."""
    replicas = layouts.data_parallel(machine.num_devices) * layouts.cp
    in_node = np.clip(machine.devices_per_node // layouts.tp, 1, replicas)
    replica_kind = np.where(replicas == 1, 0, np.where((in_node > 1) & (in_node < replicas), 2, 1))
    return np.stack([layouts.tp > 1, replica_kind], axis=1)


def _pipelines(stages: int, num_layers: int, ends: tuple[int, int]) -> list[tuple[int, int, int, int, int]]:
    """Return stages, schedule, chunks per stage, and layers of the first and last stage (0, 0 where all are equal).

    Layers of the ends that are given are tried beside those that may balance them.
    """
    gpipe, usual, interleaved, zero_bubble = range(len(SCHEDULES))
    if stages > num_layers:
        return []
    if stages == 1:
        return [(1, usual, 1, 0, 0)]
    splits = ([(0, 0)] if num_layers % stages == 0 else []) + _uneven_splits(stages, num_layers)
    splits += [ends] if any(ends) and ends not in splits else []
    found = [(stages, schedule, 1, *split) for schedule in (gpipe, usual, zero_bubble) for split in splits]
    chunks = [v for v in range(2, MOST_VIRTUAL + 1) if num_layers % (stages * v) == 0]
    return found + [(stages, interleaved, v, 0, 0) for v in chunks]


def _uneven_splits(stages: int, num_layers: int) -> list[tuple[int, int]]:
    """Return layers of the first and the last stage where those between, equal among themselves, have as many or more.

    The ends also hold the embedding and the vocabulary projection, so that fewer layers may balance them.
    """
    between = stages - 2
    if between == 0:
        half = num_layers // 2
        return [(n, num_layers - n) for n in range(max(half - 2, 1), half + 3) if 1 <= num_layers - n != n]
    found = []
    for middle in range(-(-num_layers // stages), num_layers // between + 1):
        rest = num_layers - middle * between
        for first in range(max(rest // 2 - 1, 1), rest // 2 + 2):
            last = rest - first
            if 1 <= last <= middle and first <= middle and (first, last) != (middle, middle) and middle - first <= 4:
                found.append((first, last))
    return found


class _Choices(NamedTuple):
    """Values that some fields of a plan take together, a tuple for each choice."""

    fields: tuple[str, ...]
    values: Sequence[tuple[int, ...]]

    def __len__(self) -> int:
        """Return the number of choices."""
        return len(self.values)

    def having(self, fixed: Fixed) -> "_Choices":
        """Return the choices that have what is given of a plan."""
        given = {own.name: own.array([fixed[own.name]])[0] for own in PLAN_FIELDS if own.name in fixed}
        wanted = [(i, given[name]) for i, name in enumerate(self.fields) if name in given]
        return _Choices(self.fields, [value for value in self.values if all(value[i] == want for i, want in wanted)])


def _ways(kind: _Kind, largest_stage: int, fixed: Fixed, *, drops: bool, has_host: bool) -> list[_Choices]:
    """Return the ways to save memory in a layout: any choice of the first goes with any of the others.

    Of ways that come to the same, the usual one, unless another is given.
    """
    none, selective, full = range(len(RECOMPUTATIONS))
    counts = {2**i for i in range(10)} | {fixed.get("recomputed_layers") or 1}
    partly = [(full, count) for count in sorted(counts) if count < largest_stage]
    is_selective = drops or fixed.get("recomputation") == "selective"
    recomputations = [(none, 0), *([(selective, 0)] if is_selective else []), (full, 0), *partly]
    shardings = [(stage, False) for stage in range(4) if kind.replica_kind > 0 or fixed.get("zero_stage", 3) == stage]
    within = kind.replica_kind == 2 or fixed.get("shard_within_node")
    shardings += [(stage, True) for stage in (1, 2, 3)] if within else []
    splits = [(True,), (False,)] if kind.has_tp or "sequence_parallel" in fixed else [(True,)]
    offloads = [(False,), (True,)] if has_host else [(False,)]
    ways = (
        _Choices(("recomputation", "recomputed_layers"), recomputations),
        _Choices(("zero_stage", "shard_within_node"), shardings),
        _Choices(("sequence_parallel",), splits),
        _Choices(("offload_optimizer",), offloads),
    )
    return [choices.having(fixed) for choices in ways]


def _grid(layouts: Plans, ways: Sequence[_Choices]) -> Plans:
    """Return the plans of every layout in every way: layouts along the first axis, then an axis for each choice."""
    fields = {name: array.reshape(-1, *[1] * len(ways)) for name, array in layouts.arrays.items()}
    for axis, choices in enumerate(ways, start=1):
        shape = [len(choices) if i == axis else 1 for i in range(len(ways) + 1)]
        for name, column in zip(choices.fields, zip(*choices.values, strict=True), strict=True):
            fields[name] = np.array(column).reshape(shape)
    return Plans(**fields)


def _divisors_of(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})
