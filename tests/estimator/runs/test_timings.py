from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.runs.timings import KINDS, SETTINGS, Timed, read_timing_table, write_timing_table
from hardware.catalog import load_catalog
from tests.support.tables import TIMINGS, rows_of, written

CATALOG = load_catalog()
SIZE, RATE = st.none() | st.integers(1, 2**31 - 1), st.none() | st.floats(1, 1e18)
WORDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
TIMED = st.builds(
    Timed,
    name=WORDS,
    source=WORDS,
    setting=st.sampled_from(SETTINGS),
    kind=st.sampled_from(KINDS),
    accelerators=st.lists(st.sampled_from(CATALOG.accelerators), min_size=1, max_size=2).map(tuple),
    m=SIZE,
    n=SIZE,
    k=SIZE,
    positions=SIZE,
    message_bytes=SIZE,
    num_devices=st.none() | st.integers(1, 64),
    num_nodes=st.none() | st.integers(1, 8),
    seconds=st.none() | st.floats(1e-9, 1e6),
    flop_per_s=RATE,
    bytes_per_s=RATE,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a table that each test writes anew."""
    return tmp_path_factory.mktemp("timings") / "timings.csv"


@given(timings=st.lists(TIMED, min_size=1, max_size=5))
def test_timings_read_back_as_they_were(file: Path, timings: list[Timed]) -> None:
    """Timings written as a table read back equal, field by field."""
    write_timing_table(file, timings)
    assert read_timing_table(file, CATALOG).items == tuple(timings)


def test_the_sample_reads_back(file: Path) -> None:
    """So do timings of every kind that was published."""
    file.write_text(TIMINGS, encoding="utf-8")
    timings = read_timing_table(file, CATALOG).items
    assert {timed.kind for timed in timings} == set(KINDS)
    assert len(timings) == len(rows_of(TIMINGS))
    write_timing_table(file, timings)
    assert read_timing_table(file, CATALOG).items == timings


def test_a_row_of_what_is_needed(file: Path) -> None:
    """A row says who timed what, where and on which device; what a kind needs beyond, its prediction asks for."""
    cells = {"source": "us", "setting": "training", "kind": "stream", "accelerator": "MI300X", "notes": "\u00e4"}
    file.write_text(written([cells]), encoding="utf-8")
    (timed,) = read_timing_table(file, CATALOG).items
    assert timed == Timed("row 1", "us", "training", "stream", (CATALOG.accelerator("mi300x"),))
    file.write_text(written([cells, cells | {"source": ""}]), encoding="utf-8")
    assert read_timing_table(file, CATALOG).skipped == (("row 2", "source: not stated"),)
