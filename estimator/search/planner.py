"""Which plan, which flavor: the plans of a space on a flavor, ranked, and flavors held against each other."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from estimator.formulas.counts import num_parameters, trained_parameters
from estimator.formulas.failures import NODE_WRITE_BYTES_PER_S, Endurance, checkpoint_bytes, endurance
from estimator.formulas.machine import Machine
from estimator.formulas.wall import price_range
from estimator.predict.basis import Basis, basis
from estimator.predict.evaluate import PlanEstimate, evaluate
from estimator.predict.prediction import usable_bytes
from estimator.predict.table import COLUMNS, row_of
from estimator.search.spaces import Fixed, full_space, moai_space
from estimator.search.sweep import Sweep, sweep
from estimator.stack.stack import Stack
from estimator.work.plan import PLAN_NAMES, Plan, Plans
from estimator.work.workload import Workload
from hardware.catalog import Catalog
from hardware.models import Flavor, MatmulPrecision, Price

if TYPE_CHECKING:
    import pandas as pd

SPACES = ("moai", "full")

PLATFORM = "moai"
"""The trainer of stacks whose own planner searches the space of that name."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The plans of one space on one flavor, best first."""

    workload: Workload
    flavor: Flavor
    machine: Machine
    stack: Stack
    space: str
    usable_bytes: float
    """Bytes per device that a plan may fill."""
    num_candidates: int
    """Plans of the space."""
    num_possible: int
    """Those of them that divide evenly and fit."""
    num_faster: int
    """Those of them that take fewer seconds per step than asked for."""
    plans: tuple[PlanEstimate, ...]
    """Plans in order, of a large space only the best."""
    prices: tuple[Price, ...]
    """Latest prices of the accelerator, which the cost is taken from."""
    search_s: float
    usd_per_device_h: float | None = None
    """What a device costs, where that is given; then no provider's prices are taken."""
    stack_reason: str = ""
    """Why this stack, where none was asked for."""
    asked: PlanEstimate | None = None
    """The plan of which it was asked why it is not the best; `num_faster` are faster than it."""
    missed: str = ""
    """Which limit the best plan misses and by how much; "" where none was set, or it keeps them."""

    def __repr__(self) -> str:
        """Return what was asked, how many plans fit, and the best of them."""
        work, machine = self.workload, self.machine
        where = f"{self.flavor.id} ({machine.num_devices} x {machine.accelerator.id})"
        steps = f"{work.num_steps:,} steps of {work.global_batch:,} x {work.seq_len:,} tokens"
        missed = f"; the best {self.missed}" if self.missed else ""
        lines = [
            f"{work.shape.name} on {where}, stack {self.stack.name}: {steps}",
            f"{self.num_possible:,} of {self.num_candidates:,} plans fit{missed}",
            *map(repr, self.plans[:1]),
        ]
        if self.asked:
            lines += [f"{self.num_faster:,} plans that fit are faster than", repr(self.asked)]
        return "\n".join(lines)

    def to_frame(self) -> "pd.DataFrame":
        """Return the plans as a pandas frame, best first: a row a plan, units in the names of the columns.

        First the fields of the plan, then what `predict.table.COLUMNS` are; seconds, bytes and USD have the ends of
        their 90 % intervals beside them. A plan that breaks a rule of the layout has a reason and no numbers.
        """
        import pandas as pd  # noqa: PLC0415 - slow to import, and only a frame needs it

        peak = self.machine.accelerator.usual_flop_per_s
        return pd.DataFrame([row_of(plan, peak) for plan in self.plans], columns=[*PLAN_NAMES, *COLUMNS])

    @property
    def basis(self) -> Basis | None:
        """What the answer rests on; None where no plan can be told of."""
        told = self.best or self.nearest_miss
        return basis(told.plan, self.workload, self.machine, self.stack) if told else None

    @property
    def best(self) -> PlanEstimate | None:
        """The plan that the stack would choose, if any fits."""
        return self.plans[0] if self.plans and self.plans[0].possible else None

    @property
    def fastest(self) -> PlanEstimate | None:
        """The plan that fits with the shortest step, which need not be the one that the stack would choose."""
        return min((p for p in self.plans if p.possible), key=lambda p: p.step_s.value, default=None)

    @property
    def num_params(self) -> int:
        """Parameters of the model."""
        return num_parameters(self.workload.shape)

    @property
    def nearest_miss(self) -> PlanEstimate | None:
        """The plan that divides evenly and comes nearest to fitting, where none fits."""
        legal = (plan for plan in self.plans if not plan.is_illegal)
        return min(legal, key=lambda plan: plan.memory.per_device_bytes.value, default=None)


def space_of(stack: Stack) -> str:
    """Return the space that is searched where none is asked for: the platform's own with its stack, else all plans."""
    return "moai" if stack.trainer == PLATFORM else "full"


def search(
    workload: Workload,
    flavor: Flavor,
    stack: Stack,
    catalog: Catalog,
    plan: Plan | None = None,
    space: str | None = None,
    *,
    fixed: Fixed | None = None,
    faster_than: float = 0.0,
    usd_per_device_h: float | None = None,
) -> Estimate:
    """Estimate the plans of a space on a flavor, or one given plan, and rank them.

    Possible plans come first, those whose interval of memory fits before those that may not, by seconds per step; then
    plans that do not fit, by memory; then those that cannot run. The MoAI platform's own planner, in its own space,
    compares what its stack says (`ranks_by`), and knows no interval. Of the full space only the best are kept.

    Args:
        workload: the work.
        flavor: the devices.
        stack: the software.
        catalog: where the flavor's hardware and prices are.
        plan: the one plan to estimate, instead of a space.
        space: one of `SPACES`; None for that of the stack.
        fixed: fields of a plan, to which the rest is searched: of all plans, where the platform's space has none so.
        faster_than: seconds per step; how many plans that fit take less is counted.
        usd_per_device_h: what a device costs, instead of what the catalog's providers ask.
    """
    started = time.perf_counter()
    machine = Machine.of(catalog, flavor)
    asked = _candidates(workload, flavor, machine, stack, plan, space or space_of(stack), fixed or {}, faster_than)
    swept, prices = asked.swept, catalog.latest_prices(machine.accelerator.id, flavor.provider)
    table = evaluate(asked.plans, workload, machine, stack)
    num_compiled = 1 if swept else len(asked.plans)
    own = usd_per_device_h
    cost = price_range(prices) if own is None else (own, own, own)
    found = [table.row(i, cost, num_compiled) for i in range(len(asked.plans))]
    as_platform = stack.trainer == PLATFORM and stack.habits.ranks_by == "device" and not swept
    found.sort(key=lambda p: _rank(p, as_platform=as_platform))
    possible = [p for p in found if p.possible]
    return Estimate(
        workload=workload,
        flavor=flavor,
        machine=machine,
        stack=stack,
        space=asked.space,
        usable_bytes=usable_bytes(machine, stack),
        num_candidates=swept.num_plans if swept else len(asked.plans),
        num_possible=swept.num_possible if swept else len(possible),
        num_faster=swept.num_faster if swept else sum(p.step_s.value < faster_than for p in possible),
        plans=tuple(found),
        prices=prices if own is None else (),
        usd_per_device_h=own,
        search_s=time.perf_counter() - started,
    )


class _Candidates(NamedTuple):
    """Plans to be evaluated one by one."""

    space: str
    plans: Plans
    swept: Sweep | None = None
    """What the sweep of a large space found, of which they are the best."""


def _candidates(
    workload: Workload,
    flavor: Flavor,
    machine: Machine,
    stack: Stack,
    plan: Plan | None,
    space: str,
    fixed: Fixed,
    faster_than: float,
) -> _Candidates:
    if plan is not None:
        return _Candidates(space, Plans.of([plan]))
    if stack.habits.updates_in_backward:
        fixed = {"num_micro_batches": 1} | dict(fixed)
    if space == "moai":
        own = moai_space(flavor, workload.global_batch, fixed)
        if len(own) or not fixed:
            return _Candidates(space, own)
    swept = sweep(full_space(workload, machine, stack.habits, fixed), workload, machine, stack, faster_than=faster_than)
    if fixed and not swept.num_plans:  # no plan is so: the rule that it breaks is told of one
        return _Candidates("full", Plans.of([completed(fixed, workload.global_batch, machine.num_devices)]))
    return _Candidates("full", Plans.of(swept.best), swept)


def completed(fixed: Fixed, global_batch: int, num_devices: int) -> Plan:
    """Return a plan of which some fields are given, the rest as usual, and micro-batches for the batch if they can be.

    >>> completed({"tp": 8}, 256, 16).num_micro_batches
    128
    """
    plan = Plan(**fixed)
    ranks = int(Plans.of([plan]).data_parallel(num_devices)[0])
    rows, rest = divmod(global_batch, ranks) if ranks else (0, 1)
    if rest or not rows:
        return plan
    if "num_micro_batches" not in fixed:
        return replace(plan, num_micro_batches=max(rows // plan.batch_per_device, 1))
    return (
        plan if "batch_per_device" in fixed else replace(plan, batch_per_device=max(rows // plan.num_micro_batches, 1))
    )


def _rank(plan: PlanEstimate, *, as_platform: bool) -> tuple[float, float, float]:
    if plan.possible:
        return 0.0, float(plan.is_risky and not as_platform), plan.device_s if as_platform else plan.step_s.value
    return 1.0 + plan.is_illegal, 0.0, plan.memory.per_device_bytes.value


def run_endurance(workload: Workload, machine: Machine, stack: Stack, device_mtbf_s: float) -> Endurance:
    """Return how a run fares with failures, whatever its plan.

    Args:
        workload: the work.
        machine: the devices.
        stack: the software, which says what a checkpoint holds.
        device_mtbf_s: mean seconds between interruptions of a run on one device.
    """
    written = NODE_WRITE_BYTES_PER_S * machine.num_nodes
    held = float(checkpoint_bytes(trained_parameters(workload.shape), stack.habits))
    return Endurance(*map(float, endurance(machine.num_devices, held, written, device_mtbf_s=device_mtbf_s)))


def with_failures(estimate: Estimate, device_mtbf_s: float) -> Estimate:
    """Return an estimate whose plans also write checkpoints, fail, and start again; wall time, cost and energy grow."""
    found = run_endurance(estimate.workload, estimate.machine, estimate.stack, device_mtbf_s)
    longer = 1.0 / float(found.goodput_fraction)
    plans = (
        replace(
            plan,
            endurance=found,
            wall_s=plan.wall_s.times(longer),
            usd=plan.usd.times(longer) if plan.usd else None,
            kwh=plan.kwh * longer,
        )
        for plan in estimate.plans
    )
    return replace(estimate, plans=tuple(plans))


def not_modelled(estimate: Estimate) -> Iterator[str]:
    """Yield what the estimate leaves out."""
    yield from estimate.stack.not_modelled
    yield from estimate.workload.shape.notes
    yield from _rows_beyond(estimate.workload)
    if not any(plan.endurance for plan in estimate.plans):
        yield "checkpoints during the run and failures: --failures adds them"
    if estimate.workload.padding is None:
        yield "padding: --lengths says how much of the rows is useful, and what packing would save"


def _rows_beyond(workload: Workload) -> Iterator[str]:
    """Yield a note where rows are longer than the model was made for."""
    most = workload.shape.max_positions
    if 0 < most < workload.seq_len:
        yield (
            f"what rows of {workload.seq_len:,} tokens do to a model made for {most:,} (max_position_embeddings): "
            "it runs, but positions need scaling"
        )


def offers(catalog: Catalog, precision: MatmulPrecision = "bf16") -> tuple[Flavor, ...]:
    """Return every flavor of a catalog, and of the nodes that say so a few sizes, `counts_in_all`; no cloud instance.

    Raises:
        ValueError: no accelerator has matrix units of the precision.
    """
    sizes = (node.flavor(count * node.num_devices) for node in catalog.nodes for count in node.counts_in_all)
    every = (*catalog.flavors, *sizes)
    able = {a.id for a in catalog.accelerators if a.peaks[precision]}
    found = tuple(flavor for flavor in every if catalog.node(flavor.node).accelerator in able)
    if not found:
        raise ValueError(f"precision: no flavor has matrix units of {precision}; use bf16-mixed")
    return found
