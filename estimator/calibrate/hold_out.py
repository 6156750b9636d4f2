"""How wrong a stack is on runs that it never saw: each part of the runs predicted by a fit to the others.

Everything in a prediction comes from the others: parameters, what the model leaves unexplained, and the spreads of the
intervals, which are those of parts of the others held out in turn, just as a stack is fitted to all.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.assess import Assessed, assess, fit_calls, summarize, timed, to_frame
from estimator.calibrate.fit_runs import FEWEST_TO_LEARN
from estimator.calibrate.fit_stack import NUM_FOLDS, fit_stacks, folds
from estimator.formulas.counts import step_flop
from estimator.runs.measured import Run
from estimator.stack.stack import ANY_TRAINER, Premises
from estimator.work.plan import PLAN_NAMES

if TYPE_CHECKING:
    import pandas as pd

FEWEST_FITTED = 8
"""Runs that a fit to the others needs, else the part is not predicted."""

CLEARLY_APART = 1.05
"""Ratio of two measured times from which on their order is asked for."""

SCHEMA = "hold-out/1"


def _by(label: Callable[[Run], str]) -> Callable[[Sequence[Run]], list[Array]]:
    def parts(runs: Sequence[Run]) -> list[Array]:
        labels = np.array([label(run) for run in runs])
        return [np.flatnonzero(labels == one) for one in np.unique(labels)]

    return parts


def _halves(runs: Sequence[Run]) -> list[Array]:
    half = folds(len(runs), 2)
    return [np.flatnonzero(half == one) for one in (0, 1)]


def _each(runs: Sequence[Run]) -> list[Array]:
    return [np.array([i]) for i in range(len(runs))]


def _most_nodes(runs: Sequence[Run]) -> list[Array]:
    nodes = np.array([run.machine.num_nodes for run in runs])
    return [np.flatnonzero(nodes == nodes.max())]


EACH = "each run"

SPLITS: dict[str, Callable[[Sequence[Run]], list[Array]]] = {
    "random half": _halves,
    "source": _by(lambda run: run.source),
    "model size": _by(lambda run: f"hidden size {run.shape.hidden_size}"),
    "most nodes": _most_nodes,
    EACH: _each,
}
"""Ways to hold out runs: the parts that are predicted, each from all others."""


def splits_of(premises: Premises, runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the ways to hold out a stack's runs: of few, each in turn; of one for any software, halves and sources."""
    if sum(run.tells_speed for run in runs) < FEWEST_TO_LEARN:
        return (EACH,)
    if premises.trainer == ANY_TRAINER:
        return "random half", "source"
    return tuple(split for split in SPLITS if split != EACH)


def hold_out(premises: Premises, runs: Sequence[Run], split: str) -> list[Assessed]:
    """Return the runs of a stack's trainer, predicted without the part that they are in; see `SPLITS`."""
    own = [run for run in runs if premises.is_of(run.trainer)]
    fewest = 1 if split == EACH else FEWEST_FITTED
    every, speed = np.arange(len(own)), np.array([run.tells_speed for run in own])
    parts = [(part, np.setdiff1d(every, part)) for part in SPLITS[split](own)]
    parts = [(part, others) for part, others in parts if speed[others].sum() >= fewest]
    stacks = fit_stacks(premises, own, [others for _, others in parts], NUM_FOLDS)
    return [
        row
        for (part, _), stack in zip(parts, stacks, strict=True)
        for row in assess([own[i] for i in part], [stack]).rows
    ]


def hold_outs(premises: Mapping[str, Premises], runs: Sequence[Run]) -> dict[str, dict[str, list[Assessed]]]:
    """Return the runs of each stack that has some, held out by each split as `hold_out` does, on all processors."""
    own = {name: [run for run in runs if one.is_of(run.trainer)] for name, one in premises.items()}
    asked = [
        (name, split) for name, of_stack in own.items() if of_stack for split in splits_of(premises[name], of_stack)
    ]
    # those of most fits to most runs first, so that no processor is left with one at the end
    cost = {(name, split): len(SPLITS[split](own[name])) * len(own[name]) for name, split in asked}
    with ProcessPoolExecutor() as pool:
        waited = {
            (name, split): pool.submit(hold_out, premises[name], own[name], split)
            for name, split in sorted(asked, key=lambda key: -cost[key])
        }
        found: dict[str, dict[str, list[Assessed]]] = {name: {} for name, _ in asked}
        for name, split in asked:
            found[name][split] = waited[name, split].result()
    return found


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


def hold_out_document(found: Mapping[str, Mapping[str, Sequence[Assessed]]]) -> dict[str, Any]:
    """Return stacks and splits as an object, schema `hold-out/1`: how wrong they are, and each run as predicted."""
    return {
        "schema": SCHEMA,
        "stacks": {
            name: {split: _split_document(rows) for split, rows in splits.items() if rows}
            for name, splits in found.items()
        },
    }


def without_rows(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document of hold-outs without the single runs, as `calibrate --hold-out --json` prints it."""
    stacks = {
        name: {split: {key: one for key, one in parts.items() if key != "rows"} for split, parts in splits.items()}
        for name, splits in document["stacks"].items()
    }
    return {**document, "stacks": stacks}


def _split_document(rows: Sequence[Assessed]) -> dict[str, Any]:
    frame = to_frame(rows)
    return {
        **_summaries(frame, "all").get("all", {}),
        "fit_calls": _rounded(fit_calls(frame)._asdict()),
        "ranking": _rounded(ranking(frame)._asdict()),
        "by_model": _summaries(frame, "model"),
        "by_source": _summaries(frame, "source"),
        "rows": [_row_document(row) for row in rows],
    }


def _row_document(row: Assessed) -> dict[str, Any]:
    run = row.run
    rate = None if run.step_s is None else float(f"{_flop_per_device(run) / run.step_s:.5g}")
    return {
        "name": run.name,
        "source": run.source,
        "tp": run.plan.tp,
        "unhealthy": run.why_unhealthy,
        **_beside(row),
        "flop_per_s_per_device": rate,
        "fits": run.fits,
        "fits_probability": round(row.fits_probability, 4),
    }


def _flop_per_device(run: Run) -> float:
    """FLOP of a step of a device as rates are usually quoted: attention in full, nothing recomputed."""
    tokens = run.workload.tokens_per_step
    flop = step_flop(tokens, run.seq_len, run.shape, causal=False, keeps_scores=True, recompute=False)
    return float(flop) / run.machine.num_devices


def _summaries(frame: "pd.DataFrame", by: str) -> dict[str, dict[str, Any]]:
    """Return the summaries of each group, by measure."""
    found: dict[str, dict[str, Any]] = {}
    for one in summarize(frame, by).reset_index().to_dict("records"):
        group, measure = one.pop("group"), one.pop("measure")
        found.setdefault(group, {})[measure] = _rounded(one)
    return found


def _rounded(numbers: Mapping[Any, float]) -> dict[str, float]:
    return {name: round(number, 4) for name, number in numbers.items()}


def _beside(row: Assessed) -> dict[str, float | list[float] | None]:
    """Return what was measured of a run, and each prediction with the ends of its interval."""
    found: dict[str, float | list[float] | None] = {}
    for name, (measured, predicted) in row.compared.items():
        if predicted:
            found |= {name: measured, f"predicted_{name}": [float(f"{number:.5g}") for number in predicted]}
    return found
