from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.calibrate.microbench import (
    Timing,
    compared,
    implied_priors,
    joined,
    microbench_document,
    read_timings,
    summarize_timings,
)
from estimator.formulas.attention import FUSED_ATTENTION_RATE
from estimator.formulas.collectives import Group, all_reduce_seconds
from estimator.formulas.compute import matmul_seconds
from estimator.formulas.machine import Machine
from estimator.runs.csv_rows import RowsRead
from estimator.runs.timings import read_timing_table
from estimator.stack.stack import load_premises
from hardware.catalog import load_catalog
from tests.support.paths import TIMINGS
from tests.support.tables import written

CATALOG = load_catalog()
DEVICES = ("a100-sxm-80gb", "h100-sxm-80gb", "mi300x", "gb200-186gb")

PRODUCT = {
    "source": "someone", "setting": "standalone", "kind": "product", "accelerator": "h100-sxm-80gb", "m": "8192",
    "n": "8192", "k": "8192", "flop_per_s": "7e14",
}  # fmt: skip
ALONE = {"source": "someone", "setting": "standalone", "accelerator": "h100-sxm-80gb"}
ATTENTION = ALONE | {"kind": "attention backward", "positions": "4096", "flop_per_s": "4e14"}
COPY = ALONE | {"kind": "element-wise", "bytes_per_s": "2e12", "seconds": "3e-4"}
REDUCE = ALONE | {
    "kind": "all-reduce", "accelerator": "mi300x", "message_bytes": "1073741824", "num_devices": "8", "num_nodes": "1",
    "bytes_per_s": "3e11",
}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a table that each test writes anew."""
    return tmp_path_factory.mktemp("timings") / "table.csv"


def read(file: Path, *rows: dict[str, str]) -> RowsRead[Timing]:
    """Write rows as a table, and read and predict them."""
    file.write_text(written(rows), encoding="utf-8")
    return read_timings(file, CATALOG)


def timing(file: Path, row: dict[str, str], **cells: str) -> Timing:
    """Return the timing of a row with other cells."""
    file.write_text(written([row | cells]), encoding="utf-8")
    return compared(read_timing_table(file, CATALOG).items[0], CATALOG)


def committed() -> RowsRead[Timing]:
    """Return the committed tables."""
    return joined(
        [read_timings(TIMINGS / f"{name}.csv", CATALOG) for name in ("op_microbench", "collective_microbench")]
    )


sizes = st.integers(5, 14).map(lambda power: 2**power) | st.integers(500, 40_000)


@given(device=st.sampled_from(DEVICES), shape=st.tuples(sizes, sizes, sizes))
def test_products_made_from_the_model_are_predicted(file: Path, device: str, shape: tuple[int, int, int]) -> None:
    """A row with the model's own rate, or time, has ratio 1, in whatever shape, unless it is too small to compare."""
    m, n, k = shape
    record = CATALOG.accelerator(device)
    best = record.bf16_flop_per_s * record.matmul_efficiency.value
    moved = record.hbm_bytes_per_s * record.hbm_efficiency.value
    rate = {"flop_per_s": best, "bytes_per_s": moved, "num_compute_units": record.num_compute_units}
    seconds, flop = float(matmul_seconds(m, n, k, **rate)), 2.0 * m * n * k
    cells = {"accelerator": device, "m": str(m), "n": str(n), "k": str(k), "flop_per_s": ""}
    for told in ({"flop_per_s": repr(flop / seconds)}, {"seconds": repr(seconds)}):
        if flop < 1e9 or seconds < 1e-5:
            with pytest.raises(ValueError, match="too small to compare"):
                timing(file, PRODUCT, **cells | told)
        else:
            assert timing(file, PRODUCT, **cells | told).ratio == pytest.approx(1)


@given(device=st.sampled_from(DEVICES), members=st.integers(2, 4), size=st.integers(1024, 2**36))
def test_collectives_made_from_the_model_are_predicted(file: Path, device: str, members: int, size: int) -> None:
    """An all-reduce with the bus bandwidth of the model's own time, or that time, has ratio 1, whatever its size."""
    machine = Machine.of(CATALOG, CATALOG.flavor_of(device, members))
    seconds = float(all_reduce_seconds(size, Group(members, 1), machine))
    rate = 2 * (members - 1) / members * size / seconds
    cells = {"accelerator": device, "num_devices": str(members), "message_bytes": str(size), "bytes_per_s": ""}
    for told in ({"bytes_per_s": repr(rate)}, {"seconds": repr(seconds)}):
        assert timing(file, REDUCE, **cells | told).ratio == pytest.approx(1)


def test_units(file: Path) -> None:
    """Rates are in FLOP and bytes a second, times in seconds, bus bandwidths in bytes a second."""
    h100, mi300x = CATALOG.accelerator("h100-sxm-80gb"), CATALOG.accelerator("mi300x")
    timed = timing(file, PRODUCT, flop_per_s="", seconds=repr(2 * 8192**3 / 700e12))
    assert timed.ratio == pytest.approx(timing(file, PRODUCT).ratio)
    best = h100.bf16_flop_per_s * h100.matmul_efficiency.value
    assert timing(file, ATTENTION).ratio == pytest.approx(400e12 / (best * FUSED_ATTENTION_RATE["backward"]))
    assert timing(file, COPY).ratio == pytest.approx(2e12 / (h100.hbm_bytes_per_s * h100.hbm_efficiency.value))
    link = CATALOG.node_of(mi300x.id).links[-1]
    reduced = timing(file, REDUCE)
    assert reduced.ratio == pytest.approx(300e9 / (7 * link.bytes_per_s * link.efficiency.value), rel=0.02)
    assert reduced.kind == "all-reduce >= 64 MiB"


SKIPPED = (
    (PRODUCT, {"accelerator": "gh200"}, "unknown accelerator 'gh200': "),
    (PRODUCT, {"m": "eight"}, "m: 'eight' is not a whole number from 1 to 2147483647"),
    (PRODUCT, {"m": ""}, "m: not stated"),
    (PRODUCT, {"setting": ""}, "setting: not stated"),
    (PRODUCT, {"setting": "warm"}, "setting: 'warm' is not one of training, inference, standalone, best shape"),
    (PRODUCT, {"kind": "convolution"}, "kind: 'convolution' is not one of product, 8-bit product, "),
    (PRODUCT, {"kind": "8-bit product", "accelerator": "mi250"}, "precision: fp8 needs matrix units that mi250 lacks"),
    (PRODUCT, {"flop_per_s": ""}, "seconds: neither a time nor flop_per_s is stated"),
    (PRODUCT, {"m": "4", "n": "64"}, "m: a product of 0.00419 GFLOP in 0.00599 us is too small to compare"),
    (PRODUCT, {"seconds": "3e-3"}, "seconds: 3000 us is stated, 1571 follows from the rate"),
    (PRODUCT, {"flop_per_s": "1.2e15"}, "accelerator: 1.2e+15 FLOP/s are more than the peak of h100-sxm-80gb, 9.894e"),
    (ATTENTION, {"positions": "77"}, "positions: 77; 1024 and more are compared"),
    (ATTENTION, {"positions": ""}, "positions: not stated"),
    (ATTENTION, {"flop_per_s": ""}, "flop_per_s: not stated"),
    (COPY, {"bytes_per_s": ""}, "bytes_per_s: not stated"),
    (COPY, {"seconds": ""}, "seconds: not stated"),
    (COPY, {"seconds": "2e-5"}, "bytes_per_s: 40 MB, which a cache of 50 MB holds in good part"),
    (COPY, {"accelerator": "epyc-7763"}, "accelerator: the cache of epyc-7763 is not known"),
    (REDUCE, {"message_bytes": ""}, "message_bytes: not stated"),
    (REDUCE, {"bytes_per_s": ""}, "bytes_per_s: not stated"),
    (REDUCE, {"num_devices": "1"}, "num_devices: one device has nobody to send to"),
    (REDUCE, {"num_nodes": "2"}, "num_nodes: 2 are stated, 1 of the catalog hold the devices"),
)


@pytest.mark.parametrize(("row", "cells", "why"), SKIPPED)
def test_a_row_that_tells_nothing_is_skipped(file: Path, row: dict[str, str], cells: dict[str, str], why: str) -> None:
    """What is no measurement of something predicted is skipped by its number, with the column and the reason."""
    table = read(file, row, row | cells, row | {"source": "another"})
    assert [timing.name for timing in table.items] == ["row 1", "row 3"]
    assert table.skipped[0].name == "row 2"
    assert table.skipped[0].why.startswith(why)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (
            [PRODUCT | {"m": "x", "n": "y"}],
            r"row 1 \(row 1\): m: 'x' is not a whole number .*; and 1 more of its cells",
        ),
        ([PRODUCT | {"m": "x"}], "1 of 1 rows are malformed"),
        ([PRODUCT | {"tflops": "1"}], "unknown column 'tflops': "),
    ],
)
def test_a_table_gone_wrong_is_refused(file: Path, rows: list[dict[str, str]], why: str) -> None:
    """A table with a row of several bad cells, mostly malformed, or of other columns is an error of one line."""
    with pytest.raises(ValueError, match=why) as error:
        read(file, *rows)
    assert str(error.value).startswith("microbenchmarks table '")
    assert str(error.value).isprintable()


def test_a_name_of_two_devices_tells_what_they_share(file: Path) -> None:
    """Of devices with other matrix rates and the same memory, a product tells no rate, a copy does."""
    both = {"accelerator": "mi350x/mi355x"}
    product, copy = timing(file, PRODUCT, **both), timing(file, COPY, **both)
    assert (product.tells_rate, copy.tells_rate) == (False, True)
    each = [timing(file, PRODUCT, accelerator=name).ratio for name in ("mi350x", "mi355x")]
    assert product.ratio == pytest.approx(np.sqrt(each[0] * each[1]))
    assert product.device == "mi350x/mi355x"


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
    assert len(table.items) + len(table.skipped) == 954 + 131
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
    priors = load_premises(name).priors
    for parameter, implied in implied_priors(committed().items).items():
        if parameter in priors:
            prior = priors[parameter]
            assert (prior.median, prior.log_sd) == (round(implied.median, 2), round(implied.log_sd, 2)), parameter
            assert prior.evidence.startswith(f"measured: {implied.num_rows} ")
            assert f"between {implied.num_compared} devices and sources" in prior.evidence
