"""What the words of published microbenchmarks mean: which device, where it was timed, and by whom."""

import re

from raw import CATALOG

from hardware.models import Accelerator

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


def devices_of(gpu: str) -> tuple[Accelerator, ...]:
    """Return the devices that a cell may mean: one of the catalog's by its id, or those of a known spelling."""
    if gpu in (accelerator.id for accelerator in CATALOG.accelerators):
        return (CATALOG.accelerator(gpu),)
    for pattern, ids in _DEVICES:
        if re.fullmatch(pattern, gpu):
            return tuple(CATALOG.accelerator(name) for name in ids or (gpu.split(" ", maxsplit=1)[0].casefold(),))
    raise ValueError(f"gpu: {gpu!r} is no accelerator of the catalog")


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
