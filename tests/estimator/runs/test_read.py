import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.runs.read import LONGEST_LINE, Case, Cases, Left, read_cases
from estimator.formulas.counts import num_parameters
from estimator.work.plan import Plan
from hardware.catalog import load_catalog
from hardware.units import GIB
from tests.support.samples import MEASURED, SAMPLES, ULTRASCALE, VTRAIN

CATALOG = load_catalog()



@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a table that each test writes anew."""
    return tmp_path_factory.mktemp("cases") / "runs.csv"


def read(file: Path, text: str | bytes) -> Cases:
    """Write a table and read it."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_cases(file, CATALOG)


def case_of(file: Path, text: str, name: str) -> Case:
    """Return a case by its name."""
    return next(case for case in read(file, text).cases if case.name == name)


def with_cells(text: str, row: int, **cells: str) -> str:
    """Return a table with some cells of one row changed, and no other rows."""
    rows = list(csv.DictReader(io.StringIO(text)))
    return written([rows[row] | cells])


def written(rows: list[dict[str, str]]) -> str:
    """Return rows as a table."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


# The three forms


def test_llm_foundry(file: Path) -> None:
    """Its sharding, recomputation, precision and shape are as the row says, its parameters to the last one."""
    case = case_of(file, MEASURED, "LLMF-001")
    assert case.plan == Plan(recomputation="full", batch_per_device=8)
    assert (case.trainer, case.machine.accelerator.id, case.machine.num_nodes) == ("llm-foundry", "h100-sxm-80gb", 64)
    assert num_parameters(case.shape) == 64_862_437_376
    assert case.step_s == 16.26847
    assert case.recipe.precision is None
    assert case_of(file, MEASURED, "LLMF-164").recipe.precision == "bf16"
    assert case_of(file, MEASURED, "LLMF-071").recipe.precision == "fp8-mixed"
    assert case_of(file, MEASURED, "LLMF-013").plan.zero_stage == 2


def test_megatron(file: Path) -> None:
    """Stages, chunks, tensor and context parallelism are a plan; old rows hold the sequence whole."""
    plan = case_of(file, MEASURED, "KORT-003").plan
    assert (plan.num_stages, plan.virtual_stages, plan.schedule, plan.tp) == (8, 3, "interleaved", 8)
    assert (plan.recomputation, plan.zero_stage, plan.sequence_parallel) == ("full", 0, False)
    deepspeed = case_of(file, MEASURED, "VTRN-002")
    assert (deepspeed.trainer, deepspeed.plan.zero_stage) == ("megatron-deepspeed", 0)
    simumax = case_of(file, MEASURED, "SMAX-041")
    assert (simumax.plan.cp, simumax.plan.tp, simumax.plan.zero_stage) == (4, 2, 1)
    assert simumax.plan.sequence_parallel
    assert deepspeed.recipe.overlaps
    assert not simumax.recipe.overlaps
    assert simumax.allocated_bytes == pytest.approx(112.67 * GIB)
    assert simumax.reserved_bytes is None


def test_what_a_row_leaves_open_is_said(file: Path) -> None:
    """Of a trainer that seldom repeats anything, an open recomputation is taken as none, and said to be."""
    case = case_of(file, MEASURED, "DGXC-002")
    assert (case.plan.recomputation, case.fits) == ("none", None)
    assert case.assumes == "recompute: not stated, taken as none"
    assert case_of(file, MEASURED, "KORT-003").assumes == ""


def test_digests_tell_runs_apart(file: Path) -> None:
    """Equal rows have equal digests, and those that differ in what was measured others."""
    first, again, other = read(file, VTRAIN).cases
    assert first.digest == again.digest != other.digest
    (slower,) = read(file, with_cells(VTRAIN, 0, **{"iteration time (ms)": "411"})).cases
    assert slower.digest != first.digest


def test_the_fabric_is_as_measured(file: Path) -> None:
    """Hops between nodes take what the gathers say, at least the catalog's latency; where they take long, it stalls."""
    rows = list(csv.DictReader(io.StringIO(ULTRASCALE)))
    slow = rows[0] | {"nodes": "1", "all_gather_gb_per_s": "20", "all_gather_intra_gb_per_s": "240"}
    (case,) = read(file, written([slow])).cases
    assert case.machine.fabric is not None
    assert case.machine.fabric.hop_s == pytest.approx(2**27 * (1 / 20e9 - 1 / 240e9))
    assert case.machine.fabric.stalls
    (quiet,) = read(file, written([rows[0]])).cases
    assert quiet.machine.fabric == (5e-6, False)
    (unmeasured,) = read(file, written([rows[0] | {"all_gather_gb_per_s": ""}])).cases
    assert unmeasured.machine.fabric is None


def test_versions_of_nanotron(file: Path) -> None:
    """Runs before and after the repair of the pipeline engine are of two trainers; memory is the first stage's."""
    assert {case.trainer for case in read(file, ULTRASCALE).cases} <= {"nanotron", "nanotron-early"}
    (case,) = read(file, with_cells(ULTRASCALE, 0, after_pp_fix="True")).cases
    assert (case.trainer, case.reads_first_stage) == ("nanotron", True)


def test_mlperf(file: Path) -> None:
    """Adapters have their rank; a block of layers is repeated; whether it fits in 16 bits is not known; half nodes."""
    case = case_of(file, MEASURED, "MLPF-051")
    assert (case.trainer, case.recipe.lora_rank, case.recipe.precision) == ("mlperf-amd", 16, "fp8-mixed")
    assert (case.plan.recomputation, case.plan.recomputed_layers) == ("full", 21)
    assert case.fits is None
    half = case_of(file, MEASURED, "MLPF-003")
    assert (half.trainer, half.machine.num_devices, half.machine.devices_per_node) == ("mlperf-nvidia", 4, 4)


def test_torchtune(file: Path) -> None:
    """The ladder's open "A100" is the one that holds its first rung; its memory is that of tensors."""
    case = case_of(file, MEASURED, "TUNE-012")
    assert (case.machine.accelerator.id, case.recipe.precision) == ("a100-sxm-80gb", "bf16")
    assert case.allocated_bytes == pytest.approx(42.9 * GIB)


def test_what_of_measured_is_left(file: Path) -> None:
    """What cannot be expressed is left with its reason."""
    assert read(file, MEASURED).left == (
        Left("TUNE-015", "model: offloaded activations are not modelled"),
        Left("MBSK-001", "model: latent attention (MLA) is not modelled"),
    )


def test_ultrascale(file: Path) -> None:
    """Rates become seconds, memory is in GiB, and faults of the campaign are named."""
    cases = read(file, ULTRASCALE).cases
    first = cases[0]
    assert first.plan == Plan(num_micro_batches=32, zero_stage=0)
    assert first.step_s == pytest.approx(256 * 4096 / (39273.41 * 8))
    assert first.reserved_bytes == pytest.approx(36.67 * GIB)
    assert (first.fits, first.why_unhealthy, first.shape.tied_embeddings) == (True, "", True)
    assert num_parameters(first.shape) == pytest.approx(1.34e9, rel=0.005)
    faults = [case.why_unhealthy.partition(":")[0] for case in cases if case.why_unhealthy]
    assert faults == ["broken pipeline engine", "degraded node"]
    assert any(case.shape.num_kv_heads < case.shape.num_heads for case in cases)


def test_ultrascale_out_of_memory(file: Path) -> None:
    """A row that ran out of memory has no time; its batch in tokens and its blank heads are read as documented."""
    (case,) = (case for case in read(file, ULTRASCALE).cases if not case.fits)
    assert (case.step_s, case.reserved_bytes, case.tokens_per_s) == (None, None, None)
    assert case.workload.tokens_per_step == 2**20
    assert case.shape.num_kv_heads == case.shape.num_heads


def test_what_of_ultrascale_is_left(file: Path) -> None:
    """A missing width is left with its reason; layers that no stage count divides are not, as nanotron divides them."""
    table = read(file, ULTRASCALE)
    assert [left.why for left in table.left] == ["model: its ffn is not given"]
    assert any(case.shape.num_layers % case.plan.num_stages for case in table.cases)


def test_vtrain(file: Path) -> None:
    """Milliseconds, full recomputation, no ZeRO, and too few micro-batches for the stages."""
    table = read(file, VTRAIN)
    assert table.cases[0].step_s == pytest.approx(0.410490577)
    assert table.cases[0].plan == Plan(
        num_stages=2, num_micro_batches=2, batch_per_device=4, recomputation="full", zero_stage=0, tp=1,
        sequence_parallel=False,
    )  # fmt: skip
    assert table.cases[0].shape.vocab_size == 51_200
    assert (table.cases[2].plan.num_stages, table.cases[2].plan.num_micro_batches) == (4, 2)
    assert not table.left


@pytest.mark.parametrize("table", SAMPLES.values(), ids=SAMPLES)
def test_time_and_rate_agree(file: Path, table: str) -> None:
    """Tokens per second times seconds per step are the tokens of a step."""
    for case in read(file, table).cases:
        if case.step_s is not None and case.tokens_per_s is not None:
            assert case.tokens_per_s * case.step_s == pytest.approx(case.workload.tokens_per_step)


@given(data=st.data())
@pytest.mark.parametrize("table", SAMPLES.values(), ids=SAMPLES)
def test_permuting_rows_permutes_cases(file: Path, data: st.DataObject, table: str) -> None:
    """The order of the rows changes no case but its number."""
    header, *rows = table.splitlines(keepends=True)
    order = data.draw(st.permutations(range(len(rows))))
    read_first = read(file, table)
    read_again = read(file, header + "".join(rows[i] for i in order))

    def seen(cases: Cases) -> list[str]:
        return sorted(repr(case).replace(case.name, "", 1) for case in cases.cases)

    assert seen(read_again) == seen(read_first)
    assert sorted(left.why for left in read_again.left) == sorted(left.why for left in read_first.left)


# Rows that cannot be


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ({"gpu": "H900"}, "gpu: 'H900' is no accelerator of the catalog"),
        ({"gpu": "A100"}, "gpu: 'A100' may be a100-sxm-80gb or a100-sxm-40gb or a100-pcie-40gb or a100-pcie-80gb"),
        ({"gpu_unit": "package"}, "gpu_unit: 'package': what is counted is no device of the catalog"),
        ({"micro_batch": ""}, "micro_batch: not stated"),
        ({"micro_batch": "3"}, "global batch: 4096 rows are no whole micro-batches of 3 on 512 ranks"),
        ({"dp": "256"}, "dp: 256 is stated, 512 follows from the rest"),
        ({"tp": "3"}, "tp: 3*1*1 ways do not divide 512 devices"),
        ({"recompute": "some"}, "recompute: 'some' is not modelled"),
        ({"recompute": ""}, "recompute: not stated"),
        ({"precision": "nvfp4"}, "precision: 'nvfp4' is not modelled"),
        ({"zero_or_fsdp": "shards"}, "zero_or_fsdp: 'shards' is not modelled on 512 replicas, 8 a node"),
        ({"train_kind": "lora"}, "train_kind: the rank of its adapters is not given"),
        ({"train_kind": "rl"}, "train_kind: 'rl' is not modelled"),
        ({"optimizer": "AdamW8bit in backward"}, "optimizer: steps within the backward pass are not modelled"),
        ({"layers": "70"}, "model: its sizes make 5.681e+10 parameters, not 6.486e+10"),
        ({"kv_heads": "48"}, "model: its heads are no whole parts of its width, or of each other"),
        ({"model": "Owl-70b"}, "model: of no known family, so gates, biases and norms are not known"),
        ({"step_time_s": "16.7"}, "step_time_s: time and rates tell steps of 16.2685 s and of 16.7 s"),
        ({"peak_mem_gib_per_gpu": "81"}, "peak memory: 81.0 GiB is more than the 79.3 GiB of a device"),
        (
            {"step_time_s": "1", "tokens_per_s_total": "", "tokens_per_s_per_gpu": ""},
            "step time: 1 s implies 658% of the devices' peak FLOP/s",
        ),
        (
            {"step_time_s": "", "tokens_per_s_total": "", "tokens_per_s_per_gpu": ""},
            "step_time_s: neither a time nor a rate nor memory was measured",
        ),
    ],
)
def test_left_rows(file: Path, cells: dict[str, str], why: str) -> None:
    """A row that cannot be expressed, or cannot have been, is left with the column and the reason."""
    assert read(file, with_cells(MEASURED, 0, **cells)).left == (Left("LLMF-001", why),)


@pytest.mark.parametrize("cells", [{"zero_or_fsdp": "Megatron-FSDP shard 8"}, {"zero_or_fsdp": "FSDP 8 + DP"}])
def test_shards_within_a_node(file: Path, cells: dict[str, str]) -> None:
    """Shards over as many ranks as a node has are of that node."""
    (case,) = read(file, with_cells(MEASURED, 0, **cells)).cases
    assert (case.plan.zero_stage, case.plan.shard_within_node) == (3, True)


@pytest.mark.parametrize(
    ("cells", "doubt"),
    [
        ({"confidence": "partial"}, "the table calls it partial"),
        ({"notes": "fp8 gives no gain: suspicious; tied embeddings"}, "its notes say 'suspicious'"),
    ],
)
def test_doubts(file: Path, cells: dict[str, str], doubt: str) -> None:
    """A row that its own table doubts is a case that says so."""
    (case,) = read(file, with_cells(MEASURED, 0, **cells)).cases
    assert case.why_unhealthy == doubt


def test_a_rack_is_one_node(file: Path) -> None:
    """Of GB200, 8 devices in servers of 4 lie in one rack."""
    cells = {"gpu": "GB200", "gpus": "8", "gpus_per_node": "4", "dp": "8", "global_batch_seqs": "64"}
    rate = {"tokens_per_s_total": "", "tokens_per_s_per_gpu": ""}
    (case,) = read(file, with_cells(MEASURED, 0, **cells, **rate)).cases
    assert (case.machine.num_nodes, case.machine.devices_per_node) == (1, 8)


# Tables gone wrong


@pytest.mark.parametrize("cell", ["nan", "-1", "1e99", "inf", "0", "many", "1_0", "9" * 400])
def test_a_malformed_cell(file: Path, cell: str) -> None:
    """Among well-formed rows it is left; two of them in a row, or more such rows than others, end the reading."""
    rows = list(csv.DictReader(io.StringIO(VTRAIN)))
    bad = rows[0] | {"iteration time (ms)": cell}
    (left, *_) = read(file, written([bad, *rows[1:2], *rows[1:2]])).left
    assert left.name == "row 1"
    assert left.why.startswith("'iteration time (ms)': ")
    with pytest.raises(ValueError, match=r"^runs table '.*runs\.csv': row 1 \(row 1\): 'iteration time \(ms\)': "):
        read(file, written([bad]))
    with pytest.raises(ValueError, match=r"row 2 \(row 2\): .*; and 1 more of its cells$"):
        read(file, written([rows[0], bad | {"# GPUs": cell}, rows[0]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column of a known form, one of gpu_unit, after_pp_fix, iteration time \\(ms\\); "),
        ("a,b\n1,2\n", "has no column of a known form"),
        (VTRAIN.replace("micro batch", "x"), "column 'micro batch' is missing; add it, blank where unknown"),
        (VTRAIN.replace("global batch", "micro batch"), "column 'global batch' is missing"),
        (VTRAIN.replace("\n", ",micro batch\n", 1), "column 'micro batch' is given twice; remove one"),
        (VTRAIN.splitlines()[0], "has no rows; add at least one below the header"),
        (VTRAIN + "1,2\n", r"row 4 \(row 4\): has not one cell per column; "),
        (VTRAIN + "1," * 30 + "\n", r"row 4 \(row 4\): has not one cell per column; "),
        (b"\xff\xfe\x00", "cannot be read as CSV in UTF-8; check the file"),
        ("x" * (LONGEST_LINE + 1), "a line has over 1048576 characters; "),
        ('"' + "x\n" * 200_000, "cannot be read as CSV in UTF-8; check the file"),
    ],
)
def test_tables_gone_wrong(file: Path, text: str | bytes, message: str) -> None:
    """Each error is one line that names the file and what is wrong."""
    with pytest.raises(ValueError, match=message) as caught:
        read(file, text)
    assert str(caught.value).startswith("runs table '")
    assert str(caught.value).isprintable()


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    """A missing file, a folder and an impossible path are refused by name."""
    for path in (tmp_path / "no.csv", tmp_path, Path("a\0b")):
        with pytest.raises(ValueError, match=r"^runs table '.*': cannot be read; check the path$"):
            read_cases(path, CATALOG)


def end_well(reading: Callable[[], Cases]) -> None:
    """Assert that a reading ends in cases and reasons, or in an error, each of one line."""
    try:
        said = [f"{left.name}: {left.why}" for left in reading().left]
    except ValueError as error:
        said = [str(error)]
    for line in said:
        assert line.isprintable()
        assert line.isascii()
        assert not line.endswith(": ")


CELL = (
    st.text(max_size=30)
    | st.sampled_from(["", "0", "-1", "nan", "1e308", "1e15", "2147483647", "7", "1.5", "True", "none", "full", "\0"])
    | st.integers(0, 10**6).map(str)
    | st.sampled_from(["MoE 8 experts top-2", "head_dim 0", "LoRA r9999", "FSDP 8 + DP", "qlora", "MI250", "grok"])
)


@given(data=st.data(), cell=CELL)
@pytest.mark.parametrize("table", SAMPLES.values(), ids=SAMPLES)
def test_any_cell_ends_well(file: Path, data: st.DataObject, table: str, cell: str) -> None:
    """Any text in any cell ends in cases, in reasons of one line, or in a ValueError of one line."""
    rows = list(csv.DictReader(io.StringIO(table)))
    row = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.sampled_from(list(rows[0])))
    rows[row][column] = cell
    text = written(rows).encode(errors="surrogatepass")
    end_well(lambda: read(file, text))
    end_well(lambda: read(file, written([rows[row]]).encode(errors="surrogatepass")))


@given(data=st.data(), inserted=st.text(max_size=20) | st.sampled_from(['"', "\n", ",", "\r", "\ufeff"]))
@pytest.mark.parametrize("table", SAMPLES.values(), ids=SAMPLES)
def test_any_edit_ends_well(file: Path, data: st.DataObject, table: str, inserted: str) -> None:
    """A stretch of a table replaced by any text ends well."""
    start = data.draw(st.integers(0, len(table)))
    stop = data.draw(st.integers(start, min(start + 40, len(table))))
    edited = (table[:start] + inserted + table[stop:]).encode(errors="surrogatepass")
    end_well(lambda: read(file, edited))
