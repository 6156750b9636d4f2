"""Runs of `ultrascale_h100.csv`: nanotron, nothing recomputed, nodes of 8 H100.

What the out-of-memory rows leave blank is inferred. The batch, of which they give the tokens and others the rows,
agrees with the micro-batches. Where `num_kv_heads` is blank there are as many as heads, as in 867 of the 877 rows that
give it; where `tie_word_embeddings` is blank they are tied below a width of 4096, as in all of those. Memory, printed
in GB, is in GiB: before a step without sharding it is 18 bytes per parameter on one replica and 20 on several, of GiB
alone. Reserved memory was read on the first stage; allocated memory not at the peak but between steps.
"""

from raw import CATALOG, Row, data_parallel, machine_of, number, stated, whole

from estimator.formulas.machine import Fabric, Machine
from estimator.runs.measured import Run
from estimator.stack.recipe import Recipe
from estimator.work.plan import Plan
from estimator.work.shape import Shape
from hardware.units import GIB

SLOWEST_HEALTHY_GB_PER_S = 300
"""All-reduce within a node of 8 H100 below which the node was degraded: such are near 45, the others near 425 GB/s."""

GATHERED_BYTES = 2**27
"""Of the all-gather that was measured.  # assumed: with it hops of a ring take 5 us on the faster of the machines"""

SHORTEST_STALL_S = 1e-4
"""Of a hop between nodes from which on small collectives wait for one another.

measured: hops take some 40 or some 250 us a node, with few between; with the latter, a layer split over t ranks takes
some 2 ms t longer at small micro-batches
"""


def run_of(row: Row, number_of_row: int) -> Run:  # noqa: ARG001 - its rows have ids
    """Return the run of a row; a ValueError says why it is none."""
    if row["status"] not in ("Success", "OOM"):
        raise ValueError(f"status: {row['status']!r} tells neither a time nor whether it fits")
    if row["dtype"] not in ("", "torch.bfloat16") or row["accumulate_grad_in_fp32"] == "False":
        raise ValueError("dtype: not bfloat16 with gradients in 32 bits, which alone is modelled")
    devices, succeeded, seq_len = 8 * stated(row, "nodes"), row["status"] == "Success", stated(row, "seq_len")
    tp, pp, dp = (stated(row, name) for name in ("tp", "pp", "dp"))
    if (implied := data_parallel(devices, tp=tp, pp=pp)) != dp:
        raise ValueError(f"dp: {dp} is stated, {implied} follows")
    rows, micro_batches = stated(row, "micro_batch"), stated(row, "num_micro_batches")
    batch, told = dp * rows * micro_batches, stated(row, "global_batch_seqs")
    if told not in (batch, batch * seq_len):
        raise ValueError(f"global_batch_seqs: {told} is stated, {batch} follows")
    rate = number(row, "tokens_per_s_per_gpu")
    if succeeded and rate is None:
        raise ValueError("tokens_per_s_per_gpu: not stated of a run that succeeded")
    reserved, allocated = (number(row, f"peak_{kind}_gb") for kind in ("reserved", "allocated"))
    return Run(
        name=row["job_id"],
        source="nanotron ultrascale",
        trainer="nanotron" if row["after_pp_fix"] == "True" else "nanotron-early",
        shape=shape_of(row),
        seq_len=seq_len,
        machine=with_fabric(machine_of(CATALOG.accelerator("h100-sxm-80gb"), devices, 8), row),
        plan=Plan(
            num_stages=pp,
            num_micro_batches=micro_batches,
            batch_per_device=rows,
            tp=tp,
            zero_stage=stated(row, "zero_stage"),
            sequence_parallel=row["tp_mode"] == "REDUCE_SCATTER",
        ),
        recipe=Recipe(),
        step_s=batch * seq_len / (rate * devices) if succeeded and rate else None,
        reserved_bytes=reserved * GIB if succeeded and reserved else None,
        allocated_bytes=allocated * GIB if succeeded and allocated else None,
        fits=succeeded,
        why_unhealthy=doubt_of(row),
        reads_first_stage=True,
    )


def shape_of(row: Row) -> Shape:
    """Return the model of a row's sizes."""
    hidden, layers, heads = (stated(row, name) for name in ("hidden_size", "num_layers", "num_heads"))
    ffn, kv_heads, tied = whole(row, "ffn"), whole(row, "num_kv_heads") or heads, row["tie_word_embeddings"]
    if ffn is None:
        raise ValueError("model: its ffn is not given")
    if heads % kv_heads or hidden % heads:
        raise ValueError("model: its heads are no whole parts of its width, or of each other")
    return Shape(
        name=f"llama-{hidden}x{layers}" + (f"-kv{kv_heads}" if kv_heads != heads else ""),
        family="llama",
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        ffn_size=ffn,
        vocab_size=stated(row, "vocab_size"),
        gated_ffn=True,
        tied_embeddings=tied == "True" if tied else hidden < 4096,
    )


def with_fabric(machine: Machine, row: Row) -> Machine:
    """Return the nodes with what was measured of their all-gather before a run, in GB/s, where it was.

    Over n nodes a gather of S bytes takes S / B = S / B_1 + n a, B_1 its rate in one of them: the hops between nodes
    take a, at least the catalog's latency.
    """
    over_all, inside = number(row, "all_gather_gb_per_s"), number(row, "all_gather_intra_gb_per_s")
    if over_all is None or inside is None:
        return machine
    hop_s = GATHERED_BYTES * (1 / over_all - 1 / inside) / 1e9 / machine.num_nodes
    fabric = Fabric(max(hop_s, machine.node.network.latency_s), hop_s > SHORTEST_STALL_S)
    return machine._replace(fabric=fabric)


def doubt_of(row: Row) -> str:
    """Return why nothing is to be learned of a run's speed, "" where something is."""
    if stated(row, "pp") > 1 and row["after_pp_fix"] == "False":
        return "broken pipeline engine: more than one stage, before its repair"
    rate = number(row, "all_reduce_intra_gb_per_s")
    if rate is not None and rate < SLOWEST_HEALTHY_GB_PER_S:
        return f"degraded node: all-reduce within it below {SLOWEST_HEALTHY_GB_PER_S} GB/s"
    return ""
