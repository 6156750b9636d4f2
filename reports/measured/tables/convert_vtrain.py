"""Runs of `vtrain_a100_single_node.csv`: Megatron-DeepSpeed on one node of 8 A100.

As its notes say: full recomputation, an ungated block of 4 widths, and a vocabulary of 51,200, which is Megatron's
usual. As its trainer does unless told: 1F1B, no ZeRO, no sequence parallelism, dropout, tied embeddings, biases.
"""

from convert_measured_runs import shape_of
from raw import CATALOG, Row, data_parallel, machine_of, micro_batches, stated

from estimator.runs.measured import Run
from estimator.stack.recipe import Recipe
from estimator.work.plan import Plan


def run_of(row: Row, number_of_row: int) -> Run:
    """Return the run of a row; a ValueError says why it is none."""
    devices, rows = stated(row, "# GPUs"), stated(row, "micro batch")
    tp, dp, pp = (stated(row, f"{name} parallelism") for name in ("tensor", "data", "pipeline"))
    if data_parallel(devices, tp=tp, pp=pp) != dp:
        raise ValueError(f"dp: {dp} * {tp} * {pp} ranks are not {devices} devices")
    hidden, layers, heads = (stated(row, name) for name in ("hidden size", "# layers", "attention heads"))
    sizes = {"hidden": hidden, "layers": layers, "heads": heads, "kv_heads": heads, "ffn": 4 * hidden, "vocab": 51_200}
    seq_len = stated(row, "sequence length")
    return Run(
        name=f"row {number_of_row}",
        source="vTrain single node",
        trainer="megatron-deepspeed",
        shape=shape_of(sizes, None, f"gpt-{hidden}x{layers}", "", seq_len),
        seq_len=seq_len,
        machine=machine_of(CATALOG.accelerator("a100-sxm-80gb"), devices, 8),
        plan=Plan(
            num_stages=pp,
            num_micro_batches=micro_batches(stated(row, "global batch"), dp, rows),
            batch_per_device=rows,
            tp=tp,
            recomputation="full",
            zero_stage=0,
            sequence_parallel=False,
        ),
        recipe=Recipe(),
        step_s=float(row["iteration time (ms)"]) / 1e3,
        reserved_bytes=None,
        allocated_bytes=None,
        fits=True,
        why_unhealthy="",
    )
