import os
import socket
import stat
from pathlib import Path

import pytest

from hardware.files import check_private_directory, make_private_directory, read_regular_file, write_atomically


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    """Its bytes are returned up to the bound, through a link as well, whatever its size by the system."""
    path, content = tmp_path / "file", bytes(range(256)) * 200
    path.write_bytes(content)
    (tmp_path / "link").symlink_to("file")
    assert read_regular_file(path, len(content)) == content == read_regular_file(tmp_path / "link", len(content))
    assert read_regular_file(Path("/proc/self/status"), 100_000).startswith(b"Name:")  # said to be empty
    with pytest.raises(ValueError, match=r"file: is larger than 51,199 bytes; give a smaller file$"):
        read_regular_file(path, len(content) - 1)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """Nobody waits for a pipe's writer, and no device is read without end."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"pipe: is a pipe, not a file; save what it carries as a file$"):
        read_regular_file(pipe, 100)
    with pytest.raises(ValueError, match=r"^/dev/zero: is a device, not a file; name a file$"):
        read_regular_file(Path("/dev/zero"), 100)
    with pytest.raises(ValueError, match=r": is a directory, not a file; name a file in it$"):
        read_regular_file(tmp_path, 100)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(ValueError, match=r"/s: is a socket, not a file; name a file$"):
            read_regular_file(tmp_path / "s", 100)
    with pytest.raises(ValueError, match=r"^'a\\x00': is no path of a file; give one$"):
        read_regular_file(Path("a\0"), 100)
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "missing", 100)


def test_what_becomes_a_pipe_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that takes the place of a file after it was looked at is not waited for."""
    path = tmp_path / "file"
    os.mkfifo(path)
    regular = (tmp_path / "other").touch() or (tmp_path / "other").stat()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lambda _path: regular)
        with pytest.raises(ValueError, match=r"file: is a pipe, not a file; "):
            read_regular_file(path, 100)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced(durable: bool, tmp_path: Path) -> None:
    """The new text takes the place of the old one, for its owner's eyes alone, and nothing else is left."""
    path = tmp_path / "file.json"
    path.write_text("old, and longer")
    write_atomically(path, "new", durable=durable)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_text(tmp_path: Path) -> None:
    """Where the new text cannot be written, the old one stays, and no draft is left."""
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800", durable=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_open_reader_keeps_the_old_text(tmp_path: Path) -> None:
    """Who has the file open goes on reading the old text, whole."""
    path = tmp_path / "file.json"
    write_atomically(path, "old" * 10_000, durable=False)
    with path.open() as reader:
        begun = reader.read(3)
        write_atomically(path, "new", durable=False)
        assert begun + reader.read() == "old" * 10_000


def test_a_private_directory_is_made_once(tmp_path: Path) -> None:
    """It is closed to others, and making it again leaves it as it is."""
    path = tmp_path / "mine"
    make_private_directory(path)
    (path / "file").touch()
    make_private_directory(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (path / "file").exists()


def test_a_link_to_a_private_directory_is_not_one(tmp_path: Path) -> None:
    """A link is refused, wherever it leads."""
    make_private_directory(tmp_path / "mine")
    (tmp_path / "link").symlink_to("mine")
    with pytest.raises(ValueError, match=r"link: is a link or a file, not a directory; remove it$"):
        make_private_directory(tmp_path / "link")


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o770, 0o755])
def test_what_others_enter_is_not_private(mode: int, tmp_path: Path) -> None:
    """Any right of the group or of others is refused, and the mend named."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(mode)
    with pytest.raises(ValueError, match=rf"others can enter it \(mode {mode:04o}\); chmod it to 0700$"):
        check_private_directory(tmp_path / "mine")


def test_another_users_directory_is_not_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What belongs to another user is refused."""
    make_private_directory(tmp_path / "theirs")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ValueError, match=rf"belongs to user {owner}, not to {owner + 1}; have it removed$"):
        check_private_directory(tmp_path / "theirs")
