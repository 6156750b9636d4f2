"""Which plans can run, and why the others cannot: the rules of a layout, memory not among them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from estimator.work.plan import PLAN_NAMES, RECOMPUTATIONS, SCHEDULES, Flags, Ints, Plan, Plans
from estimator.work.workload import Workload
from hardware.errors import shown

Told = Callable[[Plan, int], str]
"""Says why a plan of so many data-parallel ranks breaks a rule, and the mend."""


class Rule(NamedTuple):
    """A rule of the layout: which plans break it, and how that is told."""

    broken: Flags
    told: Told


class Trainer(NamedTuple):
    """What a trainer does that torch's pipeline schedules do not."""

    divides_layers: bool = False
    """It divides layers over stages itself, whether or not they divide equally."""
    underfills: bool = False
    """It runs a pipeline on fewer micro-batches than stages."""
    counts_ends: bool = False
    """It may divide layers over stages as if the embedding and the loss were a layer each."""


TORCH = Trainer()


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, min(number, 1024) + 1) if number % d == 0]


def _model(workload: Workload) -> str:
    return shown(workload.shape.name)


def _says(template: str) -> Told:
    return lambda plan, dp: template.format(**{name: getattr(plan, name) for name in PLAN_NAMES}, dp=dp)


def _degree_rules(plans: Plans, workload: Workload, num_devices: int, dp: Ints) -> list[Rule]:
    batch = workload.global_batch
    ranks = dp * plans.num_micro_batches

    def rows(plan: Plan, dp: int) -> str:
        product = dp * plan.num_micro_batches * plan.batch_per_device
        return (
            f"data_parallel * num_micro_batches * batch_per_device = {dp} * {plan.num_micro_batches} * "
            f"{plan.batch_per_device} = {product} is not the global batch {batch}; change one of them"
        )

    divide = "num_stages * tp * cp = {num_stages} * {tp} * {cp} does not divide " + str(num_devices)
    whole = (batch % np.maximum(ranks, 1) == 0) & (batch // np.maximum(ranks, 1) == plans.batch_per_device)
    return [Rule(dp == 0, _says(divide + " devices; use divisors of it")), Rule(~whole, rows)]


def _stage_rules(plans: Plans, workload: Workload, trainer: Trainer) -> list[Rule]:
    layers, stages, model = workload.shape.num_layers, plans.num_stages, _model(workload)
    chunks = stages * plans.virtual_stages
    ends = plans.first_layers + plans.last_layers
    even = ends == 0
    between = np.maximum(stages - 2, 0)
    rest = layers - ends
    fits = np.where(between > 0, (rest > 0) & (rest % np.maximum(between, 1) == 0), rest == 0)
    uneven = (stages > 1) & (plans.virtual_stages == 1) & (plans.first_layers > 0) & (plans.last_layers > 0) & fits

    def chunk(plan: Plan, _: int) -> str:
        which = (
            f"num_stages={plan.num_stages}"
            if plan.virtual_stages == 1
            else f"num_stages * virtual_stages = {plan.num_stages} * {plan.virtual_stages}"
        )
        return f"{which} does not divide num_layers={layers} of {model}; use one of {_divisors(layers)}"

    divides = trainer.divides_layers & (plans.virtual_stages == 1)
    ends_fill = trainer.counts_ends & ((layers + 2) % chunks == 0)
    return [
        Rule(even & np.where(divides, stages > layers, (layers % chunks != 0) & ~ends_fill), chunk),
        Rule(
            ~even & ~uneven,
            _says(
                f"first_layers={{first_layers}} and last_layers={{last_layers}} leave num_layers={layers} of {model} "
                "no equal stages between; give both, with one chunk per stage"
            ),
        ),
    ]


def _schedule_rules(plans: Plans, trainer: Trainer) -> list[Rule]:
    stages = plans.num_stages
    gpipe, interleaved, zero_bubble = (
        plans.schedule == SCHEDULES.index(name) for name in ("gpipe", "interleaved", "zero_bubble")
    )
    return [
        Rule(
            ~gpipe & (not trainer.underfills) & (plans.num_micro_batches < stages),
            _says(
                "num_micro_batches={num_micro_batches} is fewer than num_stages={num_stages}; {schedule} needs at "
                "least as many"
            ),
        ),
        Rule(
            interleaved & ((plans.virtual_stages < 2) | (stages < 2)),
            _says("schedule=interleaved needs num_stages and virtual_stages of 2 or more; set them"),
        ),
        Rule(
            interleaved & (plans.num_micro_batches % stages != 0),
            _says(
                "num_stages={num_stages} does not divide num_micro_batches={num_micro_batches}; "
                "schedule=interleaved needs that"
            ),
        ),
        Rule(
            ~interleaved & (plans.virtual_stages > 1),
            _says("virtual_stages={virtual_stages} is for schedule=interleaved; use virtual_stages=1"),
        ),
        Rule(
            zero_bubble & (stages < 2),
            _says("schedule=zero_bubble needs num_stages of 2 or more; use schedule=1f1b"),
        ),
    ]


def _split_rules(plans: Plans, workload: Workload, dp: Ints) -> list[Rule]:
    shape, seq_len, model = workload.shape, workload.seq_len, _model(workload)
    kv_heads, ffn = shape.common_kv_heads, shape.common_ffn_size
    ways = plans.cp * np.where(plans.sequence_parallel, plans.tp, 1)
    halves = np.where(plans.cp > 1, 2 * plans.cp, 1)
    return [
        Rule(
            kv_heads % plans.tp != 0,
            _says(f"tp={{tp}} does not divide num_kv_heads={kv_heads} of {model}; use one of {_divisors(kv_heads)}"),
        ),
        Rule(
            ffn % plans.tp != 0,
            _says(f"tp={{tp}} does not divide ffn_size={ffn} of {model}; use one of {_divisors(ffn)}"),
        ),
        Rule(
            (seq_len % ways != 0) & (plans.cp == 1),
            _says(f"tp={{tp}} does not divide the {seq_len} tokens of a row; use a divisor of it"),
        ),
        Rule(
            (seq_len % ways != 0) | (seq_len % halves != 0),
            _says(f"cp={{cp}} with tp={{tp}} does not split the {seq_len} tokens of a row evenly; use smaller degrees"),
        ),
        Rule((plans.ep > 1) & (shape.num_experts == 0), _says(f"ep={{ep}}: {model} has no experts to share; use ep=1")),
        Rule(
            (plans.ep > 1) & (max(shape.num_experts, 1) % plans.ep != 0),
            _says(f"ep={{ep}} does not divide the {shape.num_experts} experts of {model}; use a divisor of it"),
        ),
        Rule((plans.ep > 1) & (dp % plans.ep != 0), _says("ep={ep} does not divide data_parallel={dp}; use a divisor")),
    ]


def _habit_rules(plans: Plans, workload: Workload) -> list[Rule]:
    largest = np.maximum(
        np.where(plans.first_layers > 0, plans.first_layers, workload.shape.num_layers // plans.num_stages),
        plans.last_layers,
    )
    partly = plans.recomputed_layers > 0
    return [
        Rule(
            partly & (plans.recomputation != RECOMPUTATIONS.index("full")),
            _says("recomputed_layers={recomputed_layers} is for recomputation=full; leave it out"),
        ),
        Rule(
            partly & (plans.recomputed_layers >= largest),
            _says("recomputed_layers={recomputed_layers} is all layers of a stage or more; leave it out to repeat all"),
        ),
        Rule(
            plans.shard_within_node & (plans.zero_stage == 0),
            _says("shard_within_node=true needs something to shard; use zero_stage of 1 to 3"),
        ),
    ]


def rules(plans: Plans, workload: Workload, num_devices: int, trainer: Trainer = TORCH) -> Sequence[Rule]:
    """Return every rule, the one to be told first before the others; masks broadcast as the plans do."""
    dp = plans.data_parallel(num_devices)
    return [
        *_degree_rules(plans, workload, num_devices, dp),
        *_stage_rules(plans, workload, trainer),
        *_schedule_rules(plans, trainer),
        *_split_rules(plans, workload, dp),
        *_habit_rules(plans, workload),
    ]


def are_legal(plans: Plans, workload: Workload, num_devices: int) -> Flags:
    """Whether each plan keeps every rule."""
    legal = np.ones((1,) * len(plans.shape), dtype=np.bool_)
    for rule in rules(plans, workload, num_devices):
        legal = legal & ~rule.broken
    return np.broadcast_to(legal, plans.shape)


def reasons(plans: Plans, workload: Workload, num_devices: int, trainer: Trainer = TORCH) -> list[str]:
    """Return why each plan cannot run on this many devices: "" where it can."""
    dp = np.broadcast_to(plans.data_parallel(num_devices), plans.shape)
    found = [""] * len(plans)
    untold = np.ones(plans.shape, dtype=np.bool_)
    for rule in rules(plans, workload, num_devices, trainer):
        rows = np.flatnonzero(untold & rule.broken)
        if not rows.size:  # as of most rules: no plan is taken out of its arrays
            continue
        for i, plan, ranks in zip(rows.tolist(), plans.each(rows), dp.flat[rows].tolist(), strict=True):
            found[i] = rule.told(plan, ranks)
        untold &= ~rule.broken
    return found
