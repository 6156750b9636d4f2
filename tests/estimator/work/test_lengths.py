import json
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.work import lengths as lengths_module
from estimator.work.lengths import Lengths, lengths_of, packed_rows, read_lengths, useful_fraction
from estimator.work.workload import MAX_COUNT
from tests.support.paths import check_what_is_no_file

rows = st.lists(st.integers(1, 60), min_size=1, max_size=60)
seq_lens = st.integers(1, 80)
pieces = st.sampled_from(["length", "count", '"length"', ",", ":", "1", "2", "{", "}", "[", "]", " ", "\n"])
files = st.text(max_size=60) | st.lists(pieces).map("".join)


def histogram(drawn: list[int]) -> Lengths:
    """Return the histogram of rows one by one."""
    return lengths_of((length, 1) for length in drawn)


def same(first: Lengths, second: Lengths) -> bool:
    """Whether two histograms are equal."""
    return np.array_equal(first.lengths, second.lengths) and np.array_equal(first.counts, second.counts)


def packed_one_by_one(drawn: list[int], seq_len: int) -> int:
    """Return the rows that best fit decreasing opens, placing one row after another."""
    rooms: list[int] = []
    for length in sorted((min(length, seq_len) for length in drawn), reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= length
        else:
            rooms.append(seq_len - length)
    return len(rooms)


@given(rows, seq_lens)
def test_packing_by_histogram_is_packing_one_by_one(drawn: list[int], seq_len: int) -> None:
    """The histogram needs exactly the rows that best fit decreasing opens one by one."""
    assert packed_rows(histogram(drawn), seq_len) == packed_one_by_one(drawn, seq_len)


@given(rows, seq_lens)
def test_packed_rows_are_bounded(drawn: list[int], seq_len: int) -> None:
    """Packed rows hold all kept tokens, are never more than the rows, and waste less than half but for one row."""
    found = histogram(drawn)
    packed = packed_rows(found, seq_len)
    tokens = sum(min(length, seq_len) for length in drawn)
    assert ceil(tokens / seq_len) <= packed <= len(drawn)
    assert packed <= max(1, 2 * tokens / seq_len)


@given(rows, seq_lens)
def test_packing_never_computes_more_padding(drawn: list[int], seq_len: int) -> None:
    """The useful part of packed rows is at least that of padded ones, and at most all."""
    found = histogram(drawn)
    padded = useful_fraction(found, seq_len)
    packed = found.num_tokens(seq_len) / (packed_rows(found, seq_len) * seq_len)
    assert 0 < padded <= packed <= 1


@given(rows, seq_lens)
def test_longer_rows_hold_less_that_is_useful(drawn: list[int], seq_len: int) -> None:
    """Padding to more tokens never raises the useful part, and cuts off fewer of them."""
    found = histogram(drawn)
    assert useful_fraction(found, seq_len + 1) <= useful_fraction(found, seq_len)
    assert found.num_tokens(seq_len) <= found.num_tokens(seq_len + 1) <= found.num_tokens() == sum(drawn)


@given(rows, seq_lens, st.integers(1, 5))
def test_full_rows_are_packed_alone(drawn: list[int], seq_len: int, full: int) -> None:
    """Each further row of the whole length, or cut to it, needs one more packed row."""
    more = [*drawn, *[seq_len] * full, seq_len + 7]
    assert packed_rows(histogram(more), seq_len) == packed_rows(histogram(drawn), seq_len) + full + 1


@given(rows, rows, seq_lens)
def test_more_rows_hardly_need_fewer(drawn: list[int], more: list[int], seq_len: int) -> None:
    """More rows need no fewer packed ones, beyond the 11/9 by which best fit decreasing may miss the optimum."""
    fewer, all_rows = packed_rows(histogram(drawn), seq_len), packed_rows(histogram(drawn + more), seq_len)
    assert fewer <= 11 / 9 * all_rows + 4  # Johnson et al. 1974, doi:10.1137/0203025


@given(rows, seq_lens, st.integers(1, 1000))
def test_only_proportions_matter(drawn: list[int], seq_len: int, factor: int) -> None:
    """Lengths and sequence length times the same give the same rows and the same useful part."""
    found, longer = histogram(drawn), histogram([length * factor for length in drawn])
    assert packed_rows(longer, seq_len * factor) == packed_rows(found, seq_len)
    assert useful_fraction(longer, seq_len * factor) == useful_fraction(found, seq_len)


@given(st.data(), rows, seq_lens)
def test_order_does_not_matter(data: st.DataObject, drawn: list[int], seq_len: int) -> None:
    """A permutation of the rows gives the same histogram, ascending and each length once."""
    found, other = histogram(drawn), histogram(data.draw(st.permutations(drawn)))
    assert same(found, other)
    assert packed_rows(found, seq_len) == packed_rows(other, seq_len)
    assert found.lengths.tolist() == sorted(set(drawn))
    assert found.lengths.dtype == found.counts.dtype == np.int64
    assert found.num_rows == len(drawn)


def test_counts_too_large_for_64_bits() -> None:
    """Tokens beyond 64 bits are counted exactly, and as many rows are packed at once."""
    found = lengths_of([(2**39, 2**39), (1, 3)])
    assert found.num_tokens() == 2**78 + 3
    assert packed_rows(found, 2**40 - 1) == 2**39
    assert useful_fraction(found, 2**39) == pytest.approx(1)


@given(drawn=rows)
def test_every_form_of_a_file_is_read_alike(drawn: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    """A histogram, plain lengths and JSON Lines of the same rows give the same lengths."""
    path, expected = tmp_path_factory.mktemp("rows") / "file", histogram(drawn)
    pairs = zip(expected.lengths.tolist(), expected.counts.tolist(), strict=True)
    texts = [
        "length,count\n" + "".join(f"{length},{count}\n" for length, count in pairs),
        "".join(f"{length}\n" for length in drawn),
        "".join(json.dumps({"length": length, "text": "..."}) + "\n" for length in drawn),
        "".join(json.dumps({"input_ids": list(range(length))}) + "\n" for length in drawn),
        "".join(json.dumps({"input_ids": [0] * 60, "attention_mask": [1] * n + [0] * (60 - n)}) + "\n" for n in drawn),
    ]
    for text in texts:
        path.write_text(text, encoding="utf-8")
        assert same(read_lengths(path), expected)


@pytest.mark.parametrize(
    "text",
    [
        "length,count\n5,2\n7,1\n",
        "\ufeff\n\nlength , count\r\n 5 , 1 \r\n7,1\r\n\r\n5,1",
        '"count","length","source"\n"2","5","a"\n"1","7","b"\n0,0,c',
        " 5\n\n7\n5",
        "5\n05\n7",
        '{"length": 5}\n\n {"length": 7, "input_ids": []} \n{"input_ids": [1, 2, 3, 4, 5], "length": null}',
    ],
)
def test_ways_to_write_a_file(text: str, tmp_path: Path) -> None:
    """Blank lines, spaces, quotes, further columns, their order, empty bins and line ends change nothing."""
    path = tmp_path / "rows"
    path.write_bytes(text.encode())
    assert same(read_lengths(path), lengths_of([(5, 2), (7, 1)]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^lengths '.*rows': holds 0 rows, not from 1 to 2\*\*40 - 1; give at least one length$"),
        ("length,count\n5,0", r"holds 0 rows, not from 1"),
        (f"length,count\n5,{MAX_COUNT - 1}\n6,1", r"holds 1099511627776 rows, not from 1 to 2\*\*40 - 1"),
        ("[1, 2]", r"its first line '\[1, 2\]' is no length; give a CSV with the columns length,count, one length per"),
        ("5,2", r"its first line '5,2' is no length"),
        ("-5", r"its first line '-5' is no length"),
        ("5\n\n6.0", r"^lengths '.*rows': line 3: '6.0' is not a whole number; write digits alone$"),
        ("5\n1_0", r"line 2: '1_0' is not a whole number"),
        ("5\n\u0665", r"line 2: '\\u0665' is not a whole number"),
        ("5\n" + "1" * 5000, r"line 2: '1111.* is not a whole number"),
        ("5\n0", r"line 2: length 0 is not from 1 to 2\*\*40 - 1; leave out empty rows$"),
        (f"{MAX_COUNT}", r"line 1: length 1099511627776 is not from 1"),
        ("length,count\n5", r"line 2: 1 cells in a table of 2 columns; write one per column$"),
        ("length,count\n5,x", r"line 2: 'x' is not a whole number"),
        (f"length,count\n5,{MAX_COUNT}", r"line 2: count 1099511627776 is not from 0 to 2\*\*40 - 1; correct it$"),
        (
            '{"text": "some words", "id": 3}',
            r"line 1: no 'length' and no list 'input_ids' among 'text, id'; count tokens first, and write 'length'$",
        ),
        ('{"input_ids": 3}', r"line 1: no 'length' and no list 'input_ids' among 'input_ids'"),
        ('{"input_ids": []}', r"line 1: length 0 is not from 1"),
        ('{"input_ids": [7], "attention_mask": [0]}', r"line 1: length 0 is not from 1"),
        ('{"length": "5"}', r"line 1: length = '5' is not an integer; write the tokens of the row$"),
        ('{"length": true}', r"line 1: length = True is not an integer"),
        ('{"length": 5}\n7', r"line 2: 7 is not an object; write one row per line$"),
        ('{"length": 5}\n{', r"line 2: '{' is not JSON; write one object per line$"),
        ('{"length": 5}\n' + "[" * 100_000, r"line 2: '\[\[\[.* is not JSON"),
    ],
)
def test_files_that_hold_no_lengths(text: str, message: str, tmp_path: Path) -> None:
    """What holds no lengths is refused with the file, the line, and the mend."""
    path = tmp_path / "rows"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_lengths(path)


@given(text=files)
def test_any_text_is_lengths_or_one_line(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any text is read, or refused in one line of ASCII."""
    path = tmp_path_factory.mktemp("rows") / "file"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        assert read_lengths(path).num_rows > 0
    except ValueError as error:
        assert str(error).isascii()  # noqa: PT017 - a text that holds lengths raises nothing
        assert len(str(error).splitlines()) == 1  # noqa: PT017


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A path to nothing, a folder, a pipe and a name that is none are refused; bytes that are no text as such."""
    check_what_is_no_file(read_lengths, "lengths", tmp_path)
    (tmp_path / "rows").write_bytes(b"5\n\xff\xfe")
    with pytest.raises(ValueError, match=r"^lengths '.*rows': is not text in UTF-8; give a CSV with the columns"):
        read_lengths(tmp_path / "rows")


def test_a_line_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line beyond the limit is refused before more of it is read."""
    monkeypatch.setattr(lengths_module, "MAX_LINE", 100)
    path = tmp_path / "rows"
    path.write_text("5\n" + "7" * 1000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 has more than 100 characters; write one row per line$"):
        read_lengths(path)


@pytest.mark.parametrize("seq_len", [0, -1, MAX_COUNT])
def test_sequence_lengths_that_no_run_has(seq_len: int) -> None:
    """A sequence length out of range is refused by the name of its option."""
    for function in (useful_fraction, packed_rows):
        with pytest.raises(ValueError, match=r"^seq-len: -?\d+ is not from 1 to 2\*\*40 - 1; give a positive count$"):
            function(lengths_of([(5, 1)]), seq_len)
