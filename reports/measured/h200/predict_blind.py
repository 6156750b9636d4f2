"""Write what the stack `reference` says of twenty runs on an H200 that were not measured when it was written.

    python reports/measured/h200/predict_blind.py

`blind.csv` is committed before any of them is run, and not written again after; `7b` and `1b` are the shapes of the
runs here.
"""

import csv
import sys
from pathlib import Path

from estimator import estimate
from estimator.work.plan import parse_plan
from estimator.work.shape import Shape, shape_from_config

SIZES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256},
}
RUNS = (
    ("7b", 2048, 4, 1, "none", False, "bf16"),
    ("7b", 2048, 4, 1, "full", True, "bf16"),
    ("7b", 2048, 4, 1, "full", False, "bf16"),
    ("7b", 2048, 2, 1, "none", True, "bf16"),
    ("7b", 2048, 2, 1, "none", False, "bf16"),
    ("7b", 2048, 1, 1, "none", True, "bf16"),
    ("7b", 4096, 2, 1, "none", True, "bf16"),
    ("7b", 8192, 1, 1, "none", True, "bf16"),
    ("7b", 8192, 1, 1, "full", True, "bf16"),
    ("7b", 2048, 2, 4, "none", True, "bf16"),
    ("1b", 2048, 4, 1, "none", True, "bf16"),
    ("1b", 2048, 16, 1, "none", True, "bf16"),
    ("1b", 2048, 16, 1, "full", True, "bf16"),
    ("1b", 1024, 1, 1, "none", True, "bf16"),
    ("1b", 512, 1, 1, "none", False, "bf16"),
    ("1b", 2048, 4, 4, "none", True, "bf16"),
    ("1b", 8192, 1, 1, "none", False, "bf16"),
    ("1b", 16384, 1, 1, "none", True, "bf16"),
    ("1b", 2048, 4, 1, "none", True, "bf16-mixed"),
    ("1b", 2048, 4, 2, "none", False, "bf16-mixed"),
)
"""Size, tokens a row, rows of a micro-batch, micro-batches, recomputation, compiled, precision."""


def shape_of(size: str) -> Shape:
    """Return the shape of a size: Mistral's, 32 heads and 8 of keys and values, without a window."""
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None}
    return shape_from_config({"model_type": "mistral", "max_position_embeddings": 32768, **SIZES[size], **heads}, size)


def main(path: Path) -> None:
    """Predict each run, and write the table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        named = ("size", "seq", "rows", "micro_batches", "recomputation", "compiled", "precision")
        writer.writerow([*named, *(f"{name}{end}" for name in ("step_s", "mib") for end in ("", "_low", "_high"))])
        for run in RUNS:
            size, seq_len, rows, count, recomputation, compiles, precision = run
            plan = f"num_micro_batches={count},batch_per_device={rows},recomputation={recomputation},zero_stage=0"
            found = estimate(
                shape_of(size), accelerator="h200-sxm-141gb", devices=1, plan=parse_plan(plan), seq_len=seq_len,
                batch=rows * count, steps=10, stack="reference", precision=precision, compiles=compiles,
            ).plans[0]  # fmt: skip
            mib = found.memory.per_device_bytes.times(2**-20)
            writer.writerow([*run, *(f"{x:.4f}" for x in found.step_s), *(f"{x:.0f}" for x in mib)])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("blind.csv"))
