"""How wrong a stack is on runs that it never saw: each part of the runs predicted by a fit to the others.

Everything in a prediction comes from the others: parameters, what the model leaves unexplained, and the spreads of the
intervals, which are those of parts of the others held out in turn.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.assess import Assessed, assess, fit_calls, summarize, timed, to_frame
from estimator.calibrate.fit_stack import fit_stack_to_runs, folds
from estimator.formulas.counts import step_flop
from estimator.runs.measured import Run
from estimator.stack.stack import ANY_TRAINER, Premises
from estimator.work.plan import PLAN_NAMES

if TYPE_CHECKING:
    import pandas as pd

NUM_FOLDS = 3
"""Of the others, from which the spreads are found; few, as there are many fits."""

FEWEST_FITTED = 8
"""Runs that a fit to the others needs, else the part is not predicted."""

CLEARLY_APART = 1.05
"""Ratio of two measured times from which on their order is asked for."""

SANE_FLOP_PER_S, SANE_TP = 100e12, 8
"""Of the rows on which other estimators were compared: rate per device, and tensor-parallel degree at most."""


def _by(label: Callable[[Run], str]) -> Callable[[Sequence[Run]], list[Array]]:
    def parts(runs: Sequence[Run]) -> list[Array]:
        labels = np.array([label(run) for run in runs])
        return [np.flatnonzero(labels == one) for one in np.unique(labels)]

    return parts


def _halves(runs: Sequence[Run]) -> list[Array]:
    half = folds(len(runs), 2)
    return [np.flatnonzero(half == one) for one in (0, 1)]


def _most_nodes(runs: Sequence[Run]) -> list[Array]:
    nodes = np.array([run.machine.num_nodes for run in runs])
    return [np.flatnonzero(nodes == nodes.max())]


SPLITS: dict[str, Callable[[Sequence[Run]], list[Array]]] = {
    "random half": _halves,
    "source": _by(lambda run: run.source),
    "model size": _by(lambda run: f"hidden size {run.shape.hidden_size}"),
    "most nodes": _most_nodes,
}
"""Ways to hold out runs: the parts that are predicted, each from all others."""


def splits_of(premises: Premises) -> tuple[str, ...]:
    """Return the ways to hold out a stack's runs: of one for any software, by halves and by source."""
    return ("random half", "source") if premises.trainer == ANY_TRAINER else tuple(SPLITS)


def hold_out(premises: Premises, runs: Sequence[Run], split: str) -> list[Assessed]:
    """Return the runs of a stack's trainer, predicted without the part that they are in; see `SPLITS`."""
    own = [run for run in runs if premises.is_of(run.trainer)]
    return [row for part in SPLITS[split](own) for row in _hold_out_part(premises, own, part)]


def _hold_out_part(premises: Premises, own: list[Run], part: Array) -> tuple[Assessed, ...]:
    inside = np.zeros(len(own), dtype=bool)
    inside[part] = True
    others = [own[i] for i in np.flatnonzero(~inside)]
    if sum(run.tells_speed for run in others) < FEWEST_FITTED:
        return ()
    return assess([own[i] for i in part], [fit_stack_to_runs(premises, others, {}, NUM_FOLDS)]).rows


def hold_outs(premises: Mapping[str, Premises], runs: Sequence[Run]) -> dict[str, dict[str, list[Assessed]]]:
    """Return the runs of each stack that has some, held out by each split as `hold_out` does, on all processors."""
    own = {name: [run for run in runs if one.is_of(run.trainer)] for name, one in premises.items()}
    parts = {
        (name, split): SPLITS[split](of_stack)
        for name, of_stack in own.items()
        if of_stack
        for split in splits_of(premises[name])
    }
    with ProcessPoolExecutor() as pool:
        # the largest stacks first, so that no processor is left with one at the end
        waited = {
            (name, split): [pool.submit(_hold_out_part, premises[name], own[name], part) for part in of_split]
            for (name, split), of_split in sorted(parts.items(), key=lambda item: -len(own[item[0][0]]))
        }
        rows = {key: [row for one in futures for row in one.result()] for key, futures in waited.items()}
    return {name: {split: rows[name, split] for split in splits_of(premises[name])} for name in own if own[name]}


SAME_WORK = (
    "source", "accelerator", "num_devices", "num_nodes", "model", "hidden_size", "num_layers", "vocab_size", "seq_len",
    "global_batch", "recipe",
)  # fmt: skip
"""Columns in which runs agree that did the same work on the same devices."""


class Ranking(NamedTuple):
    """Pairs of healthy runs of one model, batch and number of devices, whose plans and times differ."""

    num_pairs: int
    right: float
    """Part of the pairs of which the faster is predicted faster."""


def ranking(frame: "pd.DataFrame") -> Ranking:
    """Return how often the faster of two plans is predicted faster, of those that are clearly apart."""
    count = right = 0
    for _, members in timed(frame).groupby(list(SAME_WORK)):
        measured, predicted = (np.log(members[name].to_numpy()) for name in ("step_s", "predicted_step_s"))
        plans = members.groupby(list(PLAN_NAMES)).ngroup().to_numpy()
        apart = np.subtract.outer(measured, measured)
        pairs = (apart > np.log(CLEARLY_APART)) & (plans[:, None] != plans)
        count += int(pairs.sum())
        right += int((pairs & (np.subtract.outer(predicted, predicted) > 0)).sum())
    return Ranking(count, right / count if count else 1.0)


class Peer(NamedTuple):
    """A measure that other estimators were held to on the same rows."""

    rows: str
    num_runs: int
    mean_error: float
    """Mean absolute error of seconds, predicted over measured less 1."""
    best_peer: str


def peers(rows: Sequence[Assessed]) -> list[Peer]:
    """Return the errors on the rows and measures on which other estimators were compared."""
    measured = [row for row in rows if row.run.step_s is not None]
    h100 = [row for row in measured if row.run.source == "nanotron ultrascale"]
    sane = [row for row in h100 if row.run.plan.tp <= SANE_TP and _flop_per_device_s(row.run) >= SANE_FLOP_PER_S]
    healthy = [row for row in h100 if not row.run.why_unhealthy]
    single = [row for row in measured if row.run.source == "vTrain single node"]
    several = [row for row in measured if row.run.source.startswith("vTrain ground truth")]
    asked = (
        ("H100: all that succeeded", h100, False, "SimuMax 52.5 %"),
        ("H100: healthy", healthy, False, "none published"),
        ("H100: tp <= 8, 100 TFLOP/s or more, one scale", sane, True, "SimuMax 19.7 %; FLOP count 27.9 %"),
        ("A100, single node", single, False, "SimuMax 24.6 %; 17.7 % after one scale; vTrain claims 8.4 % with traces"),
        ("A100, several nodes", several, False, "Calculon 12.9 %; 9.6 % after one scale; vTrain claims 14.7 %"),
    )
    return [Peer(what, len(own), _mean_error(own, scaled=scaled), best) for what, own, scaled, best in asked if own]


def _flop_per_device_s(run: Run) -> float:
    tokens = run.workload.tokens_per_step
    flop = step_flop(tokens, run.seq_len, run.shape, causal=False, keeps_scores=True, recompute=False)
    return float(flop) / run.machine.num_devices / (run.step_s or np.inf)


def _mean_error(rows: Sequence[Assessed], *, scaled: bool) -> float:
    """Return the mean absolute error, of predictions all multiplied by the one factor that makes it least if scaled."""
    ratio = np.array([row.step_s.value / (row.run.step_s or np.nan) for row in rows])
    factors = np.exp(np.linspace(-0.5, 0.5, 1001)) if scaled else np.ones(1)
    return float(min(np.abs(factor * ratio - 1).mean() for factor in factors))


def holdout_document(found: dict[str, dict[str, list[Assessed]]]) -> dict[str, Any]:
    """Return the object that `calibrate --runs --hold-out --json` prints, schema `holdout/1`, of stacks and splits."""
    halves = [row for splits in found.values() for row in splits.get("random half", [])]
    return {
        "schema": "holdout/1",
        "stacks": {
            name: {split: _split_document(rows) for split, rows in splits.items() if rows}
            for name, splits in found.items()
        },
        "peers": [peer._asdict() for peer in peers(halves)],
    }


def _split_document(rows: Sequence[Assessed]) -> dict[str, Any]:
    frame = to_frame(rows)
    return {
        **_summaries(frame, "all").get("all", {}),
        "fit_calls": fit_calls(frame)._asdict(),
        "ranking": ranking(frame)._asdict(),
        "by_model": _summaries(frame, "model"),
        "by_source": _summaries(frame, "source"),
        "rows": [
            {
                "name": row.run.name,
                "source": row.run.source,
                "unhealthy": row.run.why_unhealthy,
                **_beside(row),
                "fits": row.run.fits,
                "fits_probability": round(row.fits_probability, 4),
            }
            for row in rows
        ],
    }


def _summaries(frame: "pd.DataFrame", by: str) -> dict[str, dict[str, Any]]:
    """Return the summaries of each group, by measure."""
    found: dict[str, dict[str, Any]] = {}
    for one in summarize(frame, by).reset_index().to_dict("records"):
        found.setdefault(one.pop("group"), {})[one.pop("measure")] = one
    return found


def _beside(row: Assessed) -> dict[str, float | list[float] | None]:
    """Return what was measured of a run, and each prediction with the ends of its interval."""
    found: dict[str, float | list[float] | None] = {}
    for name, (measured, predicted) in row.compared.items():
        if predicted:
            found |= {name: measured, f"predicted_{name}": [float(f"{number:.5g}") for number in predicted]}
    return found
