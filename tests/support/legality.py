"""The rules of a plan, written a second time in exact integers: what the vectorized ones are held against."""

from estimator.work.plan import Plan
from estimator.work.workload import Workload


def stage_lengths(plan: Plan, num_layers: int) -> list[int] | None:
    """Return the layers of each stage, one by one; None where they cannot be laid so."""
    p, first, last = plan.num_stages, plan.first_layers, plan.last_layers
    if first == last == 0:
        return [num_layers // p] * p if num_layers % (p * plan.virtual_stages) == 0 else None
    if first == 0 or last == 0 or p == 1 or plan.virtual_stages > 1:
        return None
    rest = num_layers - first - last
    if p == 2:
        return [first, last] if rest == 0 else None
    return [first, *[rest // (p - 2)] * (p - 2), last] if rest > 0 and rest % (p - 2) == 0 else None


def schedule_runs(plan: Plan) -> bool:
    """Whether the schedule has the stages, chunks and micro-batches that it needs."""
    p, m, v = plan.num_stages, plan.num_micro_batches, plan.virtual_stages
    match plan.schedule:
        case "gpipe":
            return v == 1
        case "1f1b":
            return v == 1 and m >= p
        case "interleaved":
            return v > 1 and p > 1 and m % p == 0
        case _:
            return v == 1 and m >= p > 1


def runs(plan: Plan, workload: Workload, num_devices: int) -> bool:
    """Whether a plan keeps every rule, in exact integers."""
    shape, seq_len, p, tp, cp, ep = workload.shape, workload.seq_len, plan.num_stages, plan.tp, plan.cp, plan.ep
    dp, left = divmod(num_devices, p * tp * cp)
    if left or dp * plan.num_micro_batches * plan.batch_per_device != workload.global_batch:
        return False
    if p > shape.num_layers:
        return False
    lengths = stage_lengths(plan, shape.num_layers)
    return (
        lengths is not None
        and schedule_runs(plan)
        and shape.num_kv_heads % tp == shape.ffn_size % tp == 0
        and seq_len % (cp * tp if plan.sequence_parallel else cp) == 0
        and (cp == 1 or seq_len % (2 * cp) == 0)
        and (ep == 1 or (shape.num_experts > 0 and shape.num_experts % ep == dp % ep == 0))
        and (plan.recomputed_layers == 0 or plan.recomputation == "full")
        and (plan.recomputed_layers == 0 or plan.recomputed_layers < max(lengths))
        and not (plan.shard_within_node and plan.zero_stage == 0)
    )
