"""The schedule as events: which pass each stage of a pipeline runs when, and what travels between them meanwhile.

A schedule is data: for every stage, its passes in order (`pass_orders`). A pass starts when its stage is free and what
it needs has arrived; what it hands on travels on a link of its own in each direction, one transfer after another. What
the closed forms of `step` and `layout` say of time and of micro-batches in flight is held against this.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from estimator.arrays import Array

FORWARD, BACKWARD, WEIGHT_GRADIENT = range(3)
"""Kinds of a pass. A backward pass yields both gradients, or that of the input alone where the other is its own."""

KINDS = ("forward", "backward", "weight gradient")

Ints = npt.NDArray[np.int64]


class Pass(NamedTuple):
    """What a stage does at once: one micro-batch through one chunk of its layers."""

    kind: int
    chunk: int
    """Which of the stage's chunks; its first, in the order of the layers, is 0."""
    micro_batch: int


def pass_orders(
    schedule: str, num_stages: int, num_micro_batches: int, virtual_stages: int = 1
) -> tuple[tuple[Pass, ...], ...]:
    """Return the passes of each stage, in the order in which it runs them.

    With stage i of p, m micro-batches and v chunks of a stage:

    * `gpipe`: all forward passes, then all backward passes.
    * `1f1b`: p - 1 - i forward passes, then one forward and one backward in turn (Narayanan et al. 2021,
      arXiv:2104.04473, section 2.2.1).
    * `interleaved`: 2 (p - 1 - i) + (v - 1) p forward passes first, p micro-batches of a chunk before those of the
      next (section 2.2.2, as Megatron-LM and torch run it).
    * `zero_bubble`: the passes of 1F1B, and a weight gradient waits until i more backward passes are done (Qi et al.
      2023, arXiv:2401.10241, section 2.1: ZB-H1).

    >>> ["".join("FBW"[each.kind] for each in stage) for stage in pass_orders("1f1b", 2, 3)]
    ['FFBFBB', 'FBFBFB']
    """
    return tuple(_passes(schedule, num_stages, num_micro_batches, virtual_stages, stage) for stage in range(num_stages))


def _passes(schedule: str, p: int, m: int, v: int, i: int) -> tuple[Pass, ...]:
    ahead = {"gpipe": m * v, "interleaved": 2 * (p - 1 - i) + (v - 1) * p}.get(schedule, p - 1 - i)
    ahead = min(ahead, m * v)
    found = [_nth(FORWARD, k, p, v) for k in range(ahead)]
    for k in range(m * v):
        if ahead + k < m * v:
            found.append(_nth(FORWARD, ahead + k, p, v))
        found.append(_nth(BACKWARD, k, p, v))
        if schedule == "zero_bubble" and k >= i:
            found.append(Pass(WEIGHT_GRADIENT, 0, k - i))
    if schedule == "zero_bubble":
        found += [Pass(WEIGHT_GRADIENT, 0, k) for k in range(max(m - i, 0), m)]
    return tuple(found)


def _nth(kind: int, k: int, p: int, v: int) -> Pass:
    """Return the k-th pass of a kind: of v chunks, a round of p micro-batches through the first, the second, ..."""
    if v == 1:
        return Pass(kind, 0, k)
    turn, within = divmod(k, p * v)
    chunk, of_round = divmod(within, p)
    return Pass(kind, chunk if kind == FORWARD else v - 1 - chunk, turn * p + of_round)


class Stream(NamedTuple):
    """Events of one stage that cannot overlap, in order, each array of shape (events,)."""

    kind: Ints
    chunk: Ints
    micro_batch: Ints
    start_s: Array
    end_s: Array

    @property
    def busy_s(self) -> float:
        """Seconds in which something runs."""
        return float(np.sum(self.end_s - self.start_s))


class Timeline(NamedTuple):
    """A step's micro-batches through the pipeline, a stream for each stage."""

    passes: tuple[Stream, ...]
    sends: tuple[Stream, ...]
    """What a stage sends on: kind `FORWARD` activations to the next, `BACKWARD` gradients to the one before."""

    @property
    def seconds(self) -> float:
        """From the first pass's start to the last one's end."""
        return max((float(stage.end_s[-1]) for stage in self.passes if len(stage.end_s)), default=0.0)

    def held(self, stage: int) -> tuple[Array, Ints]:
        """Return the moments at which a stage holds more or fewer chunks' activations, and how many from then on.

        A forward pass's are held from its start, and go with its last backward pass's end: the weight gradient, where
        that is a pass of its own.
        """
        own = self.passes[stage]
        last = WEIGHT_GRADIENT if np.any(own.kind == WEIGHT_GRADIENT) else BACKWARD
        takes, gives = own.start_s[own.kind == FORWARD], own.end_s[own.kind == last]
        moments = np.concatenate([takes, gives])
        changes = np.repeat([1, -1], [len(takes), len(gives)])
        order = np.lexsort((changes, moments))  # what goes at a moment, before what comes
        return moments[order], np.cumsum(changes[order])


def timeline(
    orders: Sequence[Sequence[Pass]],
    seconds: Mapping[int, Array],
    transfer_s: float = 0.0,
    factors: Sequence[Array] | None = None,
) -> Timeline:
    """Return when each pass runs, every stage its own in order.

    Args:
        orders: passes of each stage.
        seconds: of a pass of each kind, by stage: shape (stages,), those of a chunk where a stage has several.
        transfer_s: seconds of what a chunk hands to the next, or back.
        factors: by stage, of shape (passes,), what each pass takes over its usual seconds: a slow device, jitter.

    Raises:
        ValueError: the orders wait for each other for ever.
    """
    places = len(orders) * (1 + max((each.chunk for stage in orders for each in stage), default=0))
    fields = [np.array(stage, dtype=np.int64).reshape(-1, 3) for stage in orders]
    handed = [_handed(own, i, len(orders), places) for i, own in enumerate(fields)]
    takes = [np.array([seconds[kind][i] for kind in own[:, 0]]) for i, own in enumerate(fields)]
    if factors is not None:
        takes = [own * by for own, by in zip(takes, factors, strict=True)]
    starts, sent = _run(handed, [own.tolist() for own in takes], float(transfer_s))
    stuck = [i for i, own in enumerate(starts) if len(own) < len(orders[i])]
    if stuck:
        raise ValueError(f"schedule: stages {', '.join(map(str, stuck))} wait for each other; reorder their passes")
    sends = []
    for own, of_stage in zip(fields, sent, strict=True):
        which, begins = ([i for i, _ in of_stage], [start for _, start in of_stage])
        sends.append(_stream(own[which], begins, np.full(len(which), transfer_s)))
    return Timeline(tuple(map(_stream, fields, starts, takes)), tuple(sends))


class _Handed(NamedTuple):
    """Of a stage's passes in order: what each needs and what it hands on, told by numbers; -1 is nothing."""

    needs: list[int]
    gives: list[int]
    to: list[int]
    """The stage that gets it."""
    link: list[int]
    """The stage's link that it goes over: 0 to the next stage, 1 back; -1 where it stays on the stage."""


def _handed(own: Ints, stage: int, stages: int, places: int) -> _Handed:
    """Return what passes hand on: chunk c of stage i has the place c p + i among all chunks."""
    kind, place, micro_batch = own[:, 0], own[:, 1] * stages + stage, own[:, 2]
    is_last = (kind == FORWARD) & (place == places - 1)
    to = place + np.where(is_last, 0, np.where(kind == FORWARD, 1, np.where(kind == BACKWARD, -1, 0)))
    needs = np.where((kind == FORWARD) & (place == 0), -1, _number(kind, place, micro_batch, places))
    gives = _number(np.where(is_last, BACKWARD, kind), to, micro_batch, places)
    ends = (kind == WEIGHT_GRADIENT) | (to < 0)
    receiver = np.where(ends, -1, to % stages)
    link = np.where(ends | (receiver == stage), -1, kind)
    return _Handed(needs.tolist(), np.where(ends, -1, gives).tolist(), receiver.tolist(), link.tolist())


def _number(kind: Ints, place: Ints, micro_batch: Ints, places: int) -> Ints:
    return (micro_batch * places + place) * 3 + kind


def _run(
    handed: Sequence[_Handed], takes: Sequence[Sequence[float]], transfer_s: float
) -> tuple[list[list[float]], list[list[tuple[int, float]]]]:
    """Run stages pass by pass, each as far as it can, until none can go on.

    Returns the start of each pass that ran, and by stage the passes whose results were sent, with the start of that.
    """
    stages = len(handed)
    ready: dict[int, float] = {-1: 0.0}
    starts: list[list[float]] = [[] for _ in handed]
    sent: list[list[tuple[int, float]]] = [[] for _ in handed]
    free, links = [0.0] * stages, [[0.0, 0.0] for _ in handed]
    able = list(range(stages - 1, -1, -1))
    while able:
        stage = able.pop()
        (needs, gives, to, link), own, begun = handed[stage], takes[stage], starts[stage]
        for i in range(len(begun), len(own)):
            there = ready.get(needs[i])
            if there is None:
                break
            start = max(free[stage], there)
            end = free[stage] = start + own[i]
            begun.append(start)
            if needs[i] % 3 == BACKWARD and needs[i] >= 0:  # the weight gradient, where it is a pass of its own
                ready[needs[i] + 1] = end
            if gives[i] < 0:
                continue
            if link[i] >= 0 and transfer_s:
                leaves = max(end, links[stage][link[i]])
                end = links[stage][link[i]] = leaves + transfer_s
                sent[stage].append((i, leaves))
            ready[gives[i]] = end
            if to[i] != stage and to[i] not in able:
                able.append(to[i])
    return starts, sent


def _stream(fields: Ints, starts: Sequence[float], takes: Array) -> Stream:
    start_s = np.array(starts, dtype=np.float64)
    return Stream(fields[:, 0], fields[:, 1], fields[:, 2], start_s, start_s + takes)
