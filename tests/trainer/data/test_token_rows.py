from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from estimator.work.lengths import lengths_of
from tests.support.documents import token_rows
from trainer.data.token_rows import TokenRows, read_token_rows, write_token_rows

tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)
encoded = st.lists(
    tokens.flatmap(lambda row: st.tuples(st.just(row), st.integers(0, len(row)))), min_size=1, max_size=9
)


def lists(rows: TokenRows) -> list[list[int]]:
    """Return the tokens of all rows."""
    return [rows[row].tolist() for row in range(len(rows))]


@given(encoded, st.booleans())
def test_what_is_written_is_read(drawn: list[tuple[list[int], int]], mask_prompt: bool) -> None:
    """Rows come back with their tokens and prompts, masked where that is asked for; equal rows have one digest."""
    with TemporaryDirectory() as folder:
        assert write_token_rows(drawn, Path(folder)) == len(drawn)
        rows = read_token_rows(Path(folder), mask_prompt=mask_prompt)
        assert lists(rows) == [row for row, _ in drawn]
        untrained = [max(prompt, 1) if mask_prompt else 1 for _, prompt in drawn]
        assert rows.untrained.tolist() == untrained
        assert rows.targets().tolist() == [len(row) - first for (row, _), first in zip(drawn, untrained, strict=True)]
        assert write_token_rows(iter(drawn), Path(folder)) == len(drawn)  # in the same place, or elsewhere
        assert read_token_rows(Path(folder), mask_prompt=mask_prompt).digest == rows.digest
        write_token_rows([([*drawn[0][0], 7], drawn[0][1]), *drawn[1:]], Path(folder))
        assert read_token_rows(Path(folder), mask_prompt=mask_prompt).digest != rows.digest
        del rows  # lets go of the file before its folder


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(1, 20))
def test_cut_rows_are_beginnings(lengths: list[int], length: int) -> None:
    """A cut row is the beginning of the row, and has no target beyond it."""
    rows = token_rows(lengths, [min(5, each) for each in lengths])
    cut = rows.cut(length)
    assert lists(cut) == [row[:length] for row in lists(rows)]
    assert cut.targets().tolist() == [max(min(each, length) - min(5, each), 0) for each in lengths]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.data())
def test_taken_rows_are_those(lengths: list[int], data: st.DataObject) -> None:
    """Rows are taken in the order asked for."""
    numbers = data.draw(st.lists(st.integers(0, len(lengths) - 1)))
    rows = token_rows(lengths)
    assert lists(rows.take(np.array(numbers, dtype=np.int64))) == [lists(rows)[number] for number in numbers]


def test_digests_tell_rows_apart() -> None:
    """Rows cut or taken otherwise have other digests; the same ones the same."""
    rows = token_rows([5, 6, 7])
    others = [rows, rows.cut(6), rows.cut(5), rows.take(np.array([0, 1])), rows.take(np.array([1, 0]))]
    assert len({other.digest for other in others}) == len(others)
    assert rows.cut(6).digest == token_rows([5, 6, 7]).cut(6).digest


def test_histogram_counts_rows_by_length() -> None:
    """The histogram is what the estimator makes of the lengths one by one."""
    found, expected = token_rows([5, 3, 5]).histogram(), lengths_of([(3, 1), (5, 2)])
    assert found.lengths.tolist() == expected.lengths.tolist()
    assert found.counts.tolist() == expected.counts.tolist()
