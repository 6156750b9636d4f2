"""How much less is known beyond the runs of a fit: of more nodes, other sizes of model, and unknown sources.

Parts of the runs held out at random lie among the others, so that their errors say nothing of a run that lies beyond
all of them. Here the runs of most nodes are predicted from those of fewer, those of some sizes from those of others,
and those of some sources likewise (leave one group out: Roberts et al. 2017, doi:10.1111/ecog.02881). What their errors
have beyond the spreads stated, e^2 = c^2 r^2 + u^2 + s^2 d over a distance d, gives the further spread s: the one whose
90 % intervals hold 90 % of such errors, each group counting as much as the next.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.asking import Asking, together
from estimator.calibrate.fit_runs import FitProblem, RunsFit
from estimator.calibrate.run_model import BYTES, SECONDS
from estimator.calibrate.unseen import Errors, Unseen, predict_unseen
from estimator.runs.measured import Run
from estimator.stack.fit import Novelty, Reach, interval_ratio

COVERAGE = 0.9

MOST_CUTS = 2
"""Numbers of nodes, the largest, from which on runs are left out in turn."""

MOST_GROUPS = 3
"""Groups of sizes, and of sources, that are left out in turn."""

FEWEST_FITTED = 8
"""Timed runs that a fit to the others needs, else a group is not left out."""

ASSUMED_LOG_SD = {SECONDS: 0.05, BYTES: 0.03}
"""Further spread per doubling of nodes or of the hidden size, worth one group.

assumed: near what stacks with many runs show, 0.02 to 0.08 of seconds and 0.02 to 0.03 of bytes. Of another
source, seconds spread as its factor does; bytes do not, unless they were measured to: they follow from the software
"""


class Group(NamedTuple):
    """Runs that are left out together, and those they are predicted from."""

    novelty: Novelty
    rows: Array
    out: Array
    distance: Array
    """Of each run left out."""


def groups_of(runs: Sequence[Run], rows: Array) -> list[Group]:
    """Return what is left out in turn of the runs at some places."""
    own = [runs[i] for i in rows]
    nodes = np.log2([run.machine.num_nodes for run in own])
    sizes = np.log2([run.shape.hidden_size for run in own])
    speed = np.array([run.tells_speed for run in own])
    found: list[Group] = []

    def add(novelty: Novelty, out: Array, distance: Array) -> None:
        if speed[~out].sum() >= FEWEST_FITTED:
            found.append(Group(novelty, rows[~out], rows[out], distance))

    for cut in np.unique(nodes)[1:][-MOST_CUTS:]:
        out = nodes >= cut
        add("nodes", out, nodes[out] - nodes[~out].max())
    for out in _parts(sizes):
        add("size", out, np.abs(sizes[out][:, None] - np.unique(sizes[~out])).min(axis=1))
    for out in _parts(np.array([run.source for run in own])):
        add("source", out, np.ones(out.sum()))
    return found


def _parts(labels: Array) -> list[Array]:
    """Return the runs of each group of labels, as masks; none where all have one label."""
    known, of = np.unique(labels, return_inverse=True)
    count = min(len(known), MOST_GROUPS)
    group = np.random.default_rng(0).permutation(np.arange(len(known)) % count)
    return [group[of] == one for one in range(count)] if count > 1 else []


class LeftOut(NamedTuple):
    """A group as predicted from the others."""

    group: Group
    unseen: Unseen


def left_out(problem: FitProblem, found: RunsFit) -> Asking[list[LeftOut]]:
    """Return each group of the problem's runs as predicted from the others; errors are alike as a fit to all found."""
    groups = groups_of(problem.model.runs, problem.rows)
    asks = [predict_unseen(FitProblem(problem.model, group.rows), group.rows, group.out, found) for group in groups]
    unseen = yield from together(asks)
    return [LeftOut(group, one) for group, one in zip(groups, unseen, strict=True)]


def reach_of(
    problem: FitProblem, found: RunsFit, groups: Sequence[LeftOut], widened_by: dict[int, float], dof: int
) -> Reach:
    """Return how far the runs of a fit reach, and what lies beyond.

    Args:
        problem: the runs.
        found: the fit to all of them.
        groups: of them, left out in turn.
        widened_by: of each kind of measurement, what the spreads left have been found to be too narrow by.
        dof: of the Student's t of the intervals.
    """
    model, own = problem.model, [problem.model.runs[i] for i in problem.rows]
    of_sources = problem.spreads_between(found.solution)["source"]

    def log_sds(kind: int) -> dict[Novelty, float]:
        a_doubling, a_source = ASSUMED_LOG_SD[kind], of_sources if kind == SECONDS else 0.0
        assumed: dict[Novelty, float] = {"nodes": a_doubling, "size": a_doubling, "source": a_source}
        errors: dict[Novelty, list[tuple[Errors, Array]]] = {novelty: [] for novelty in assumed}
        for group, unseen in groups:
            known, rows = unseen.measured(model, kind, group.out)
            if len(rows):
                errors[group.novelty].append((known, group.distance[np.searchsorted(group.out, rows)]))
        return {
            novelty: further_log_sd(errors[novelty], before, widened_by[kind], dof)
            for novelty, before in assumed.items()
        }

    return Reach(
        most_nodes=max(run.machine.num_nodes for run in own),
        hidden_sizes=tuple(sorted({run.shape.hidden_size for run in own})),
        step_log_sd=log_sds(SECONDS),
        memory_log_sd=log_sds(BYTES),
    )


def further_log_sd(groups: Sequence[tuple[Errors, Array]], assumed: float, widened_by: float, dof: int) -> float:
    """Return the further spread at distance 1 that groups of errors show, each at its distances.

    Each error needs the s with |e| = t sqrt(c^2 r^2 + u^2 + s^2 d), t the quantile. Of all of them, weighted so that
    each group counts as much, the one that 90 % do not exceed, and what is assumed as if it were of one group more.

    >>> far = Errors(np.linspace(0, 2, 1999), *np.zeros((3, 1999)))
    >>> round(further_log_sd([(far, np.full(1999, 4.0))] * 99, 0.0, 1.0, 10**6), 2)  # 1.8 / 1.645 / sqrt(4)
    0.54
    """
    if not groups:
        return assumed
    quantile = np.log(interval_ratio(1.0, dof))
    needed = np.concatenate([
        np.maximum((e.values / quantile) ** 2 - (widened_by * e.residual) ** 2 - e.known**2, 0.0) / distance
        for e, distance in groups
    ])  # fmt: skip
    weight = np.concatenate([np.full(len(distance), 1 / len(distance)) for _, distance in groups])
    order = np.argsort(needed)
    reached = np.searchsorted(np.cumsum(weight[order]), COVERAGE * weight.sum())
    shown = float(needed[order][min(reached, len(needed) - 1)])
    return float(np.sqrt((len(groups) * shown + assumed**2) / (len(groups) + 1)))
