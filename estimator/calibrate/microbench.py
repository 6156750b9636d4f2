"""Published microbenchmarks beside their predictions, and the priors of a stack's efficiencies that they imply.

A trace of training tells what training sustains of a device's best rates; a benchmark that runs one kernel alone, warm
and unhindered, only what the shape costs. How far one device or source is from another is how far a new one may be.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from estimator.runs.csv_rows import RowsRead, Skipped, read_table
from estimator.runs.microbench_tables import FORMS, CollectiveRow, OpRow
from estimator.runs.microbench_vocabulary import SETTINGS, Timing
from estimator.stack.stack import Prior
from hardware.catalog import Catalog

IN_SITU = ("training", "inference")
"""Settings whose kernels ran among a network's others."""

KINDS_OF_OP = 5
"""Kinds of op that a step's seconds of one parameter are made of, whose efficiencies average.

assumed: of products query with key and value, output, gate with up, down, and the head; of others as many
"""

SHAMOS = 1.048358
"""Standard deviation over the median absolute difference of two, of a normal quantity (Shamos 1976)."""

MAD = 1.482602
"""Standard deviation over the median absolute deviation, of a normal quantity."""

TRANSFERS = (("product", "product"), ("element-wise", "stream"), ("attention", "attention"))
"""What was timed both in training and alone, under its kind there and here."""

Groups = dict[str, dict[tuple[str, str], npt.NDArray[np.float64]]]
"""Logarithms of ratios by setting, then by device and source."""


class TimingSummary(NamedTuple):
    """How far predictions at best rates are off; errors are predicted over measured seconds, less one."""

    device: str
    kind: str
    setting: str
    num_rows: int
    median_error: float
    """Median of the errors' sizes."""
    p90_error: float
    bias: float
    """Median of the errors: below 0 where the device sustains less than its best rate."""
    shape_error: float
    """Median of the errors' sizes once the bias is taken off: what the shape costs beyond its prediction."""


class Implied(NamedTuple):
    """A prior that measurements imply."""

    median: float
    log_sd: float
    num_rows: int
    """Of the setting that the median is of."""
    num_groups: int
    """Devices and sources of those rows."""
    setting: str
    num_compared: int
    """Devices and sources that tell how far apart they are."""


def read_timings(path: Path, catalog: Catalog) -> RowsRead[Timing]:
    """Read a table of microbenchmarks, which its columns tell: of kernels, or of collectives.

    Rows of the same kernels under another op's name, as a profiler nests them, count once.

    Raises:
        ValueError: the table cannot be read, lacks a column, or has gone wrong: which file, row and column.
    """
    known: set[tuple[str, float, int]] = set()

    def item_of(row: OpRow | CollectiveRow, name: str, _: int) -> Timing:
        timing = row.timing(name, catalog)
        if kernels := row.kernels:
            if kernels in known:
                raise ValueError("op: the kernels of a row before, under another name")
            known.add(kernels)
        return timing

    return read_table(path, "microbenchmarks", FORMS, item_of)


def summarize_timings(timings: Sequence[Timing]) -> tuple[TimingSummary, ...]:
    """Return how far predictions are off, by device, kind and setting; in that order."""
    ratios: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for timing in timings:
        ratios[timing.device, timing.kind, timing.setting].append(timing.ratio)
    return tuple(_summary(*key, np.array(found)) for key, found in sorted(ratios.items()))


def _summary(device: str, kind: str, setting: str, ratios: npt.NDArray[np.float64]) -> TimingSummary:
    sizes, middle = np.abs(ratios - 1), np.median(ratios)
    shape = np.median(np.abs(ratios / middle - 1))
    errors = (np.median(sizes), np.quantile(sizes, 0.9), middle - 1, shape)
    return TimingSummary(device, kind, setting, len(ratios), *map(float, errors))


def implied_priors(timings: Sequence[Timing]) -> dict[str, Implied]:
    """Return the prior of each efficiency that the timings speak of.

    median = exp(median over groups of the median over their rows of log r), of the setting nearest to training, a group
    being a device and a source; log_sd^2 = b^2 + w^2 / k + d^2, where b is how far apart groups of one setting are,
    w how far apart rows of one group, k = `KINDS_OF_OP`, and d, where the setting is not training, how far apart
    training and standalone timings are of what was timed in both.

    Attention and 8-bit products count beside 16-bit products of the same device and source, or else of the setting.
    An efficiency without two groups of a setting has none: they do not tell how far a new one may be.
    """
    kinds = {
        kind: _groups(timings, kind) for kind in ("product", "8-bit product", "attention", "element-wise", "stream")
    }
    base = kinds["product"]
    kinds |= {kind: _relative(kinds[kind], base) for kind in ("8-bit product", "attention")}
    of_parameter = {
        "matmul_efficiency": base,
        "memory_efficiency": kinds["element-wise"],
        "attention_efficiency": kinds["attention"],
        "fp8_efficiency": kinds["8-bit product"],
    }
    step = _transfer(kinds)
    found = {name: _implied(groups, step) for name, groups in of_parameter.items()}
    return {name: prior for name, prior in found.items() if prior}


def _groups(timings: Sequence[Timing], kind: str) -> Groups:
    """Return the logarithms of the ratios of a kind whose device is known, in the order of the settings."""
    ratios: dict[str, dict[tuple[str, str], list[float]]] = {setting: defaultdict(list) for setting in SETTINGS}
    for timing in timings:
        if timing.kind.startswith(kind) and timing.tells_rate:
            ratios[timing.setting][timing.device, timing.source].append(float(np.log(timing.ratio)))
    return {
        setting: {key: np.array(ratios[setting][key]) for key in sorted(ratios[setting])}
        for setting in SETTINGS
        if ratios[setting]
    }


def _relative(groups: Groups, base: Groups) -> Groups:
    """Return ratios over those of the base in the same group, or else over the middle of its setting."""
    return {
        setting: {
            key: logs - (np.median(base[setting][key]) if key in base[setting] else _middle(base[setting]))
            for key, logs in found.items()
        }
        for setting, found in groups.items()
        if setting in base
    }


def _middle(groups: Mapping[tuple[str, str], npt.NDArray[np.float64]]) -> float:
    return float(np.median([np.median(logs) for logs in groups.values()]))


def _transfer(kinds: Mapping[str, Groups]) -> float:
    """Return the root mean square of the steps from standalone timings to training; 0 where nothing tells them."""
    steps = [
        _middle(kinds[trained]["training"]) - _middle(kinds[alone]["standalone"])
        for trained, alone in TRANSFERS
        if "training" in kinds[trained] and "standalone" in kinds[alone]
    ]
    return float(np.sqrt(np.mean(np.square(steps)))) if steps else 0.0


def _implied(groups: Groups, step: float) -> Implied | None:
    """Return the prior of the groups of one efficiency; None where no setting has two."""
    wanted = [groups[setting] for setting in IN_SITU if setting in groups]
    if not _differences(wanted):
        wanted = list(groups.values())
    between = _differences(wanted)
    if not between:
        return None
    rows = [np.abs(logs - np.median(logs)) for found in wanted for logs in found.values() if len(logs) > 1]
    within = MAD * float(np.median(np.concatenate(rows))) if rows else 0.0
    setting, nearest = next(iter(groups.items()))
    variance = (SHAMOS * float(np.median(between))) ** 2 + within**2 / KINDS_OF_OP
    variance += 0.0 if setting == "training" else step**2
    middle, spread = float(np.exp(_middle(nearest))), float(np.sqrt(variance))
    compared = sum(len(found) for found in wanted if len(found) > 1)
    rows_of_middle = sum(len(logs) for logs in nearest.values())
    return Implied(middle, spread, rows_of_middle, len(nearest), setting, compared)


def _differences(settings: Sequence[Mapping[tuple[str, str], npt.NDArray[np.float64]]]) -> list[float]:
    """Return how far apart the middles of every two groups of a setting are."""
    middles = [[float(np.median(logs)) for logs in found.values()] for found in settings]
    return [abs(a - b) for found in middles for a, b in combinations(found, 2)]


def microbench_document(table: RowsRead[Timing], stacks: Mapping[str, Mapping[str, Prior]]) -> dict[str, Any]:
    """Return the JSON document of timings, and of the priors they imply beside those of stacks."""
    return {
        "schema": "microbench/1",
        "groups": [summary._asdict() for summary in summarize_timings(table.items)],
        "priors": [
            {"parameter": name}
            | implied._asdict()
            | {
                "stacks": {
                    stack: {"median": priors[name].median, "log_sd": priors[name].log_sd}
                    for stack, priors in stacks.items()
                    if name in priors
                }
            }
            for name, implied in implied_priors(table.items).items()
        ],
        "rows": [timing._asdict() for timing in table.items],
        "skipped": [skipped._asdict() for skipped in table.skipped],
    }


def joined(tables: Sequence[RowsRead[Timing]]) -> RowsRead[Timing]:
    """Return several tables as one."""
    items: tuple[Timing, ...] = tuple(timing for table in tables for timing in table.items)
    skipped: tuple[Skipped, ...] = tuple(row for table in tables for row in table.skipped)
    return RowsRead(items, skipped)
