"""Kernels of `op_microbench.csv`: products, attention, element-wise ops and copies, each a rate or a mean time.

Only the traces of training tell what training sustains; the other traces are of inference, the guides' products ran
alone, and "gemm (max)" is the best of a search. A profiler nests ops: the same kernels count once, under the first
name that can be compared. A repeated operand moves less than its shape says.
"""

import re

from raw import CATALOG, Row, number, whole
from timing_words import devices_of, setting_of, source_of

from estimator.calibrate.microbench import compared
from estimator.runs.timings import Timed

_PRECISIONS = (
    ("fp8", re.compile(r"fp8|Float8")),
    ("fp32", re.compile(r"fp32|'float'|'double'")),
    ("bf16", re.compile(r"bf16|fp16|BFloat16|Half")),
)

_STRIDES = re.compile(r"stride_\w+=\(([\d, ]*)\)")
_POSITIONS = re.compile(r"(?:N_Q=|N_KV=|\bseq |\bN)(\d{1,9})")

_known: set[tuple[str, float, int]] = set()
"""What tells the kernels of rows so far from others in their file."""


def run_of(row: Row, number_of_row: int) -> Timed:
    """Return the kernel of a row; a ValueError says why it is none that is modelled."""
    flop, moved, time = (_figure(row, name) for name in ("tflops_mean", "tb_per_s_mean", "time_us_mean"))
    timed = Timed(
        name=f"row {number_of_row}",
        source=source_of(row["source"]),
        setting=setting_of(row["source"], row["op"]),
        kind=_kind(row),
        accelerators=devices_of(row["gpu"]),
        m=whole(row, "M"),
        n=whole(row, "N"),
        k=whole(row, "K"),
        positions=min(map(int, _POSITIONS.findall(row["params"])), default=None) if _is_attention(row) else None,
        seconds=time / 1e6 if time else None,
        flop_per_s=flop * 1e12 if flop else None,
        bytes_per_s=moved * 1e12 if moved else None,
    )
    if (whole(row, "batch") or 1) > 1 and row["category"] == "GEMM":
        raise ValueError(f"batch: {row['batch']} products in one kernel are not modelled")
    kernels = (row["source"], time, whole(row, "count"))
    if time and kernels[2]:
        _refuse_nested(timed, kernels)
    return timed


def _refuse_nested(timed: Timed, kernels: tuple[str, float, int]) -> None:
    """Refuse the kernels of a row before, under another name; those that cannot be compared hide no others."""
    try:
        compared(timed, CATALOG)
    except ValueError:
        return
    if kernels in _known:
        raise ValueError("op: the kernels of a row before, under another name")
    _known.add(kernels)


def _figure(row: Row, column: str) -> float | None:
    """Return the number of a cell, None also where its source rounds it to nothing."""
    return number(row, column) or None


def _is_attention(row: Row) -> bool:
    return re.match(r"SDPA_|flash attention", row["category"]) is not None


def _kind(row: Row) -> str:
    category, params = row["category"], row["params"]
    if category == "GEMM":
        precision = next((name for name, words in _PRECISIONS if words.search(params)), None)
        if precision not in ("bf16", "fp8"):
            what = precision or "unstated"
            raise ValueError(f"params: {what} products are not compared, only those of 16 and 8 bits")
        return "8-bit product" if precision == "fp8" else "product"
    if _is_attention(row):
        if "flash_impl=False" in params:
            raise ValueError("params: flash_impl=False, which is no fused kernel of training")
        return f"attention {'backward' if re.search(r'bwd|backward', category) else 'forward'}"
    if category not in ("HBM", "UnaryElementwise", "BinaryElementwise", "Normalization"):
        raise ValueError(f"category: {category!r} is no op of a language model's step")
    if any("0" in re.split(r", ?", strides) for strides in _STRIDES.findall(params)):
        raise ValueError("params: an operand is repeated (stride 0); it moves less than its shape says")
    return "stream" if category == "HBM" else "element-wise"
