"""What a fine-tune needs, how fast it runs, how long it takes and what it costs: on one flavor, or on the best."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Unpack, overload

from estimator.api.flavors import Estimates
from estimator.api.options import (
    Flavors,
    Hardware,
    Model,
    On,
    OneFlavor,
    Options,
    PathLike,
    PlanAsked,
    Subject,
    SubjectOptions,
    names_all,
    plan_asked,
    subject,
)
from estimator.search.choice import OBJECTIVES, Limits, parse_duration
from estimator.search.planner import SPACES, Estimate, with_failures
from estimator.search.planner import search as search_plans
from estimator.stack.stack import Stack
from estimator.work.defaults import SEED_BATCH, SEED_MODEL, SEED_SEQ_LEN
from estimator.work.plan import Plan
from hardware.errors import unknown_name
from hardware.models import Flavor

BEST = PlanAsked()

Several = Literal["all"] | list[str] | list[Flavor] | tuple[str | Flavor, ...]


@overload
def estimate(model: Model, flavor: Several, **options: Unpack[Options]) -> Estimates: ...  # type: ignore[overload-overlap] # "all" is a str


@overload
def estimate(model: Model = ..., *, flavor: Several, **options: Unpack[Options]) -> Estimates: ...  # type: ignore[overload-overlap] # "all" is a str


@overload
def estimate(model: Model = ..., flavor: OneFlavor = ..., **options: Unpack[Options]) -> Estimate: ...


def estimate(
    model: Model = SEED_MODEL,
    flavor: Flavors = None,
    *,
    seq_len: int = SEED_SEQ_LEN,
    batch: int = SEED_BATCH,
    rows: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    lengths: PathLike | None = None,
    plan: str | Plan = "best",
    space: str | None = None,
    stack: PathLike | Stack | None = None,
    accelerator: str | None = None,
    devices: int | None = None,
    catalog: Hardware = (),
    precision: str | None = None,
    optimizer: str | None = None,
    optimizer_in_backward: bool = False,
    lora: int = 0,
    lora_targets: str | Sequence[str] | None = None,
    quantize: str | int | None = None,
    offload_activations: bool = False,
    loss: str | None = None,
    compiles: bool | None = None,
    objective: str = OBJECTIVES[0],
    deadline: str | None = None,
    budget: float | None = None,
    failures: bool = False,
    device_mtbf: str | None = None,
    price: float | None = None,
    why: str | Plan | None = None,
) -> Estimate | Estimates:
    """Predict what a fine-tune needs, how fast it runs, how long it takes and what it costs.

    The options are those of the command `estimate`, by their names; what is left out is as in the seed run.

    Args:
        model: built-in name, directory, config.json, or a Shape.
        flavor: name of a flavor; None for the current one; "all", or several names, for an answer that compares them.
        seq_len: tokens per row.
        batch: rows per optimizer step, over all devices.
        rows: of the data set.
        epochs: passes over the rows.
        steps: optimizer steps, instead of rows and epochs.
        lengths: file of the rows' lengths: CSV of length,count, or JSON Lines.
        plan: "best", a whole plan, or what is given of one, such as "tp=8" or "zero_stage=3": the rest is searched.
        space: set of plans to search: "moai" or "full"; None for that of the stack, "full" for all but MoAI's.
        stack: name of a stack, its TOML file, or a Stack; "all" for an answer of each; None for the one that was
            measured on what comes nearest to the question.
        accelerator: id of an accelerator, instead of a flavor.
        devices: how many of that accelerator.
        catalog: TOML files of further hardware, or a Catalog.
        precision: "bf16-mixed", "fp16-mixed", "bf16", "fp32" or "fp8-mixed"; None for the stack's own.
        optimizer: "adamw", "adamw-8bit", "adamw-4bit", "paged-adamw-8bit", "adafactor", "lion", "muon", "sgd-momentum"
            or "sgd"; None for the stack's own.
        optimizer_in_backward: each weight is updated as its gradient comes, so that no full gradient is kept.
        lora: rank of adapters, all else frozen; 0 trains everything.
        lora_targets: modules that they lie beside, "all-linear", or "default", as peft takes them; None is all linear.
        quantize: bits of the frozen weights: 8 or 4.
        offload_activations: what layers keep for the backward pass waits in the host's memory.
        loss: "whole" has all logits at once, "chunked" some at a time, "fused" few, in one kernel with the projection;
            None as the stack has it.
        compiles: layers are compiled, or run operator by operator; None as the stack has it.
        objective: what to make small over several flavors: "time", "cost" or "energy".
        deadline: time from start to end at most, such as "30m" or "2.5h".
        budget: USD at most.
        failures: count checkpoints and failures.
        device_mtbf: mean time between failures of one device, such as "50000h".
        price: USD per device and hour, instead of what providers ask.
        why: a plan, or what is given of one: the answer's `asked`, and how many plans are faster.

    Returns:
        The plans of the flavor, best first; over several flavors, or stacks, an estimate of each, and the one to
        choose. Where no plan fits, `best` is None, and each of the plans has its reason.

    Raises:
        ValueError: an option is unknown or out of range, two contradict each other, a file cannot be read, or the plan
            cannot run: in one line, what was given, which rule it breaks, and the mend.
    """
    _refuse_unknown(space, objective)
    asked = subject(
        model,
        flavor,
        seq_len=seq_len,
        batch=batch,
        rows=rows,
        epochs=epochs,
        steps=steps,
        lengths=lengths,
        stack=stack,
        accelerator=accelerator,
        devices=devices,
        catalog=catalog,
        precision=precision,
        optimizer=optimizer,
        optimizer_in_backward=optimizer_in_backward,
        lora=lora,
        lora_targets=lora_targets,
        quantize=quantize,
        offload_activations=offload_activations,
        loss=loss,
        compiles=compiles,
        failures=failures,
        device_mtbf=device_mtbf,
        price=price,
    )
    wanted, limits = plan_asked(plan), _limits(deadline, budget)
    several = len(asked.on) > 1 or names_all(flavor) or names_all(stack) or isinstance(flavor, list | tuple)
    if why is not None and (several or wanted.is_given):
        beside = "--plan" if wanted.is_given else "--stack all" if names_all(stack) else "--flavor all"
        raise ValueError(f"why: --why is given beside {beside}; it holds one plan against the best of a flavor")
    beside_it = None if why is None else plan_asked(why)
    found = tuple(_on(one, asked, space, limits, wanted, beside_it) for one in asked.on)
    if wanted.is_given and all(one.plans[0].is_illegal for one in found):
        where = f" (flavor {found[0].flavor.id}; no other takes it either)" if several else ""
        raise ValueError(f"plan: {found[0].plans[0].reason}{where}")
    return Estimates(found, objective, limits) if several else found[0]


def search(
    model: Model = SEED_MODEL,
    flavor: Flavors = "all",
    *,
    space: str = "full",
    objective: str = OBJECTIVES[0],
    deadline: str | None = None,
    budget: float | None = None,
    **options: Unpack[SubjectOptions],
) -> Estimates:
    """Find the best plan of the best flavor: the one with the least time, cost or energy that keeps the limits.

    Where `estimate` says what the plans of the platform come to on one flavor, this looks through every plan that can
    run, on every flavor: of the answer, `chosen` is the flavor and `best` its plan.

    Args:
        model: built-in name, directory, config.json, or a Shape.
        flavor: names of flavors; "all", unless `accelerator` and `devices` say on what.
        space: set of plans to search: "full" or "moai".
        objective: what to make small: "time", "cost" or "energy".
        deadline: time from start to end at most, such as "30m" or "2.5h".
        budget: USD at most.
        options: any other of `estimate`, but for `plan` and `why`.

    Raises:
        ValueError: as `estimate`.
    """
    _refuse_unknown(space, objective)
    is_elsewhere = options.get("accelerator") is not None or options.get("devices") is not None
    asked = subject(model, None if is_elsewhere and names_all(flavor) else flavor, **options)
    limits = _limits(deadline, budget)
    return Estimates(tuple(_on(one, asked, space, limits) for one in asked.on), objective, limits)


def _refuse_unknown(space: str | None, objective: str) -> None:
    for name, given, known in (("space", space, SPACES), ("objective", objective, OBJECTIVES)):
        if given is not None and given not in known:
            raise ValueError(unknown_name(name, given, known))


def _limits(deadline: str | None, budget: float | None) -> Limits:
    return Limits(None if deadline is None else parse_duration("deadline", deadline), budget)


def _on(
    on: On,
    asked: Subject,
    space: str | None,
    limits: Limits,
    wanted: PlanAsked = BEST,
    beside: PlanAsked | None = None,
) -> Estimate:
    """Return the estimate of one plan or of a space on a flavor, with failures and limits counted where asked for.

    Args:
        on: the devices and the software.
        asked: the question.
        space: what is searched.
        limits: of time and money.
        wanted: which plans.
        beside: the plan that is held against the best.
    """

    def searched(plans: PlanAsked, faster_than: float = 0.0) -> Estimate:
        found = search_plans(
            asked.workload,
            on.flavor,
            on.stack,
            asked.catalog,
            plans.plan,
            space,
            fixed=plans.fixed,
            faster_than=faster_than,
            usd_per_device_h=asked.usd_per_device_h,
        )
        return found if asked.device_mtbf_s is None else with_failures(found, asked.device_mtbf_s)

    held = None if beside is None else searched(beside).plans[0]
    found = searched(wanted, held.step_s.value if held else 0.0)
    missed = limits.missed_by(found.best) if found.best else ""
    return replace(found, asked=held, missed=missed, stack_reason=on.why)
