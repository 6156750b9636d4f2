"""Tokenised rows: one flat array of tokens, and where each row lies in it."""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from estimator.work.lengths import Lengths, lengths_of
from trainer.data.cache import file_digest, key_of

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """Rows of tokens, indexable; what `trainer.data.dataset.load_data` returns.

    Only the rows that are asked for are read from the disk: `tokens` is memory-mapped.
    """

    tokens: npt.NDArray[np.int32]
    """Tokens of all rows one after another, of shape (sum of the rows' lengths before any cut,)."""
    starts: IntArray
    """Index in `tokens` of each row's first token, of shape (N,)."""
    lengths: IntArray
    """Tokens of each row, at least 1, of shape (N,)."""
    untrained: IntArray
    """How many of each row's first tokens are never a target (the masked prompt), of shape (N,); at least 1.

    The first token of a row is none in any case: nothing comes before it.
    """
    digest: str
    """Of the content: equal for equal rows, in whatever process or machine."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.starts)

    def __getitem__(self, row: int) -> npt.NDArray[np.int32]:
        """Return the tokens of one row, of shape (its length,)."""
        start = self.starts[row]
        return self.tokens[start : start + self.lengths[row]]

    def targets(self) -> IntArray:
        """Return how many tokens of each row are a target of the loss, of shape (N,)."""
        return np.asarray(np.maximum(self.lengths - self.untrained, 0))

    def take(self, rows: IntArray) -> "TokenRows":
        """Return some of the rows, in the order of `rows`, over the same tokens."""
        digest = key_of(self.digest, "take", rows.tobytes())
        return TokenRows(self.tokens, self.starts[rows], self.lengths[rows], self.untrained[rows], digest)

    def cut(self, max_length: int) -> "TokenRows":
        """Return the rows, of each no more than its first `max_length` tokens."""
        digest = key_of(self.digest, "cut", max_length)
        return replace(self, lengths=np.minimum(self.lengths, max_length), digest=digest)

    def histogram(self) -> Lengths:
        """Return how many rows have which length: what `estimate --lengths` reads, and packing is counted from."""
        lengths, counts = np.unique(self.lengths, return_counts=True)
        return lengths_of(zip(lengths.tolist(), counts.tolist(), strict=True))


# --- on the disk ------------------------------------------------------------------------------------------------------


_TOKENS, _ROWS, _DIGEST = "tokens.int32", "rows.npy", "digest"


def write_token_rows(encoded: Iterable[tuple[list[int], int]], folder: Path) -> int:
    """Write rows as they come; memory grows by 16 bytes a row, whatever its length.

    Args:
        encoded: of each row, its tokens and how many of the first are the prompt's.
        folder: what `read_token_rows` reads.

    Returns:
        The number of rows.
    """
    lengths, prompts, content = array("q"), array("q"), hashlib.sha256()
    with (folder / _TOKENS).open("wb") as out:
        for tokens, prompt in encoded:
            row = np.array(tokens, dtype="<i4").tobytes()
            out.write(row)
            content.update(row)
            lengths.append(len(tokens))
            prompts.append(prompt)
    np.save(folder / _ROWS, np.array([lengths, prompts], dtype=np.int64))
    (folder / _DIGEST).write_text(key_of(content.digest(), file_digest(folder / _ROWS)))
    return len(lengths)


def read_token_rows(folder: Path, *, mask_prompt: bool) -> TokenRows:
    """Return the rows of a folder, of which there is at least one; tokens stay on the disk until they are asked for."""
    lengths, prompts = np.load(folder / _ROWS)
    tokens = np.asarray(np.memmap(folder / _TOKENS, dtype="<i4", mode="r"))  # a slice of it costs a tenth
    untrained = np.maximum(prompts, 1) if mask_prompt else np.ones_like(prompts)
    digest = key_of((folder / _DIGEST).read_text(), mask_prompt)
    return TokenRows(tokens, np.cumsum(lengths) - lengths, lengths, untrained, digest)
