"""The lines of a log as text: whatever wrote them, of whatever length, in bounded memory."""

import codecs
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hardware.errors import shown
from hardware.files import open_regular_file

LONGEST_LINE = 2**16
"""Characters of a line that are kept; no trainer's step line has more. A file without lines is not held whole."""

CHUNK_BYTES = 2**20

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")
"""Control sequences of a terminal: colours, cursor moves (ECMA-48, 5.4)."""

_BREAK = re.compile(r"\r\n|\n|\r")
"""A lone carriage return ends a line too: progress bars overwrite themselves."""

_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class LogText:
    """A log file, to be read once; afterwards its digest is known."""

    def __init__(self, path: Path) -> None:
        """Name a file; nothing is read yet."""
        self.name = f"log {shown(str(path), 200)}"
        self._path = path
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Digest of the bytes read so far; of the file, once all were."""
        return self._digest.hexdigest()

    def texts(self) -> Iterator[str]:
        """Yield the text in pieces, without its byte-order mark; what is no UTF-8 reads as U+FFFD.

        Raises:
            ValueError: the file cannot be read, or is packed or in UTF-16: which, and the mend.
        """
        decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        is_first = True
        for chunk in self._chunks():
            if is_first:
                self._refuse_other_than_text(chunk)
            is_first = False
            self._digest.update(chunk)
            yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)

    def _chunks(self) -> Iterator[bytes]:
        try:
            file = open_regular_file(self._path)
        except ValueError as error:
            raise ValueError(f"log {error}") from error
        except OSError as error:
            raise ValueError(f"{self.name}: cannot be read; check the path") from error
        with file:
            while chunk := self._read(file):
                yield chunk

    def _read(self, file: BinaryIO) -> bytes:
        try:
            return file.read(CHUNK_BYTES)
        except OSError as error:
            raise ValueError(f"{self.name}: cannot be read; check the path") from error

    def _refuse_other_than_text(self, start: bytes) -> None:
        for mark, kind in _PACKED.items():
            if start.startswith(mark):
                raise ValueError(f"{self.name}: is a {kind} archive, not text; unpack it first")
        if start.startswith(_WIDE):
            raise ValueError(f"{self.name}: is UTF-16 text; save it as UTF-8")


def split_lines(texts: Iterator[str]) -> Iterator[str]:
    r"""Yield the lines of a text that comes in pieces, cut to the longest that is kept, without colours.

    >>> list(split_lines(iter(["a\r", "\nb\x1b[31m", "c"])))
    ['a', 'bc']
    """
    rest = ""
    for text in texts:
        rest += text
        held = "\r" if rest.endswith("\r") else ""  # its line feed may come with the next piece
        *lines, rest = broken(rest.removesuffix("\r"))
        rest = rest[:LONGEST_LINE] + held
        yield from (plain(line) for line in lines)
    yield from (plain(line) for line in broken(rest))


def broken(text: str) -> list[str]:
    """Return a text broken into lines."""
    return _BREAK.split(text) if "\r" in text else text.split("\n")


def plain(line: str) -> str:
    """Return a line without control sequences, and no longer than is kept."""
    line = line[:LONGEST_LINE]
    return _ANSI.sub("", line) if "\x1b" in line else line
