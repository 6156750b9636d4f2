"""What the words of published microbenchmarks mean: which device, where it was timed, and by whom."""

import re
from typing import NamedTuple

import numpy as np

from hardware.catalog import Catalog
from hardware.errors import shown
from hardware.models import Accelerator

SAME_RATE = 1.01
"""Predictions for the devices that a name leaves open are one within this ratio."""

SETTINGS = ("training", "inference", "standalone", "best shape")
"""Where a kernel was timed, nearest to a training step first; the last, as the best of a search, made the catalog."""

_TRACES = "tests/traces/"
_TRAINING = re.compile(r"training|traces/(?:compare_test_ops|mi300/resnet_act_checkpoint|mi300/llama_70b_fsdp)")
_OF_TRACE = re.compile(r"tests/traces/(?:(?:h100|mi300)/)?([^/]+)")

_DEVICES = (
    (r"MI350X/MI355X.*", ("mi350x", "mi355x")),
    (r"MI(?:300X|325X|350X|355X)(?: \(gfx\d+\))?", ()),  # their ids
    (r"A100[- ]SXM(?:-80GB)?", ("a100-sxm-80gb",)),  # the source's other size has the same products
    (r"H100(?:[- ]SXM)?(?:-80GB)?(?: \(H200 same\))?", ("h100-sxm-80gb",)),  # traced beyond what the PCIe card peaks at
    (r"H200[- ]SXM(?:-141GB)?", ("h200-sxm-141gb",)),
    (r"B200 SXM", ("b200-sxm-180gb",)),
    (r"B300 SXM", ("b300-sxm-288gb",)),
    (r"GB200(?: SXM)?", ("gb200-186gb",)),
)


class Timing(NamedTuple):
    """What was timed, beside its prediction."""

    name: str
    """Of its row."""
    device: str
    """Id of its accelerator; of several that a name leaves open, joined by a slash."""
    kind: str
    setting: str
    source: str
    """The trace, or the publication."""
    ratio: float
    """Predicted seconds, at best rates, over measured ones."""
    tells_rate: bool
    """Whether its device is known well enough to tell what it sustains, and not the shape's cost alone."""


def devices_of(gpu: str, catalog: Catalog) -> tuple[Accelerator, ...]:
    """Return the devices that a cell may mean: one of the catalog's by its id, or those of a known spelling.

    Raises:
        ValueError: it means none.
    """
    if gpu in (accelerator.id for accelerator in catalog.accelerators):
        return (catalog.accelerator(gpu),)
    for pattern, ids in _DEVICES:
        if re.fullmatch(pattern, gpu):
            return tuple(catalog.accelerator(name) for name in ids or (gpu.split(" ", maxsplit=1)[0].casefold(),))
    raise ValueError(f"gpu: {shown(gpu)} is no accelerator of the catalog")


def setting_of(source: str, what: str) -> str:
    """Return where a kernel was timed, of a row's source and its own words."""
    if "(max)" in what:
        return "best shape"
    if _TRAINING.search(source):
        return "training"
    return "inference" if _TRACES in source else "standalone"


def source_of(source: str) -> str:
    """Return the trace, or the publication, that rows have in common.

    >>> source_of("AMD-AGI/TraceLens tests/traces/compare_test_ops/256thread/GEMM.csv")
    'compare_test_ops'
    """
    found = _OF_TRACE.search(source)
    return found[1] if found else source.split(" ", maxsplit=1)[0]


def timing_of(name: str, source: str, op: str, kind: str, ratios: dict[str, float]) -> Timing:
    """Return the timing of a row whose ratio on each device that it may mean is so; of several, the geometric mean."""
    values = list(ratios.values())
    middle = float(np.exp(np.log(values).mean()))
    is_one = max(values) <= SAME_RATE * min(values)
    return Timing(name, "/".join(ratios), kind, setting_of(source, op), source_of(source), middle, is_one)
