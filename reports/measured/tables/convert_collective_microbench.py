"""Collectives of `collective_microbench.csv`: the bus bandwidth of one size.

The all-reduces of `compare_test_ops` hold the waiting for peers, and the thresholds of a test are no measurements.
"""

import re

from raw import Row, stated
from timing_words import devices_of, setting_of, source_of

from estimator.runs.timings import COLLECTIVES, Timed


def run_of(row: Row, number_of_row: int) -> Timed:
    """Return the collective of a row; a ValueError says why it is none."""
    op = re.sub(r"[\s_-]", "", row["op"].casefold())
    kind = next((kind for kind in COLLECTIVES if op.startswith(kind.replace("-", ""))), "")
    if not kind:
        raise ValueError(f"op: {row['op']!r} is not compared")
    if "waiting for peers" in row["condition"]:
        raise ValueError("condition: a time that holds waiting for peers is no measure of the link")
    if "minimum" in row["condition"]:
        raise ValueError("condition: an expected minimum is no measurement")
    source = f"{row['source']} {row['condition']}"
    return Timed(
        name=f"row {number_of_row}",
        source=source_of(source),
        setting=setting_of(source, row["op"]),
        kind=kind,
        accelerators=devices_of(row["gpu"]),
        message_bytes=int(_plain(row, "msg_bytes")),
        num_devices=stated(row, "n_gpus"),
        num_nodes=stated(row, "nodes"),
        bytes_per_s=_plain(row, "busbw_GBps") * 1e9,
    )


def _plain(row: Row, column: str) -> float:
    """Return the positive number that a cell is."""
    cell = row[column]
    if not re.fullmatch(r"\d{1,20}(?:\.\d{1,20})?", cell, re.ASCII) or not float(cell):
        raise ValueError(f"{column}: {repr(cell) if cell else 'not stated, which'} is not one positive number")
    return float(cell)
