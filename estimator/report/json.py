"""The JSON document of an estimate: what `estimate --json` prints, schema `estimate/1`."""

from collections.abc import Mapping, Sequence
from typing import Any

from estimator.formulas.counts import trained_parameters
from estimator.predict.evaluate import PlanEstimate
from estimator.predict.interval import Range
from estimator.search.choice import frontier_marks
from estimator.search.planner import Estimate, not_modelled
from hardware.units import MIB


def estimate_document(estimate: Estimate, top: int | None = None) -> dict[str, Any]:
    """Return the object that `estimate --json` prints, schema `estimate/1`; `top` limits the list of plans."""
    workload, flavor, rests_on = estimate.workload, estimate.flavor, estimate.basis
    plans = [_plan_document(plan, estimate) for plan in estimate.plans[:top]]
    return {
        "schema": "estimate/1",
        "workload": {
            "model": workload.shape.name,
            "num_params": estimate.num_params,
            "seq_len": workload.seq_len,
            "global_batch": workload.global_batch,
            "steps": workload.num_steps,
            "tokens_per_step": workload.tokens_per_step,
            "recipe": workload.recipe,
            "num_trained_params": trained_parameters(workload.shape),
            "padding": workload.padding._asdict() if workload.padding else None,
        },
        "flavor": {
            "name": flavor.id,
            "accelerator": estimate.machine.accelerator.id,
            "num_devices": flavor.num_devices,
            "num_nodes": flavor.num_nodes,
            "memory_mib": estimate.machine.accelerator.hbm_bytes * flavor.num_devices / MIB,
        },
        "stack": estimate.stack.name,
        "stack_reason": estimate.stack_reason or None,
        "basis": rests_on._asdict() if rests_on else None,
        "search": {
            "space": estimate.space,
            "num_candidates": estimate.num_candidates,
            "num_possible": estimate.num_possible,
            "seconds": estimate.search_s,
        },
        "best": plans[0] if plans and estimate.best else None,
        "plans": plans,
        "not_modelled": list(not_modelled(estimate)),
    }


def flavors_document(found: Sequence[Estimate], chosen: Estimate | None, top: int | None = None) -> dict[str, Any]:
    """Return the object that `estimate --flavor all --json` prints, schema `estimates/1`.

    Beside the estimates: the flavors that no other beats in both time and cost, and the one that is chosen.
    """
    return {
        "schema": "estimates/1",
        "estimates": [estimate_document(estimate, top) for estimate in found],
        "frontier": {flavor: list(marks) for flavor, marks in frontier_marks(found).items()},
        "chosen": chosen.flavor.id if chosen else None,
    }


def stacks_document(found: Sequence[Estimate], top: int | None = None) -> dict[str, Any]:
    """Return the object that `estimate --stack all --json` prints, schema `stacks/1`: an estimate a stack.

    The first is the answer where no stack is asked for.
    """
    return {"schema": "stacks/1", "estimates": [estimate_document(estimate, top) for estimate in found]}


def comparison_document(found: Mapping[str, Estimate], top: int | None = None) -> dict[str, Any]:
    """Return the object that `estimate --compare ... --json` prints, schema `comparison/1`: an estimate a question.

    The first is that of the question as asked.
    """
    answers = [{"question": name, "estimate": estimate_document(one, top)} for name, one in found.items()]
    return {"schema": "comparison/1", "answers": answers}


def _range(value: Range) -> dict[str, float]:
    return value._asdict()


def _plan_document(found: PlanEstimate, estimate: Estimate) -> dict[str, Any]:
    tokens, padding = estimate.workload.tokens_per_step, estimate.workload.padding
    return {
        "plan": found.plan.document(found.data_parallel),
        "possible": found.possible,
        "risky": found.is_risky,
        "reason": found.reason,
        "memory": {
            "per_device_mib": _range(found.memory.per_device_bytes.times(1 / MIB)),
            "total_mib": _range(found.memory.total_bytes.times(1 / MIB)),
            "usable_mib_per_device": found.memory.usable_bytes_per_device / MIB,
            "breakdown_mib": {name: part / MIB for name, part in found.memory.breakdown_bytes.items()},
        },
        "step": {
            "seconds": _range(found.step_s),
            "breakdown_s": found.step_breakdown,
            "paces": {
                "fast_s": found.fast_step_s,
                "slow_s": found.slow_step_s,
                "slow_fraction": estimate.stack.window.slow_fraction,
            },
        },
        "throughput": {
            "tokens_per_s": _range(found.tokens_per_s),
            "logged_tokens_per_s": _range(found.logged_tokens_per_s),
            "useful_tokens_per_s": padding.useful_fraction * tokens / found.step_s.value if padding else None,
            "tflops_per_device": found.flop_per_device_s / 1e12,
            "mfu": found.flop_per_device_s / estimate.machine.accelerator.usual_flop_per_s,
        },
        "wall": {
            "minutes": _range(found.training_s.times(1 / 60)),
            "startup_s": found.wall.startup_s,
            "first_step_s": found.wall.first_step_s,
            "total_minutes": _range(found.wall_s.times(1 / 60)),
            "failures": found.endurance._asdict() if found.endurance else None,
        },
        "cost": {"usd": _range(found.usd) if found.usd else None, "energy_kwh": found.kwh},
    }
