from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.runs.logs.text import CHUNK_BYTES, LONGEST_LINE, LogText, plain, split_lines
from tests.support.paths import check_what_is_no_file


def lines(path: Path, content: bytes) -> list[str]:
    """Return the lines of a log of this content."""
    path.write_bytes(content)
    return list(split_lines(LogText(path).texts()))


def pieces(text: str, cuts: list[int]) -> Iterator[str]:
    """Yield a text cut at some places."""
    at = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    yield from (text[start:end] for start, end in pairwise(at))


@given(text=st.text(st.sampled_from("ab\r\n\x1b[3m")), cuts=st.lists(st.integers(0, 1000)))
def test_cutting_a_text_changes_no_line(text: str, cuts: list[int]) -> None:
    """However a text is cut into pieces, its lines are the same, whatever ends them."""
    expected = [plain(line) for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    assert list(split_lines(pieces(text, cuts))) == expected


def test_colours_marks_and_ends_are_no_part_of_a_line(tmp_path: Path) -> None:
    """A byte-order mark, colours and carriage returns leave no trace; what is no UTF-8 stays as U+FFFD."""
    assert lines(tmp_path / "a.log", b"\xef\xbb\xbf\x1b[31mstep\x1b[39m: 1\r\n50%\r100%\xff\n") == [
        "step: 1",
        "50%",
        "100%\ufffd",
        "",
    ]


def test_a_line_is_cut_to_the_longest_that_is_kept(tmp_path: Path) -> None:
    """A file of one endless line is a line of bounded length, and what follows is read."""
    found = lines(tmp_path / "a.log", b"x" * (2 * CHUNK_BYTES) + b"\nend")
    assert [len(found[0]), *found[1:]] == [LONGEST_LINE, "end"]


def test_the_digest_is_of_the_file(tmp_path: Path) -> None:
    """Once a log is read, its digest is that of all bytes (SHA-256 of "abc", FIPS 180-2, B.1)."""
    path = tmp_path / "a.log"
    path.write_bytes(b"abc")
    text = LogText(path)
    list(text.texts())
    assert text.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b\x08\x00", "is a gzip archive, not text; unpack it first"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"\x28\xb5\x2f\xfd", "is a zstd archive"),
        ("step".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """An archive and wide characters are told by what they are, with the mend."""
    with pytest.raises(ValueError, match=rf"^log '.*a\.log': {message}"):
        lines(tmp_path / "a.log", content)


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    """A missing file, a folder and an impossible path are refused by name."""
    check_what_is_no_file(lambda path: list(LogText(path).texts()), "log", tmp_path)
