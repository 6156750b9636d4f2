"""Microbenchmarks beside their predictions, and the priors of a stack's efficiencies that they imply.

Each is predicted by the functions that a step is made of, at the catalog's best rates of its device. What they miss by
is what a stack sustains of those rates, and what the shape costs beyond `compute.shape_efficiency`. A trace of training
tells what training sustains of them; a benchmark that runs one kernel alone, warm and unhindered, only what the shape
costs. How far one device or source is from another is how far a new one may be.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from estimator.calibrate import alone
from estimator.formulas.attention import FUSED_ATTENTION_RATE
from estimator.formulas.collectives import Group, all_reduce_seconds, gather_seconds
from estimator.formulas.compute import Rates, matmul_seconds, sustained_rates
from estimator.formulas.counts import attention_backward_flop
from estimator.formulas.machine import Machine
from estimator.runs.csv_rows import RowsRead, Skipped
from estimator.runs.timings import COLLECTIVES, SETTINGS, Timed, read_timing_table
from estimator.stack.efficiencies import PARAMETERS, Efficiencies
from estimator.stack.stack import Prior
from hardware.catalog import Catalog
from hardware.models import Accelerator, MatmulPrecision
from hardware.units import MIB

LEAST_FLOP = 1e9
"""Of a product that is compared.  # assumed: a layer's smallest has more"""

LEAST_S = 1e-5
"""Of a kernel that is compared.  # assumed: below, its launch and its first loads are what is timed"""

LEAST_POSITIONS = 1024
"""Of a fused attention that is compared: its rate, which is predicted alike of all, is that of long sequences.

measured: kernels of 141 to 559 positions reach a tenth to a fourth of it (AMD-AGI/TraceLens, H100 and MI300X)
"""

CACHE_BYTES = {"Ampere": 40e6, "Hopper": 50e6, "Blackwell": 126e6, "CDNA2": 8e6, "CDNA3": 256e6, "CDNA4": 256e6}
"""Last cache of a device, by architecture.  # datasheet: NVIDIA's L2, AMD's L2 (CDNA2) and Infinity Cache"""

LEAST_CACHES = 2.0
"""Bytes of an element-wise op that is compared, over those of the last cache.  # assumed: most then goes to memory"""

RATE_TOLERANCE = 0.1
"""A row's rate and time tell the same within this: a mean of rates is not the rate of the mean time."""

BEST = Efficiencies(**dict.fromkeys(PARAMETERS, 1.0))
"""What a stack would be that sustains the best measured rates."""

SAME_RATE = 1.01
"""Predictions for the devices that a name leaves open are one within this ratio."""

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


class Timing(NamedTuple):
    """What was timed, beside its prediction."""

    name: str
    """Of its row."""
    device: str
    """Id of its accelerator; of several that a name leaves open, joined by a slash."""
    kind: str
    """Of a collective, with the range of its size."""
    setting: str
    source: str
    ratio: float
    """Predicted seconds, at best rates, over measured ones."""
    tells_rate: bool
    """Whether its device is known well enough to tell what it sustains, and not the shape's cost alone."""


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
    """Read a table of microbenchmarks, and predict each; what cannot be compared is skipped with its reason.

    Raises:
        ValueError: the table cannot be read, has a column that is not known, or has gone wrong: which file, row and
            column.
    """
    read = read_timing_table(path, catalog)
    items: list[Timing] = []
    skipped = list(read.skipped)
    for timed in read.items:
        try:
            items.append(compared(timed, catalog))
        except ValueError as error:
            skipped.append(Skipped(timed.name, str(error)))
    return RowsRead(tuple(items), tuple(skipped))


def compared(timed: Timed, catalog: Catalog) -> Timing:
    """Return what was timed beside its prediction; of devices that its name leaves open, the geometric mean.

    Raises:
        ValueError: it tells nothing of what is predicted: which column, and why.
    """
    ratios = {device.id: _ratio(timed, device, catalog) for device in timed.accelerators}
    values = list(ratios.values())
    middle = float(np.exp(np.log(values).mean()))
    is_one = max(values) <= SAME_RATE * min(values)
    kind = f"{timed.kind} {_sizes(_stated(timed, 'message_bytes'))}" if timed.kind in COLLECTIVES else timed.kind
    return Timing(timed.name, "/".join(ratios), kind, timed.setting, timed.source, middle, is_one)


def _ratio(timed: Timed, device: Accelerator, catalog: Catalog) -> float:
    """Return predicted seconds, at best rates, over measured ones."""
    if timed.kind in COLLECTIVES:
        return _of_collective(timed, device, catalog)
    if timed.kind.endswith("product"):
        return _of_product(timed, device)
    if timed.kind.startswith("attention"):
        return _of_attention(timed, device)
    return _of_moved(timed, device)


def _of_product(timed: Timed, device: Accelerator) -> float:
    m, n, k = (float(_stated(timed, name)) for name in ("m", "n", "k"))
    in_8_bits = timed.kind == "8-bit product"
    precision: MatmulPrecision = "fp8" if in_8_bits else device.usual_precision
    flop = 2.0 * m * n * k
    told, implied = timed.seconds, timed.flop_per_s and flop / timed.flop_per_s
    if told and implied and abs(np.log(told / implied)) > RATE_TOLERANCE:
        raise ValueError(f"seconds: {told * 1e6:g} us is stated, {implied * 1e6:.4g} follows from the rate")
    seconds = told or implied
    if seconds is None:
        raise ValueError("seconds: neither a time nor flop_per_s is stated")
    if flop < LEAST_FLOP or seconds < LEAST_S:
        raise ValueError(f"m: a product of {flop / 1e9:.3g} GFLOP in {seconds * 1e6:.3g} us is too small to compare")
    best = _best_rates(device, precision)
    _refuse_beyond(flop / seconds, device.peaks[precision], "FLOP/s", device)
    if timed.setting == "standalone" and device.id in alone.ALONE and not in_8_bits:
        found = alone.ALONE[device.id]
        return _longer_than(found.launch_s, float(alone.product_seconds(m, n, k, device, found))) / seconds
    rates = {"flop_per_s": best.weights_flop_per_s, "bytes_per_s": best.bytes_per_s}
    units = best.num_compute_units
    return float(matmul_seconds(m, n, k, num_compute_units=units, precision=precision, **rates)) / seconds


def _of_attention(timed: Timed, device: Accelerator) -> float:
    positions, measured = _stated(timed, "positions"), _stated(timed, "flop_per_s")
    _refuse_beyond(measured, device.usual_flop_per_s, "FLOP/s", device)
    way = timed.kind.removeprefix("attention ")
    if timed.kernel and device.id in alone.ALONE:
        sequences, head_dim = _stated(timed, "sequences"), _stated(timed, "head_dim")
        flop = 4.0 if way == "forward" else attention_backward_flop(4.0, keeps_scores=False)
        kernel = getattr(alone.KERNELS[timed.kernel], way)
        found = float(alone.attention_seconds(sequences, positions, head_dim, kernel, flop, device))
        seconds = float(_stated(timed, "seconds"))
        return _longer_than(alone.ATTENTION_LAUNCH_S[way], found) / seconds
    if positions < LEAST_POSITIONS:
        raise ValueError(f"positions: {positions}; {LEAST_POSITIONS} and more are compared")
    rate = FUSED_ATTENTION_RATE[way]
    return float(measured / (float(_best_rates(device, device.usual_precision).attention_flop_per_s) * rate))


def _longer_than(launch_s: float, seconds: float) -> float:
    """Return the seconds of an operation alone, launched in so many; one that its launch outlasts tells nothing."""
    if seconds < launch_s:
        raise ValueError(f"seconds: some {seconds * 1e6:.3g} us are less than the {launch_s * 1e6:.3g} of its launch")
    return float(alone.larger(seconds, launch_s))


def _of_moved(timed: Timed, device: Accelerator) -> float:
    measured = _stated(timed, "bytes_per_s")
    if timed.kind != "stream":
        cache, moved = CACHE_BYTES.get(device.architecture.split(" ")[0]), measured * _stated(timed, "seconds")
        if cache is None:
            raise ValueError(f"accelerator: the cache of {device.id} is not known")
        if moved < LEAST_CACHES * cache:
            raise ValueError(
                f"bytes_per_s: {moved / 1e6:.3g} MB, which a cache of {cache / 1e6:g} MB holds in good part"
            )
    _refuse_beyond(measured, device.hbm_bytes_per_s, "bytes/s", device)
    return float(measured / float(_best_rates(device, device.usual_precision).bytes_per_s))


def _of_collective(timed: Timed, device: Accelerator, catalog: Catalog) -> float:
    size, members, nodes = (_stated(timed, name) for name in ("message_bytes", "num_devices", "num_nodes"))
    if members < 2:
        raise ValueError("num_devices: one device has nobody to send to")
    passes = 2.0 if timed.kind == "all-reduce" else 1.0
    seconds = timed.seconds
    if seconds is None:
        seconds = passes * (members - 1) / members * size / _stated(timed, "bytes_per_s")
    machine = Machine.of(catalog, catalog.flavor_of(device.id, members))
    if nodes != machine.num_nodes:
        raise ValueError(f"num_nodes: {nodes} are stated, {machine.num_nodes} of the catalog hold the devices")
    collective = all_reduce_seconds if timed.kind == "all-reduce" else gather_seconds
    return float(collective(float(size), Group(machine.devices_per_node, nodes), machine)) / seconds


def _sizes(message_bytes: int) -> str:
    return "< 1 MiB" if message_bytes < MIB else "< 64 MiB" if message_bytes < 64 * MIB else ">= 64 MiB"


def _stated(timed: Timed, column: str) -> Any:
    value = getattr(timed, column)
    if value is None:
        raise ValueError(f"{column}: not stated")
    return value


def _refuse_beyond(rate: float, peak: float | None, unit: str, device: Accelerator) -> None:
    if peak is not None and rate > peak:
        raise ValueError(f"accelerator: {rate:.4g} {unit} are more than the peak of {device.id}, {peak:.4g}")


def _best_rates(device: Accelerator, precision: MatmulPrecision) -> Rates:
    return sustained_rates(device, BEST, precision)


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
