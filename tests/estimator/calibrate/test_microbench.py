import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.calibrate.microbench import implied_priors, joined, microbench_document, read_timings, summarize_timings
from estimator.formulas.collectives import Group, all_reduce_seconds
from estimator.formulas.compute import FUSED_ATTENTION_RATE, matmul_seconds
from estimator.formulas.machine import Machine
from estimator.runs.csv_rows import RowsRead
from estimator.runs.microbench_tables import CollectiveRow, OpRow
from estimator.runs.microbench_vocabulary import Timing, devices_of, setting_of, source_of
from estimator.stack.file import read_premises
from estimator.stack.stack import read_stack_text
from hardware.catalog import load_catalog
from tests.support.paths import TABLES

CATALOG = load_catalog()
DEVICES = ("a100-sxm-80gb", "h100-sxm-80gb", "mi300x", "gb200-186gb")

PRODUCT = {
    "source": "someone", "gpu": "h100-sxm-80gb", "op": "aten::mm", "category": "GEMM", "M": "8192", "N": "8192",
    "K": "8192", "batch": "1", "params": "dtype=bf16", "tflops_mean": "700.0", "tb_per_s_mean": "", "time_us_mean": "",
    "count": "10",
}  # fmt: skip
ATTENTION = PRODUCT | {
    "category": "SDPA_bwd", "M": "", "N": "", "K": "", "params": "N_Q=4096 N_KV=4096 causal=True", "tflops_mean": "400",
}  # fmt: skip
COPY = PRODUCT | {
    "category": "UnaryElementwise", "op": "aten::copy_", "M": "", "N": "", "K": "", "tflops_mean": "0.3",
    "params": "dtype_in_out=('float', 'float') stride_input=(1024, 1)", "tb_per_s_mean": "2.0", "time_us_mean": "300.0",
}  # fmt: skip
REDUCE = {
    "source": "someone", "gpu": "mi300x", "n_gpus": "8", "nodes": "1", "op": "all_reduce", "msg_bytes": "1073741824",
    "busbw_GBps": "300", "condition": "standalone",
}  # fmt: skip


def op(**cells: str) -> Timing:
    """Return the timing of a product with other cells."""
    return OpRow.model_validate(PRODUCT | cells).timing("row 1", CATALOG)


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Write rows as a table."""
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(out.getvalue(), encoding="utf-8")
    return path


def committed() -> RowsRead[Timing]:
    """Return the committed tables."""
    names = ("op_microbench.csv", "collective_microbench.csv")
    return joined([read_timings(TABLES / name, CATALOG) for name in names])


sizes = st.integers(5, 14).map(lambda power: 2**power) | st.integers(500, 40_000)


@given(device=st.sampled_from(DEVICES), shape=st.tuples(sizes, sizes, sizes))
def test_products_made_from_the_model_are_predicted(device: str, shape: tuple[int, int, int]) -> None:
    """A row with the model's own rate, or time, has ratio 1, in whatever shape, unless it is too small to compare."""
    m, n, k = shape
    record = CATALOG.accelerator(device)
    best = record.bf16_flop_per_s * record.matmul_efficiency.value
    moved = record.hbm_bytes_per_s * record.hbm_efficiency.value
    rate = {"flop_per_s": best, "bytes_per_s": moved, "num_compute_units": record.num_compute_units}
    seconds, flop = float(matmul_seconds(m, n, k, **rate)), 2.0 * m * n * k
    cells = {"gpu": device, "M": str(m), "N": str(n), "K": str(k)}
    for told in ({"tflops_mean": f"{flop / seconds / 1e12:.15f}"}, {"time_us_mean": f"{seconds * 1e6:.12f}"}):
        if flop < 1e9 or seconds < 1e-5:
            with pytest.raises(ValueError, match="too small to compare"):
                op(**cells | {"tflops_mean": ""} | told)
        else:
            assert op(**cells | {"tflops_mean": ""} | told).ratio == pytest.approx(1)
    with pytest.raises(ValueError, match="batch: 8 products in one kernel are not modelled"):
        op(**cells | {"batch": "8"})


@given(device=st.sampled_from(DEVICES), members=st.integers(2, 4), size=st.integers(1024, 2**36))
def test_collectives_made_from_the_model_are_predicted(device: str, members: int, size: int) -> None:
    """An all-reduce with the bus bandwidth of the model's own time has ratio 1, whatever its size."""
    machine = Machine.of(CATALOG, CATALOG.flavor_of(device, members))
    seconds = float(all_reduce_seconds(size, Group(members, 1), machine))
    rate = 2 * (members - 1) / members * size / seconds
    cells = {"gpu": device, "n_gpus": str(members), "msg_bytes": str(size), "busbw_GBps": f"{rate / 1e9:.15f}"}
    timing = CollectiveRow.model_validate(REDUCE | cells).timing("row 1", CATALOG)
    assert timing.ratio == pytest.approx(1)


def test_units() -> None:
    """Rates are in 1e12 a second, times in microseconds, bus bandwidths in 1e9."""
    h100, mi300x = CATALOG.accelerator("h100-sxm-80gb"), CATALOG.accelerator("mi300x")
    timed = op(tflops_mean="", time_us_mean=f"{2 * 8192**3 / 700e12 * 1e6:.6f}")
    assert timed.ratio == pytest.approx(op().ratio)
    best = h100.bf16_flop_per_s * h100.matmul_efficiency.value
    attention = OpRow.model_validate(ATTENTION).timing("row 1", CATALOG)
    assert attention.ratio == pytest.approx(400e12 / (best * FUSED_ATTENTION_RATE["backward"]))
    copied = OpRow.model_validate(COPY).timing("row 1", CATALOG)
    assert copied.ratio == pytest.approx(2e12 / (h100.hbm_bytes_per_s * h100.hbm_efficiency.value))
    link = CATALOG.node_of(mi300x.id).links[-1]
    reduced = CollectiveRow.model_validate(REDUCE).timing("row 1", CATALOG)
    assert reduced.ratio == pytest.approx(300e9 / (7 * link.bytes_per_s * link.efficiency.value), rel=0.02)


LEFT = (
    (PRODUCT, {"gpu": "GH200 SXM"}, "gpu: 'GH200 SXM' is no accelerator of the catalog"),
    (PRODUCT, {"M": "eight"}, "M: 'eight' is not a whole number"),
    (PRODUCT, {"M": ""}, "M: not stated"),
    (PRODUCT, {"params": "dtype=fp32"}, "params: fp32 products are not compared, only those of 16 and 8 bits"),
    (PRODUCT, {"params": ""}, "params: unstated products are not compared, only those of 16 and 8 bits"),
    (PRODUCT, {"params": "dtype=fp8", "gpu": "mi250"}, "precision: fp8 needs matrix units that mi250 lacks"),
    (PRODUCT, {"tflops_mean": "0.0"}, "tflops_mean: neither a rate nor a time is stated"),
    (PRODUCT, {"M": "4", "N": "64"}, "M: a product of 0.00419 GFLOP in 0.00599 us is too small to compare"),
    (PRODUCT, {"time_us_mean": "3000"}, "time_us_mean: 3000 us is stated, 1571 follows from the rate"),
    (PRODUCT, {"tflops_mean": "1200"}, "gpu: 1.2e+15 FLOP/s are more than the peak of h100-sxm-80gb, 9.894e+14"),
    (PRODUCT, {"category": "CONV_fwd"}, "category: 'CONV_fwd' is no op of a language model's step"),
    (ATTENTION, {"params": "N_Q=4096 N_KV=77"}, "params: 77 positions; 1024 and more are compared"),
    (ATTENTION, {"params": "causal=True"}, "params: unstated positions; 1024 and more are compared"),
    (ATTENTION, {"params": "N_Q=4096 flash_impl=False"}, "params: flash_impl=False, which is no fused kernel"),
    (ATTENTION, {"tflops_mean": ""}, "tflops_mean: not stated"),
    (COPY, {"tb_per_s_mean": ""}, "tb_per_s_mean: not stated"),
    (COPY, {"time_us_mean": ""}, "time_us_mean: not stated"),
    (COPY, {"time_us_mean": "20"}, "dims: 40 MB, which a cache of 50 MB holds in good part"),
    (COPY, {"params": "stride_input=(0, 1)"}, "params: an operand is repeated (stride 0); it moves less than its"),
    (COPY, {"gpu": "epyc-7763"}, "gpu: the cache of epyc-7763 is not known"),
    (REDUCE, {"op": "alltoall"}, "op: 'alltoall' is not compared"),
    (REDUCE, {"msg_bytes": "large"}, "msg_bytes: 'large' is not one positive number"),
    (REDUCE, {"busbw_GBps": "330-350"}, "busbw_GBps: '330-350' is not one positive number"),
    (REDUCE, {"busbw_GBps": ""}, "busbw_GBps: not stated, which is not one positive number"),
    (
        REDUCE,
        {"condition": "mean 7024 us includes waiting for peers"},
        "condition: a time that holds waiting for peers",
    ),
    (REDUCE, {"condition": "2-node expected minimum"}, "condition: an expected minimum is no measurement"),
    (REDUCE, {"n_gpus": "1"}, "n_gpus: one device has nobody to send to"),
    (REDUCE, {"nodes": "2"}, "nodes: 2 are stated, 1 of the catalog hold the devices"),
)


@pytest.mark.parametrize(("row", "cells", "why"), LEFT)
def test_a_row_that_tells_nothing_is_left(row: dict[str, str], cells: dict[str, str], why: str, tmp_path: Path) -> None:
    """What is no measurement of something predicted is left by its number, with the column and the reason."""
    table = read_timings(write(tmp_path / "table.csv", [row, row | cells, row | {"source": "another"}]), CATALOG)
    assert [timing.name for timing in table.items] == ["row 1", "row 3"]
    assert table.skipped[0].name == "row 2"
    assert table.skipped[0].why.startswith(why)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([PRODUCT | {"M": "x", "N": "y"}], r"row 1 \(row 1\): M: 'x' is not a whole number; and 1 more of its cells"),
        ([PRODUCT | {"M": "x"}], "1 of 1 rows are malformed"),
        ([{"tflops_mean": "1"}], "column 'source' is missing; add it, blank where unknown"),
        ([{"a": "1"}], "has no column of a known form, one of tflops_mean, busbw_GBps; give a table of microbench"),
    ],
)
def test_a_table_gone_wrong_is_refused(rows: list[dict[str, str]], why: str, tmp_path: Path) -> None:
    """A table with a row of several bad cells, mostly malformed, or of other columns is an error of one line."""
    with pytest.raises(ValueError, match=why) as error:
        read_timings(write(tmp_path / "table.csv", rows), CATALOG)
    assert str(error.value).startswith("microbenchmarks table '")
    assert str(error.value).isprintable()


def test_kernels_count_once(tmp_path: Path) -> None:
    """The same kernels under the name of an op around theirs are left; another run of them is not."""
    outer = COPY | {"category": "Normalization", "op": "aten::layer_norm"}
    rows = [outer, outer | {"op": "aten::native_layer_norm"}, outer | {"time_us_mean": "301.0"}]
    table = read_timings(write(tmp_path / "table.csv", rows), CATALOG)
    assert [timing.name for timing in table.items] == ["row 1", "row 3"]
    assert table.skipped == (("row 2", "op: the kernels of a row before, under another name"),)


def test_a_name_of_two_devices_tells_what_they_share() -> None:
    """Of devices with other matrix rates and the same memory, a product tells no rate, a copy does."""
    gpu = "MI350X/MI355X (gfx950)"
    assert [device.id for device in devices_of(gpu, CATALOG)] == ["mi350x", "mi355x"]
    product, copy = op(gpu=gpu), OpRow.model_validate(COPY | {"gpu": gpu}).timing("row 1", CATALOG)
    assert (product.tells_rate, copy.tells_rate) == (False, True)
    assert product.ratio == pytest.approx(np.sqrt(op(gpu="mi350x").ratio * op(gpu="mi355x").ratio))
    assert product.device == "mi350x/mi355x"


def test_where_a_kernel_was_timed() -> None:
    """Traces of training, other traces, benchmarks and the best of a search are told apart; a trace has many files."""
    traces = "AMD-AGI/TraceLens tests/traces/"
    assert setting_of(traces + "compare_test_ops/256thread/x.csv", "aten::mm") == "training"
    assert setting_of("AMD-AGI/Hyperloom llama70b (8xMI300X FSDP training, in situ)", "gemm") == "training"
    assert setting_of(traces + "h100/Qwen_Qwen1.5/x.csv", "aten::mm") == "inference"
    assert setting_of("Azure/AI-benchmarking-guide", "gemm") == "standalone"
    assert setting_of("stas00/ml-engineering", "gemm (max)") == "best shape"
    assert source_of(traces + "compare_test_ops/256thread/x.csv") == source_of(traces + "compare_test_ops/512thread/x")
    assert source_of(traces + "h100/Qwen/x.csv") != source_of(traces + "h100/Wan/x.csv")


groups = st.lists(
    st.tuples(
        st.sampled_from(["product", "8-bit product", "attention forward", "element-wise", "stream"]),
        st.sampled_from(["training", "inference", "standalone", "best shape"]),
        st.sampled_from(DEVICES),
        st.sampled_from(["one", "two"]),
        st.floats(0.1, 2.0),
    ),
    max_size=40,
)


def timings_of(rows: Sequence[tuple[str, str, str, str, float]], scale: float = 1.0) -> list[Timing]:
    """Return timings, the ratios times a scale."""
    return [Timing("row", device, kind, at, source, ratio * scale, True) for kind, at, device, source, ratio in rows]


@given(rows=groups, data=st.data())
def test_the_order_of_rows_changes_nothing(rows: list[tuple[str, str, str, str, float]], data: st.DataObject) -> None:
    """Summaries and priors are of a set of rows."""
    shuffled = data.draw(st.permutations(rows))
    assert summarize_timings(timings_of(rows)) == summarize_timings(timings_of(shuffled))
    assert implied_priors(timings_of(rows)) == implied_priors(timings_of(shuffled))


@given(rows=groups, scale=st.floats(0.2, 5.0))
def test_priors_scale(rows: list[tuple[str, str, str, str, float]], scale: float) -> None:
    """Devices that all sustain c times as much have priors with c times the median, as wide; relative ones stay."""
    before, after = implied_priors(timings_of(rows)), implied_priors(timings_of(rows, scale))
    assert before.keys() == after.keys()
    for name, prior in before.items():
        factor = scale if name in ("matmul_efficiency", "memory_efficiency") else 1.0
        assert after[name].median == pytest.approx(prior.median * factor)
        assert after[name].log_sd == pytest.approx(prior.log_sd, abs=1e-9)


def test_a_prior_is_of_training_and_as_wide_as_devices_differ() -> None:
    """The median is that of training where it was traced; the width that between devices, not the mean's error."""
    rows = [("product", "training", "mi300x", "one", 0.8)] * 50
    assert implied_priors(timings_of(rows)) == {}  # one device does not tell how far another may be
    apart = [("product", "inference", "h100-sxm-80gb", "one", 0.9), ("product", "inference", "mi300x", "two", 1.0)]
    found = implied_priors(timings_of([*rows, *apart * 50]))["matmul_efficiency"]
    assert found.median == pytest.approx(0.8)
    assert found.log_sd == pytest.approx(1.048358 * np.log(1 / 0.9))
    assert (found.num_rows, found.num_groups, found.setting, found.num_compared) == (50, 1, "training", 2)


def test_8_bit_products_count_beside_16_bit_ones() -> None:
    """What a device reaches of its 8-bit peak is told beside what it reaches of its 16-bit peak."""
    rows = [
        (kind, "standalone", device, "one", ratio)
        for device, of_16 in (("h100-sxm-80gb", 0.8), ("mi300x", 0.6))
        for kind, ratio in (("product", of_16), ("8-bit product", of_16 * 0.9))
    ]
    found = implied_priors(timings_of(rows))["fp8_efficiency"]
    assert (found.median, found.log_sd) == (pytest.approx(0.9), pytest.approx(0, abs=1e-9))


def test_the_committed_tables() -> None:
    """They are read, all kinds of what is predicted are there, and what is left has its reason."""
    table = committed()
    assert len(table.items) + len(table.skipped) == 1105 + 149
    assert len(table.items) > 350
    kinds = {timing.kind.split(" ")[0] for timing in table.items}
    assert kinds == {
        "product", "8-bit", "attention", "element-wise", "stream", "all-reduce", "all-gather",
        "reduce-scatter",
    }  # fmt: skip
    assert all(left.why.isprintable() and ": " in left.why for left in table.skipped)
    assert set(implied_priors(table.items)) == {
        "matmul_efficiency", "memory_efficiency", "attention_efficiency", "fp8_efficiency",
    }  # fmt: skip
    document = microbench_document(table, {})
    assert document["schema"] == "microbench/1"
    assert sum(group["num_rows"] for group in document["groups"]) == len(document["rows"]) == len(table.items)


def test_shapes_are_told() -> None:
    """The products of each device, once its own best rate is taken off, are predicted within 9 % at the median."""
    found = [s for s in summarize_timings(committed().items) if s.kind == "product" and s.num_rows >= 8]
    assert np.median([s.shape_error for s in found]) < 0.09


STACKS = (
    "nanotron", "nanotron-early", "llm-foundry", "megatron", "megatron-deepspeed", "torchtune", "mlperf-nvidia",
    "mlperf-amd", "generic",
)  # fmt: skip
"""Whose priors are those that the tables imply; `moai-24.2` and `reference` are other compilers, and eager ops."""


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_has_the_priors_that_the_tables_imply(name: str) -> None:
    """To two decimals, with the number of rows behind them in the evidence: none drifts from what was measured."""
    priors = read_premises(read_stack_text(name), name).priors
    for parameter, implied in implied_priors(committed().items).items():
        if parameter in priors:
            prior = priors[parameter]
            assert (prior.median, prior.log_sd) == (round(implied.median, 2), round(implied.log_sd, 2)), parameter
            assert prior.evidence.startswith(f"measured: {implied.num_rows} ")
            assert f"between {implied.num_compared} devices and sources" in prior.evidence
