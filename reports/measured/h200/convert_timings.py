"""Write the operations of this folder in the format that `calibrate` reads: run once, its output is committed.

    python reports/measured/h200/convert_timings.py

Products are y = x w^T of M tokens, N outputs and K inputs, and its two gradients. FLOP of attention are those of the
causal half, backward 2.5 times, as `attention.csv` has them; its default was cuDNN's kernel.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from estimator.runs.timings import Timed, write_timing_table
from hardware.catalog import load_catalog

HERE = Path(__file__).parent
ALIKE: dict[str, Any] = {
    "source": "foretrain, one H200",
    "setting": "standalone",
    "accelerators": (load_catalog().accelerator("h200-sxm-141gb"),),
}


def products() -> Iterator[Timed]:
    """Yield the forward pass and the two gradients of each product."""
    for number, row in enumerate(_rows("gemm.csv"), start=1):
        m, n, k = (int(row[name]) for name in ("M", "N", "K"))
        for way, (rows, columns, inner) in {"fwd": (m, n, k), "dgrad": (m, k, n), "wgrad": (n, k, m)}.items():
            seconds = round(float(row[f"{way}_us"]) / 1e6, 12)
            yield Timed(f"gemm {number} {way}", kind="product", m=rows, n=columns, k=inner, seconds=seconds, **ALIKE)


def attention() -> Iterator[Timed]:
    """Yield the two passes of each attention."""
    for number, row in enumerate(_rows("attention.csv"), start=1):
        for way, words in (("fwd", "forward"), ("bwd", "backward")):
            yield Timed(
                f"attention {number} {way}",
                kind=f"attention {words}",
                positions=int(row["s"]),
                sequences=int(row["b"]) * int(row["h"]),
                head_dim=int(row["d"]),
                kernel="cudnn" if row["backend"] == "default" else row["backend"],
                seconds=round(float(row[f"{way}_us"]) / 1e6, 12),
                flop_per_s=float(row[f"{way}_tflops_causal"]) * 1e12,
                **ALIKE,
            )


def copies() -> Iterator[Timed]:
    """Yield the copies, each byte read and written."""
    for number, line in enumerate((HERE / "other_ops.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
        found = json.loads(line)
        if found["kind"] == "copy":
            rate = float(f"{found['tb_per_s'] * 1e12:.6g}")
            yield Timed(f"other {number}", kind="stream", bytes_per_s=rate, **ALIKE)


def _rows(name: str) -> list[dict[str, str]]:
    with (HERE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path) -> None:
    """Write the table."""
    write_timing_table(path, [*products(), *attention(), *copies()])


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "timings.csv")
