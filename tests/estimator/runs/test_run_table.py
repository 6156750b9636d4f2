from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.machine import Fabric, Machine
from estimator.runs.csv_rows import RowsRead
from estimator.runs.measured import Run, Startup, impossible
from estimator.runs.run_table import COLUMNS, OF_CONFIGS, PLAN, RECIPE, SHAPE, read_run_table, write_run_table
from estimator.stack.optimizers import OPTIMIZERS
from estimator.stack.recipe import PRECISIONS, Recipe
from estimator.work.plan import RECOMPUTATIONS, SCHEDULES, Plan
from estimator.work.shape import Shape, load_shape
from hardware.catalog import load_catalog
from tests.support.tables import RUNS, rows_of, with_cells, written

CATALOG = load_catalog()
LEAST = {
    "source": "us", "software": "torchtune", "model": "mistral-7b-v0.1", "seq_len": "2048", "accelerator": "mi300x",
    "num_devices": "8", "step_s": "9.5",
}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a table that each test writes anew."""
    return tmp_path_factory.mktemp("runs") / "runs.csv"


def read(file: Path, text: str | bytes) -> RowsRead[Run]:
    """Write a table and read it."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_run_table(file, CATALOG)


def run_of(file: Path, **cells: str) -> Run:
    """Return the run of a row of the columns that are needed, with further cells."""
    read_row = read(file, written([LEAST | cells]))
    assert read_row.skipped == ()
    return read_row.items[0]


# What a row says


def test_a_row_of_what_is_needed_is_a_run(file: Path) -> None:
    """Blank is the default: a plan's, a recipe's, full nodes, and nothing measured but the time."""
    run = run_of(file)
    assert (run.name, run.source, run.trainer, run.step_s) == ("row 1", "us", "torchtune", 9.5)
    assert (run.shape, run.plan, run.recipe) == (load_shape("mistral-7b-v0.1"), Plan(), Recipe())
    assert run.machine == Machine(CATALOG.accelerator("mi300x"), CATALOG.node_of("mi300x"), 8, 1)
    assert (run.reserved_bytes, run.fits, run.startup, run.launch_windows_s) == (None, None, None, ())


def test_columns_are_the_fields() -> None:
    """Every field of a shape, a plan and a recipe is a column by name; the shape's name is `model`."""
    for kind, own in ((Shape, SHAPE), (Plan, PLAN), (Recipe, RECIPE)):
        missing = {field.name for field in fields(kind)} - own.columns.keys()
        assert missing == (
            {"name", "lora_rank", "lora_targets", "lora_modules", *OF_CONFIGS} if kind is Shape else set()
        )
        assert own.columns.keys() <= COLUMNS.keys()
        assert set(own.needed) | set(own.usual) == set(own.columns)


def test_a_plan_as_estimate_prints_it(file: Path) -> None:
    """Degrees may be called as `estimate --json` calls them."""
    run = run_of(
        file, num_devices="16", tensor_parallel="2", context_parallel="2", num_stages="2", num_micro_batches="4"
    )
    assert (run.plan, run.dp) == (Plan(num_stages=2, num_micro_batches=4, tp=2, cp=2), 2)


def test_what_was_measured(file: Path) -> None:
    """Memory, launches, one-off seconds and readings of the machine are as the columns say."""
    run = run_of(
        file, total_bytes="1e11", memory_of="first stage", fits="true", steps_per_read="2", launch_windows_s="7.5 8",
        request_s="5", first_step_s="60.5", hop_s="1e-4", stalls="true", doubt="it thrashed", step_log_se="0.01",
        assumes="precision: not stated", notes="anything, \u00e4 too",
    )  # fmt: skip
    assert (run.total_bytes, run.reads_first_stage, run.fits, run.steps_per_read) == (1e11, True, True, 2)
    assert (run.launch_windows_s, run.startup) == ((7.5, 8.0), Startup(5.0, None, 60.5))
    assert run.machine.fabric == Fabric(1e-4, stalls=True)
    assert (run.why_unhealthy, run.tells_speed, run.step_log_se) == ("it thrashed", False, 0.01)


def test_a_run_out_of_memory_has_no_time(file: Path) -> None:
    """That it does not fit is enough to be a run."""
    run = run_of(file, step_s="", fits="false")
    assert (run.step_s, run.fits, run.tokens_per_s) == (None, False, None)


SIZES = {
    "model": "mine", "family": "llama", "hidden_size": "512", "num_layers": "4", "num_heads": "8", "num_kv_heads": "4",
    "head_dim": "64", "ffn_size": "1024", "vocab_size": "1000", "gated_ffn": "true", "tied_embeddings": "false",
}  # fmt: skip


def test_a_model_of_its_sizes(file: Path) -> None:
    """A model that has no built-in name is told by its sizes, defaults included."""
    shape = run_of(file, **SIZES, step_s="60").shape
    assert shape == Shape("mine", "llama", 512, 4, 8, 4, 64, 1024, 1000, gated_ffn=True, tied_embeddings=False)


PLANS = st.builds(
    Plan,
    num_stages=st.just(1) | st.just(2),
    num_micro_batches=st.integers(1, 64),
    batch_per_device=st.integers(1, 64),
    tp=st.sampled_from([1, 2, 4]),
    recomputation=st.sampled_from(RECOMPUTATIONS),
    zero_stage=st.integers(0, 3),
    schedule=st.sampled_from(SCHEDULES),
    sequence_parallel=st.booleans(),
    offload_optimizer=st.booleans(),
)
RECIPES = st.builds(
    Recipe,
    precision=st.none() | st.sampled_from([name for name in PRECISIONS if name != "fp8-mixed"]),
    optimizer=st.none() | st.sampled_from(OPTIMIZERS),
    lora_rank=st.just(16),
    quantize=st.none() | st.just("4"),
    overlaps=st.booleans(),
)
SECONDS, BYTES = st.floats(1e5, 1e6), st.none() | st.floats(1, 6e10)
WORDS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=60).map(str.strip)
RUN = st.builds(
    Run,
    name=WORDS.filter(bool),
    source=WORDS.filter(bool),
    trainer=WORDS.filter(bool),
    shape=st.builds(
        Shape,
        name=WORDS.filter(bool),
        family=st.sampled_from(["llama", "gpt2", "mixtral"]),
        hidden_size=st.sampled_from([512, 4096]),
        num_layers=st.sampled_from([8, 32]),
        num_heads=st.just(32),
        num_kv_heads=st.sampled_from([8, 32]),
        head_dim=st.sampled_from([64, 128]),
        ffn_size=st.just(4096),
        vocab_size=st.just(1000),
        gated_ffn=st.booleans(),
        tied_embeddings=st.booleans(),
        qkv_bias=st.booleans(),
        num_positions=st.sampled_from([0, 2048]),
        num_experts=st.just(8),
        num_experts_per_token=st.sampled_from([1, 2]),
        sliding_window=st.sampled_from([0, 1024]),
    ),
    seq_len=st.sampled_from([1024, 2048]),
    machine=st.builds(
        Machine,
        accelerator=st.just(CATALOG.accelerator("mi300x")),
        node=st.just(CATALOG.node_of("mi300x")),
        num_devices=st.just(8),
        num_nodes=st.integers(1, 8),
        fabric=st.none() | st.builds(Fabric, hop_s=st.floats(0, 1), stalls=st.booleans()),
    ),
    plan=PLANS,
    recipe=RECIPES,
    step_s=st.none() | SECONDS,
    reserved_bytes=BYTES,
    allocated_bytes=BYTES,
    fits=st.booleans(),
    why_unhealthy=WORDS,
    reads_first_stage=st.booleans(),
    assumes=WORDS,
    step_log_se=st.floats(0, 1),
    steps_per_read=st.integers(1, 100),
    launch_windows_s=st.lists(st.floats(1e-3, 1e3), max_size=4).map(tuple),
    total_bytes=BYTES,
    startup=st.none()
    | st.builds(
        Startup,
        request_s=st.floats(0, 100),
        search_s_per_candidate=st.none() | st.floats(0, 9),
        first_step_s=st.none() | st.floats(0, 1e3),
    ),
)


@given(runs=st.lists(RUN.filter(lambda run: not impossible([run])[0]), min_size=1, max_size=3))
def test_runs_read_back_as_they_were(file: Path, runs: list[Run]) -> None:
    """Runs written as a table read back equal, field by field, and so do their digests."""
    write_run_table(file, runs)
    read_back = read_run_table(file, CATALOG)
    assert read_back == RowsRead(tuple(runs), ())
    assert [run.digest for run in read_back.items] == [run.digest for run in runs]


def test_the_sample_reads_back(file: Path) -> None:
    """So do runs of every kind that was published."""
    runs = read(file, RUNS).items
    assert len(runs) == len(rows_of(RUNS)) > 20
    write_run_table(file, runs)
    assert read_run_table(file, CATALOG).items == runs


def test_time_and_rate_agree(file: Path) -> None:
    """Tokens per second times seconds per step are the tokens of a step."""
    for run in read(file, RUNS).items:
        if run.step_s is not None and run.tokens_per_s is not None:
            assert run.tokens_per_s * run.step_s == pytest.approx(run.workload.tokens_per_step)


@pytest.mark.slow
@given(data=st.data())
def test_permuting_rows_permutes_runs(file: Path, data: st.DataObject) -> None:
    """The order of the rows changes no run."""
    header, *rows = RUNS.splitlines(keepends=True)[::3]
    order = data.draw(st.permutations(range(len(rows))))
    first = read(file, header + "".join(rows)).items
    assert read(file, header + "".join(rows[i] for i in order)).items == tuple(first[i] for i in order)


# Rows that cannot be


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ({"source": ""}, "source: not stated"),
        ({"model": ""}, "model: not stated"),
        ({"num_devices": ""}, "num_devices: not stated"),
        ({"seq_len": "0"}, "seq_len: '0' is not a whole number from 1 to 2147483647"),
        ({"num_devices": "1000000000"}, "num_devices: '1000000000' is not a whole number from 1 to "),
        ({"accelerator": "H900"}, "unknown accelerator 'H900': "),
        ({"model": "mistral-8b"}, "unknown model 'mistral-8b': "),
        ({"num_nodes": "9"}, "num_nodes: 9 nodes of 8 do not hold 8 devices"),
        ({"num_devices": "16", "num_nodes": "1"}, "num_nodes: 1 nodes of 8 do not hold 16 devices"),
        ({"tp": "3"}, "plan: num_stages * tp * cp = 3 does not divide num_devices = 8"),
        ({"tp": "0"}, "tp: 0 does not fit; "),
        ({"num_stages": "16", "num_devices": "8"}, "plan: num_stages * tp * cp = 16 does not divide num_devices = 8"),
        ({"zero_stage": "4"}, "zero_stage: 4 does not fit; input should be less than or equal to 3"),
        ({"recomputation": "some"}, "recomputation: 'some' does not fit; "),
        ({"ep": "2"}, "plan: ep=2: 'mistralai/Mistral-7B-v0.1' has no experts to share; use ep=1"),
        ({"precision": "bf17"}, "unknown precision 'bf17': did you mean bf16"),
        ({"quantize": "4"}, "quantize: 4-bit weights cannot be trained"),
        ({"stalls": "true"}, "hop_s: is measured together with stalls; give both or none"),
        ({"step_s": ""}, "step_s: neither a time nor a rate nor memory was measured, nor whether it fits"),
        ({"step_s": "1e-4"}, "step time: 0.0001 s implies "),
        ({"reserved_bytes": "3e11"}, "peak memory: 279.4 GiB is more than the 191.7 GiB of a device"),
        ({"total_bytes": "9e14"}, "total memory: 838190.3 GiB is more than all devices have together"),
        ({"num_layers": "4"}, "family: not stated"),
        (SIZES | {"hidden_size": "0"}, "hidden_size: 0 is no model's"),
        (SIZES | {"num_kv_heads": "3"}, "num_kv_heads: 3 does not divide num_heads = 8"),
        (SIZES | {"num_experts": "4"}, "num_experts_per_token: not from 1 to num_experts = 4"),
        (SIZES | {"num_positions": "64"}, "seq-len: 2048 is more than the 64 learned positions of 'mine'"),
    ],
)
def test_skipped_rows(file: Path, cells: dict[str, str], why: str) -> None:
    """A row that says too little, or that cannot have been, is skipped with the column and the reason."""
    fine = LEAST | {"id": "fine"}
    (skipped,) = read(file, written([fine, LEAST | {"id": "bad"} | cells])).skipped
    assert skipped.name == "bad"
    assert skipped.why.startswith(why)


def test_what_ran_may_be_uneven(file: Path) -> None:
    """Software divides layers over stages as it likes: what was measured did run."""
    assert run_of(file, num_stages="8", num_micro_batches="2").dp == 1
    (uneven,) = read(file, with_cells(RUNS, "14098602", num_layers="27")).items
    assert uneven.shape.num_layers % uneven.plan.num_stages


def test_an_unknown_column_is_an_error(file: Path) -> None:
    """The error says which column is near."""
    with pytest.raises(
        ValueError, match=r"^runs table '.*': unknown column 'reserved_gb': did you mean reserved_bytes"
    ):
        read(file, written([LEAST | {"reserved_gb": "20"}]))


def test_digests_tell_runs_apart(file: Path) -> None:
    """Equal rows have equal digests, and those that differ in what was measured others."""
    first, again, other = read(file, written([LEAST, LEAST, LEAST | {"step_s": "9.6"}])).items
    assert first.digest == again.digest != other.digest


# Whatever a cell holds


def end_well(reading: Callable[[], RowsRead[Run]]) -> None:
    """Assert that a reading ends in runs and reasons, or in an error, each of one line."""
    try:
        said = [f"{skipped.name}: {skipped.why}" for skipped in reading().skipped]
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
)


@pytest.mark.slow
@given(data=st.data(), cell=CELL)
def test_any_cell_ends_well(file: Path, data: st.DataObject, cell: str) -> None:
    """Any text in any cell ends in runs, in reasons of one line, or in a ValueError of one line."""
    rows = rows_of(RUNS)
    row, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.sampled_from(list(rows[0])))
    rows[row][column] = cell
    end_well(lambda: read(file, written(rows).encode(errors="surrogatepass")))
    end_well(lambda: read(file, written([rows[row]]).encode(errors="surrogatepass")))


@given(data=st.data(), inserted=st.text(max_size=20) | st.sampled_from(['"', "\n", ",", "\r", "\ufeff"]))
def test_any_edit_ends_well(file: Path, data: st.DataObject, inserted: str) -> None:
    """A stretch of a table replaced by any text ends well."""
    start = data.draw(st.integers(0, len(RUNS)))
    stop = data.draw(st.integers(start, min(start + 40, len(RUNS))))
    end_well(lambda: read(file, (RUNS[:start] + inserted + RUNS[stop:]).encode(errors="surrogatepass")))
