from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.runs.csv_rows import (
    LONGEST_LINE,
    RowsRead,
    Skipped,
    choice,
    flag,
    label,
    number,
    numbers,
    read_rows,
    whole,
)
from tests.support.paths import check_what_is_no_file

COLUMNS = {"id": label, "size": whole(1), "seconds": number(1e-9), "each_s": numbers(number()), "kept": flag}
FINE = "id,size,seconds,each_s,kept\na,8,1.5e-3,1 2.5,true\nb,8.0,,,False\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a table that each test writes anew."""
    return tmp_path_factory.mktemp("rows") / "table.csv"


def read(file: Path, text: str | bytes) -> RowsRead[dict[str, object]]:
    """Write a table and read its cells."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_rows(file, "things", COLUMNS, lambda cells, _: dict(cells), {"num_of": "size"})


def test_cells_are_as_their_columns_have_them(file: Path) -> None:
    """Cells are parsed; a blank one is as a column that is not there; a column may have another name."""
    first, second = read(file, FINE).items
    assert first == {"id": "a", "size": 8, "seconds": 0.0015, "each_s": (1.0, 2.5), "kept": True}
    assert second == {"id": "b", "size": 8, "kept": False}
    assert read(file, "num_of,id\n3,a\n").items == ({"size": 3, "id": "a"},)


def test_rfc_4180(file: Path) -> None:
    """Quoted commas, quotes and line ends, CRLF, a byte-order mark and empty lines change nothing."""
    text = '\ufeffid,size\r\n"a, ""b""",1\r\n\r\n"c\n",2\r\n'
    assert [row["id"] for row in read(file, text).items] == ['a, "b"', "c"]


@pytest.mark.parametrize("cell", ["nan", "-1", "1e99", "inf", "many", "1_0", "9" * 400, "\u0663", "1,0"])
def test_a_malformed_cell(file: Path, cell: str) -> None:
    """Among well-formed rows its row is skipped; two in a row, or more such rows than others, end the reading."""
    bad = f'c,"{cell}",1,,\n'
    assert read(file, FINE + bad).skipped[0].name == "c"
    assert read(file, FINE + bad).skipped[0].why.startswith("size: ")
    with pytest.raises(
        ValueError, match=r"^things table '.*table\.csv': row 1 \(c\): size: .*1 of 1 rows are malformed$"
    ):
        read(file, FINE.splitlines()[0] + "\n" + bad)
    with pytest.raises(ValueError, match=r"row 3 \(c\): size: .*; and 1 more of its cells$"):
        read(file, FINE + f'c,"{cell}",x,,\n')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows; add at least one below the header"),
        ("id,size\n", "has no rows; add at least one below the header"),
        ("id,sise\na,1\n", "unknown column 'sise': did you mean size\\?"),
        ("id,x\na,1\n", "unknown column 'x': use one of id, size, seconds"),
        ("id,size,id\na,1,b\n", "column 'id' is given twice; remove one"),
        ("id,size,num_of\na,1,1\n", "column 'size' is given twice; remove one"),
        (FINE + "c,1\n", r"row 3 \(c\): has not one cell per column; quote one that holds a comma"),
        (FINE + "c,1,1,,true,\n", r"row 3 \(c\): has not one cell per column; "),
        (b"\xff\xfe\x00", "cannot be read as CSV in UTF-8; check the file"),
        (FINE + '"c,1', "cannot be read as CSV in UTF-8; check the file"),
        ("x" * (LONGEST_LINE + 1), "a line has over 1048576 characters; it is no table of things"),
        ('"' + "x\n" * 200_000, "cannot be read as CSV in UTF-8; check the file"),
    ],
)
def test_tables_gone_wrong(file: Path, text: str | bytes, message: str) -> None:
    """Each error is one line that names the file and what is wrong."""
    with pytest.raises(ValueError, match=message) as caught:
        read(file, text)
    assert str(caught.value).startswith("things table '")
    assert str(caught.value).isprintable()


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    """A missing file, a folder and an impossible path are refused by name."""

    def things(path: Path) -> object:
        return read_rows(path, "things", COLUMNS, lambda cells, _: cells)

    check_what_is_no_file(things, "things table", tmp_path)


def test_a_row_is_called_by_its_id(file: Path) -> None:
    """A skipped row is called by its id where that is plain, else by its number."""
    skipped = read(file, FINE + "c,x,,,\n\u00e4,1,,,\n,y,,,\n" + FINE.partition("\n")[2]).skipped
    assert [row.name for row in skipped] == ["c", "row 4", "row 5"]
    assert skipped[1] == Skipped("row 4", "id: '\\xe4' is not up to 200 printable characters of ASCII")


@given(value=st.floats(1e-9, 1e15), count=st.integers(0, 2**31 - 1))
def test_numbers_read_back(value: float, count: int) -> None:
    """What Python writes of a number reads back as that number."""
    assert number()(repr(value)) == value
    assert whole()(str(count)) == count


def test_words_that_are_none() -> None:
    """A choice, a flag and a label refuse what they are not."""
    with pytest.raises(ValueError, match="'c' is not one of a, b"):
        choice("a", "b")("c")
    with pytest.raises(ValueError, match="'yes' is not true or false"):
        flag("yes")
    with pytest.raises(ValueError, match="is not up to 200 printable characters of ASCII"):
        label("x" * 201)
    with pytest.raises(ValueError, match="which are more than 2"):
        numbers(number(), most=2)("1 2 3")
