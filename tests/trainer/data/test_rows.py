import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data import rows as rows_module
from trainer.data.rows import Files, Hub, open_source

ROWS = [{"instruction": f"say {i}", "input": "", "output": f"{i} is \u00e9\u4e2d"} for i in range(2500)]
"""More than are read at a time."""


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, rows: list[Any]) -> Path:
    """Write one array, over several lines."""
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    """Write a Parquet file of small row groups."""
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    return path


WRITERS = {".jsonl": write_jsonl, ".json": write_json, ".parquet": write_parquet}
Writer = Callable[[Path, list[Any]], Path]


def read(dataset: Path) -> list[dict[str, str]]:
    """Return the parts of all rows of a dataset."""
    return [parts for _, parts in open_source(str(dataset)).rows()]


@pytest.mark.parametrize(("suffix", "write"), WRITERS.items())
def test_each_form_gives_the_rows_in_their_order(tmp_path: Path, suffix: str, write: Writer) -> None:
    """What was written is read."""
    assert read(write(tmp_path / f"rows{suffix}", ROWS)) == ROWS


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    """The files of a folder are one dataset, in the order of their names; others are let be."""
    write_parquet(tmp_path / "b.parquet", ROWS[10:20])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:10])
    write_json(tmp_path / "c.json", ROWS[20:30])
    (tmp_path / "README.md").write_text("what this is")
    assert read(tmp_path) == ROWS[:30]


def test_json_lines_may_be_called_json_and_have_gaps(tmp_path: Path) -> None:
    """JSON Lines are told by their first character; blank lines, line ends of any kind and a byte order mark pass."""
    path = tmp_path / "rows.json"
    lines = [json.dumps(row) for row in ROWS[:3]]
    path.write_bytes(b"\xef\xbb\xbf\r\n" + "\r\n\r\n".join(lines).encode())
    assert read(path) == ROWS[:3]


def test_rows_may_have_other_keys_than_the_first(tmp_path: Path) -> None:
    """In JSON an input that only some rows have is read where it is."""
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "context": "d", "answer": "e", "id": 3}]
    assert read(write_jsonl(tmp_path / "rows.jsonl", rows)) == [
        {"instruction": "a", "output": "b"},
        {"instruction": "c", "input": "d", "output": "e"},
    ]


def test_places_are_those_of_the_file(tmp_path: Path) -> None:
    """A row's place counts lines in JSON Lines, blank ones too, and rows elsewhere."""
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]))
    write_json(tmp_path / "b.json", ROWS[:1])
    write_parquet(tmp_path / "c.parquet", ROWS[:1])
    places = [place.rsplit("/", 1)[1] for place, _ in open_source(str(tmp_path)).rows()]
    assert places == ["a.jsonl': line 2", "a.jsonl': line 4", "b.json': row 1", "c.parquet': row 1"]


def test_digests_are_of_the_content(tmp_path: Path) -> None:
    """The same bytes elsewhere have the same digest; other rows, or another order of files, another."""
    first = write_jsonl(tmp_path / "first.jsonl", ROWS[:3])
    second = write_jsonl(tmp_path / "second.jsonl", ROWS[:3])
    other = write_jsonl(tmp_path / "other.jsonl", ROWS[:4])
    digests = [Files("", paths).digest() for paths in ((first,), (second,), (other,), (first, other), (other, first))]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


class Split:
    """What the package datasets gives of a split, as far as it is used (datasets 5.2.0: the same names)."""

    def __init__(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """Keep rows; `path` stands for the file that they are in."""
        self.rows, self.column_names, self.cache_files = rows, list(rows[0]), [{"filename": str(path)}]

    def select_columns(self, columns: list[str]) -> "Split":
        """Return the split with these columns."""
        kept = [{column: row[column] for column in columns} for row in self.rows]
        return Split(Path(self.cache_files[0]["filename"]), kept)

    def iter(self, batch_size: int) -> Any:
        """Yield columns of a few rows."""
        for start in range(0, len(self.rows), batch_size):
            batch = self.rows[start : start + batch_size]
            yield {column: [row[column] for row in batch] for column in self.column_names}


def test_a_hub_dataset_gives_its_train_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that is no path is loaded by the package datasets; its digest is that of its files."""
    path = write_jsonl(tmp_path / "cached.arrow", ROWS)
    split = Split(path, ROWS)
    loads = {("a/b", "train"): split}
    package = SimpleNamespace(load_dataset=lambda name, **options: loads[name, options["split"]])
    monkeypatch.setitem(sys.modules, "datasets", package)
    source = open_source("a/b")
    assert isinstance(source, Hub)
    assert [parts for _, parts in source.rows()] == ROWS
    assert next(source.rows())[0] == "dataset 'a/b': row 1"
    digest = source.digest()
    write_jsonl(path, ROWS[:5])
    assert source.digest() != digest
    split.rows[1500] = {**ROWS[1500], "output": None}
    with pytest.raises(ValueError, match=r"^dataset 'a/b': row 1501: output = None is not text; write a string$"):
        list(source.rows())


def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of the package datasets become one line with the mend."""

    def fail(name: str, **options: object) -> None:
        raise ConnectionError(f"cannot reach {name}\n{options}")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))
    message = r"^dataset 'a/b': cannot be loaded from the hub \('cannot reach a/b'\); check its id and the network$"
    with pytest.raises(ValueError, match=message):
        open_source("a/b")


def test_the_hub_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package datasets an id that is no path says both mends."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = r"^dataset 'a/b': is no file or folder here, and hub datasets need .* pip install datasets$"
    with pytest.raises(ValueError, match=message):
        open_source("a/b")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", r"no such file; check the path$"),
        ("folder/../missing.parquet", r"no such file; check the path$"),
        ("a/b/c", r"no such file; check the path$"),
        ("\0", r"(no such file|cannot be read); check the path$"),
        ("x" * 5000, r"cannot be read; check the path$"),
        ("rows.txt", r"its name ends in none of \.jsonl, \.json, \.parquet; rename it by its form$"),
        ("empty", r"holds no \.jsonl, \.json, \.parquet file; give a folder that does$"),
    ],
)
def test_what_is_no_dataset_is_refused(tmp_path: Path, name: str, message: str) -> None:
    """A path that leads to no dataset has its line."""
    (tmp_path / "rows.txt").write_text("{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        open_source(f"{tmp_path}/{name}")


GOOD = b'{"prompt": "a", "answer": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "r.jsonl",
            GOOD + b"{'a': 1}\n",
            r"r\.jsonl': line 2, column 2: is not JSON \(.*\); write one object per row$",
        ),
        ("r.jsonl", GOOD * 2 + b"[1]\n", r"r\.jsonl': line 3: \[1\] is not an object; write one row per object$"),
        (
            "r.jsonl",
            GOOD + b'{"prompt": 3, "answer": "b"}',
            r"r\.jsonl': line 2: prompt = 3 is not text; write a string$",
        ),
        ("r.jsonl", GOOD + b'{"prompt": "a"}', r"r\.jsonl': line 2: no column output or .* among 'prompt'; name "),
        ("r.jsonl", b'{"prompt": "\xff"}', r"r\.jsonl': is no readable jsonl \(.*\); check the file$"),
        ("r.jsonl", b"1" * 5000, r"r\.jsonl': line 1: is not JSON that can be read; write one object per row$"),
        ("r.jsonl", b'{"a":' * 10**5, r"r\.jsonl': line 1.* is not JSON .*; write one object per row$"),
        (
            "r.json",
            b'[{"prompt": "a",\n"answer"}]',
            r"r\.json': line 2, column 9: is not JSON \(.*\); write one object",
        ),
        ("r.json", b'[{"prompt": "a", "answer": 1}]', r"r\.json': row 1: answer = 1 is not text; write a string$"),
        ("r.parquet", b"PAR1 no PAR1", r"r\.parquet': is no readable parquet \(.*\); check the file$"),
        ("r.parquet", b"", r"r\.parquet': is no readable parquet \(.*\); check the file$"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """Whatever a file holds, its first fault is one line that names file and row."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_parquet_cells_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A column of numbers is named with its first row, a missing one with those there are."""
    path = write_parquet(tmp_path / "r.parquet", [{"prompt": "a", "answer": 7}])
    with pytest.raises(ValueError, match=r"r\.parquet': row 1: answer = 7 is not text; write a string$"):
        read(path)
    write_parquet(path, [{"prompt": "a"}])
    with pytest.raises(ValueError, match=r"r\.parquet': no column output or .* among 'prompt'; name the column"):
        read(path)


def test_large_arrays_and_lines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would have to be read whole is bounded, with JSON Lines as the mend."""
    monkeypatch.setattr(rows_module, "MAX_ARRAY_BYTES", 100)
    monkeypatch.setattr(rows_module, "MAX_LINE", 100)
    path = write_json(tmp_path / "r.json", ROWS[:10])
    with pytest.raises(ValueError, match=r"an array of more than 100 bytes is read whole; write JSON Lines$"):
        read(path)
    path.write_bytes(GOOD + b" " * 101)
    with pytest.raises(ValueError, match=r"line 2 has more than 100 characters; write one row per line$"):
        read(path)


def test_a_file_that_vanishes_is_one_line(tmp_path: Path) -> None:
    """A file that was there and is gone is named."""
    source = open_source(str(write_jsonl(tmp_path / "r.jsonl", ROWS[:1])))
    (tmp_path / "r.jsonl").unlink()
    with pytest.raises(ValueError, match=r"r\.jsonl': cannot be read; check who may read it$"):
        source.digest()
