import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ranks import run_ranks
from trainer.data.cache import cache_folder, cached, file_digest, key_of

values = st.lists(st.text() | st.integers() | st.binary() | st.tuples(st.text(), st.text()))


def make_slowly(draft: Path) -> None:
    """Write two files with a pause between, in which other processes look; note each call beside the draft."""
    (draft / "first").write_text("1")
    time.sleep(0.2)
    (draft / "second").write_text("2")
    with (draft.parent / "calls").open("a") as calls:
        calls.write("call\n")


def find(cache: Path) -> list[str]:
    """Find or make the folder, and return the names in it."""
    return sorted(file.name for file in cached(cache, "name", make_slowly).iterdir())


@pytest.mark.slow
def test_many_processes_make_it_once(tmp_path: Path) -> None:
    """Of processes that start together one makes the folder; all find it whole, and nothing else is left."""
    assert run_ranks(4, find, tmp_path) == [["first", "second"]] * 4
    assert (tmp_path / "calls").read_text() == "call\n"
    assert {path.name for path in tmp_path.iterdir()} == {"name", "name.lock", "calls"}


def test_what_fails_is_not_there(tmp_path: Path) -> None:
    """A folder whose making fails is not there, and is made anew the next time."""

    def fail(draft: Path) -> None:
        (draft / "part").write_text("1")
        raise ValueError("row 3 is bad")

    with pytest.raises(ValueError, match=r"^row 3 is bad$"):
        cached(tmp_path, "name", fail)
    assert {path.name for path in tmp_path.iterdir()} <= {"name.lock"}
    assert cached(tmp_path, "name", make_slowly) == tmp_path / "name"


def test_the_first_one_stays(tmp_path: Path) -> None:
    """Where another process was faster in spite of the lock, its folder is the one that is found."""

    def overtaken(draft: Path) -> None:
        (draft / "mine").write_text("1")
        (tmp_path / "name").mkdir()
        (tmp_path / "name" / "theirs").write_text("2")

    folder = cached(tmp_path, "name", overtaken)
    assert [file.name for file in folder.iterdir()] == ["theirs"]
    assert {path.name for path in tmp_path.iterdir()} == {"name", "name.lock"}


def test_drafts_of_the_dead_are_removed(tmp_path: Path) -> None:
    """A draft that nobody wrote to for a day goes when its name is made next; one in the making stays."""
    old, new = tmp_path / "name.old.draft", tmp_path / "name.new.draft"
    for draft in (old, new):
        draft.mkdir()
        (draft / "part").write_text("1")
    for path in (old / "part", old):
        os.utime(path, (0, 0))
    cached(tmp_path, "name", make_slowly)
    assert not old.exists()
    assert (new / "part").exists()


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """Where the cache is no folder, or its disk takes no more, the line says so and how to move it."""
    (tmp_path / "file").write_text("")
    message = r"^cache '.*/file/cache': cannot be written \(Not a directory\); free room, or set XDG_CACHE_HOME$"
    with pytest.raises(ValueError, match=message):
        cached(tmp_path / "file" / "cache", "name", make_slowly)

    def full(draft: Path) -> None:
        raise OSError(28, "No space left on device", str(draft))

    with pytest.raises(ValueError, match=r"^cache '.*': cannot be written \(No space left on device\); free room"):
        cached(tmp_path, "name", full)


def test_the_user_s_cache_is_where_the_system_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names the folder, as the error says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "foretrain"


@given(values, values)
def test_keys_are_equal_for_equal_parts_only(first: list[object], second: list[object]) -> None:
    """Two lists of parts have one key if and only if they are equal."""
    assert (key_of(*first) == key_of(*second)) == (first == second)


def test_file_digests_are_of_the_bytes(tmp_path: Path) -> None:
    """Files of the same bytes have one digest, others another."""
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    digests = [file_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
