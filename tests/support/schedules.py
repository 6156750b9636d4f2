"""Pipeline schedules as each rank runs them, op by op, and how long that takes: what closed forms are held against."""

from typing import NamedTuple


class Op(NamedTuple):
    """A pass of one micro-batch through one chunk of layers."""

    kind: str
    """Forward `f`, backward `b` (of the input alone where `w` is an op of its own), weight gradient `w`."""
    chunk: int
    """Which of the rank's chunks, the first in the order of the layers 0."""
    micro_batch: int


def orders(schedule: str, num_stages: int, num_micro_batches: int, virtual_stages: int = 1) -> list[list[Op]]:
    """Return each rank's ops in order.

    GPipe: all forward passes, then all backward passes. 1F1B: as many forward passes as stages follow, then one
    forward and one backward pass in turn. Interleaved, as Megatron-LM and torch do it: 2 (p - 1 - i) + (v - 1) p
    forward chunks, then one each, p micro-batches of a chunk before the next chunk. ZB-H1 (arXiv:2401.10241, section
    2.1): 1F1B's passes, rank i putting a weight gradient off until i more backward passes are done.
    """
    p, m, v = num_stages, num_micro_batches, virtual_stages
    found = []
    for i in range(p):
        ahead = {"gpipe": m * v, "interleaved": 2 * (p - 1 - i) + (v - 1) * p}.get(schedule, p - 1 - i)
        ahead = min(ahead, m * v)
        ops = [_op("f", k, p, v) for k in range(ahead)]
        for k in range(m * v):
            ops += [_op("f", ahead + k, p, v)] if ahead + k < m * v else []
            ops += [_op("b", k, p, v)]
            ops += [Op("w", 0, k - i)] if schedule == "zero_bubble" and k >= i else []
        ops += [Op("w", 0, k) for k in range(max(m - i, 0), m)] if schedule == "zero_bubble" else []
        found.append(ops)
    return found


def _op(kind: str, k: int, stages: int, virtual_stages: int) -> Op:
    """Return the k-th pass of a rank: a round of `stages` micro-batches through its first chunk, its second, ..."""
    turn, within = divmod(k, stages * virtual_stages)
    chunk, of_round = divmod(within, stages)
    if virtual_stages == 1:
        return Op(kind, 0, k)
    return Op(kind, chunk if kind == "f" else virtual_stages - 1 - chunk, turn * stages + of_round)


def most_held(ops: list[Op]) -> int:
    """Return the most forward chunks of a rank whose backward pass has not run."""
    held = most = 0
    for op in ops:
        held += {"f": 1, "b": -1, "w": 0}[op.kind]
        most = max(most, held)
    return most


def makespan(ranks: list[list[Op]], seconds: dict[str, list[float]]) -> float:
    """Return when the last op ends, each rank running its own in order; `seconds` of a chunk's op, by kind and rank."""
    stages = len(ranks)
    last = stages * (1 + max(op.chunk for op in ranks[0])) - 1
    ended: dict[tuple[str, int, int], float] = {}
    free, done = [0.0] * stages, [0] * stages
    while any(done[i] < len(ranks[i]) for i in range(stages)):
        before = sum(done)
        for i, ops in enumerate(ranks):
            while done[i] < len(ops):
                op = ops[done[i]]
                at = op.chunk * stages + i
                needed = {
                    "f": ("f", at - 1, op.micro_batch),
                    "b": ("b", at + 1, op.micro_batch) if at < last else ("f", at, op.micro_batch),
                    "w": ("b", at, op.micro_batch),
                }[op.kind]
                starts_at_once = op.kind == "f" and at == 0
                if not starts_at_once and needed not in ended:
                    break
                start = max(free[i], 0.0 if starts_at_once else ended[needed])
                free[i] = ended[op.kind, at, op.micro_batch] = start + seconds[op.kind][i]
                done[i] += 1
        assert sum(done) > before, "a schedule must not wait for itself"
    return max(free)
