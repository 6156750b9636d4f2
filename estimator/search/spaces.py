"""Sets of plans: what the MoAI platform searches, and everything that can run."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from estimator.formulas.machine import Machine
from estimator.stack.stack import Habits
from estimator.work.plan import RECOMPUTATIONS, SCHEDULES, Ints, Plan, Plans
from estimator.work.rules import are_legal
from estimator.work.workload import Workload
from hardware.models import Flavor


def moai_space(flavor: Flavor, global_batch: int) -> Plans:
    """Return the candidates that the MoAI platform, version 24.2, generates for a flavor and a batch.

    Stages s of 2, 4, 8 with s dividing the nodes; data parallel over the devices of a stage, which must divide the
    batch; micro-batches a power of two, 2 or more, that leaves at most 8 rows per device; each with recomputation off
    and on; no tensor parallelism; parameters distributed. This rule, inferred from the platform's logs, gives the
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
    return Plans.of(staged or _moai_plans(1, flavor.num_devices, global_batch, fewest=1))


def nearest_batch(flavor: Flavor, global_batch: int) -> int | None:
    """Return the largest batch, no larger than the given one, that leaves the platform a candidate, if one is near."""
    near = range(global_batch, max(global_batch - 1024, 0), -1)
    return next((batch for batch in near if len(moai_space(flavor, batch))), None)


def _moai_plans(stages: int, num_devices: int, global_batch: int, fewest: int) -> list[Plan]:
    dp = num_devices // stages
    if num_devices % stages or global_batch % dp:
        return []
    rows = global_batch // dp
    counts = [m for m in (2**i for i in range(41)) if m >= fewest and rows % m == 0 and rows // m <= 8]
    return [
        Plan(stages, m, rows // m, recomputation=recomputation) for m in counts for recomputation in ("none", "full")
    ]


# --- the full space ---------------------------------------------------------------------------------------------------

MOST_ROWS = 32
"""Rows of a micro-batch at most: larger ones fill no device better and hold more."""

MOST_VIRTUAL = 16
"""Chunks of an interleaved stage at most."""

CHUNK = 2**15
"""Plans evaluated at once: arrays of that many numbers stay in a core's cache, and memory stays bounded."""


def full_space(workload: Workload, machine: Machine, habits: Habits) -> Iterator[Plans]:
    """Yield every plan that can run, once, in blocks that are grids: layouts down, ways to save memory across.

    A plan that differs from another in nothing that happens is left out: sharding over one replica, sequence
    parallelism of one rank, dropping scores that a fused kernel never writes.
    """
    layouts = _layouts(workload, machine)
    fused = habits.fuses_attention(workload.shape)
    keys = np.stack([layouts.largest_stage, layouts.has_tp, layouts.replica_kind], axis=1)
    kinds, kind_of = np.unique(keys, axis=0, return_inverse=True)
    for i, (largest_stage, has_tp, replica_kind) in enumerate(kinds.tolist()):
        ways = _ways(largest_stage, fused=fused, has_tp=bool(has_tp), replica_kind=replica_kind, machine=machine)
        rows = np.flatnonzero(kind_of.ravel() == i)
        for start in range(0, len(rows), max(CHUNK // len(ways), 1)):
            chosen = rows[start : start + max(CHUNK // len(ways), 1)]
            yield _grid({name: column[chosen] for name, column in layouts.columns.items()}, ways)


_COLUMNS = (
    "num_stages",
    "tp",
    "cp",
    "ep",
    "schedule",
    "virtual_stages",
    "first_layers",
    "last_layers",
    "batch_per_device",
    "num_micro_batches",
)
"""Fields of a plan that say where the work is; the other fields say how memory is saved."""


class _Layouts(NamedTuple):
    """Where the work can be, a row per layout, and what the ways to save memory depend on."""

    columns: dict[str, Ints]
    largest_stage: Ints
    """Layers of the fullest stage."""
    has_tp: Ints
    replica_kind: Ints
    """0 with one replica, 1 with several in one node or one per node, 2 with several in each of several nodes."""


def _layouts(workload: Workload, machine: Machine) -> _Layouts:
    shape, num_devices, batch = workload.shape, machine.num_devices, workload.global_batch
    degrees = _divisors_of(num_devices)
    experts = [d for d in degrees if shape.num_experts and shape.num_experts % d == 0] or [1]
    tensor = [d for d in degrees if shape.num_kv_heads % d == 0]
    stages = [p for p in degrees if p <= shape.num_layers]
    pipelines = np.array([row for p in stages for row in _pipelines(p, shape.num_layers)], dtype=np.int64)
    per_rank = _divisors_of(batch)
    index = np.meshgrid(
        np.arange(len(pipelines)), tensor, degrees, experts, [d for d in per_rank if d <= MOST_ROWS], indexing="ij"
    )
    which, tp, cp, ep, rows = (axis.ravel() for axis in index)
    columns = dict(
        zip(
            ("num_stages", "schedule", "virtual_stages", "first_layers", "last_layers"), pipelines[which].T, strict=True
        )
    )
    columns |= {"tp": tp, "cp": cp, "ep": ep, "batch_per_device": rows}
    model_parallel = columns["num_stages"] * tp * cp
    dp = np.where(num_devices % model_parallel == 0, num_devices // model_parallel, 0)
    ranks = np.maximum(dp * rows, 1)
    columns["num_micro_batches"] = np.where(batch % ranks == 0, batch // ranks, 0)
    whole = (dp > 0) & (columns["num_micro_batches"] > 0)
    columns = {name: column[whole] for name, column in columns.items()}
    legal = are_legal(_grid(columns, [_Way()]), workload, num_devices)[:, 0]
    columns = {name: column[legal] for name, column in columns.items()}
    stages_of, first, last = (columns[name] for name in ("num_stages", "first_layers", "last_layers"))
    middle = (shape.num_layers - first - last) // np.maximum(np.where(first > 0, stages_of - 2, stages_of), 1)
    replicas = dp[whole][legal] * columns["cp"]
    in_node = np.clip(machine.devices_per_node // columns["tp"], 1, replicas)
    return _Layouts(
        columns,
        np.maximum(middle, np.maximum(first, last)),
        (columns["tp"] > 1).astype(np.int64),
        np.where(replicas == 1, 0, np.where((in_node > 1) & (in_node < replicas), 2, 1)),
    )


def _pipelines(stages: int, num_layers: int) -> list[tuple[int, int, int, int, int]]:
    """Return stages, schedule, chunks per stage, and layers of the first and last stage (0, 0 where all are equal)."""
    gpipe, usual, interleaved, zero_bubble = range(len(SCHEDULES))
    if stages == 1:
        return [(1, usual, 1, 0, 0)]
    splits = ([(0, 0)] if num_layers % stages == 0 else []) + _uneven_splits(stages, num_layers)
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


class _Way(NamedTuple):
    """A way to save memory: the fields of a plan that a layout leaves open, as usual unless said."""

    recomputation: int = 0
    recomputed_layers: int = 0
    zero_stage: int = 3
    shard_within_node: bool = False
    sequence_parallel: bool = True
    offload_optimizer: bool = False


def _ways(largest_stage: int, *, fused: bool, has_tp: bool, replica_kind: int, machine: Machine) -> list[_Way]:
    none, selective, full = range(len(RECOMPUTATIONS))
    partly = [(full, 2**i) for i in range(10) if 2**i < largest_stage]
    recomputations = [(none, 0), *([] if fused else [(selective, 0)]), (full, 0), *partly]
    shardings = [(3, False)] if replica_kind == 0 else [(stage, False) for stage in range(4)]
    shardings += [(stage, True) for stage in (1, 2, 3)] if replica_kind == 2 else []
    return [
        _Way(*recomputation, *sharding, sequence, offload)
        for recomputation in recomputations
        for sharding in shardings
        for sequence in ((True, False) if has_tp else (True,))
        for offload in ((False, True) if machine.node.host else (False,))
    ]


def _grid(columns: dict[str, Ints], ways: list[_Way]) -> Plans:
    """Return the plans of every layout in every way, fields of shape (layouts, 1) and (1, ways)."""
    columns_of: dict[str, Any] = {name: column[:, None] for name, column in columns.items()}
    columns_of |= {name: np.array([[getattr(way, name) for way in ways]]) for name in _Way._fields}
    return Plans(**columns_of)


def _divisors_of(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})
