"""Tokenised rows: one flat array of tokens, and where each row lies in it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from estimator.lengths import Lengths, lengths_of

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """Rows of tokens, indexable; what `trainer.data.load_data` returns.

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
        return np.maximum(self.lengths - self.untrained, 0)

    def take(self, rows: npt.ArrayLike, digest: str) -> "TokenRows":
        """Return some of the rows, in the order of `rows`, over the same tokens."""
        kept = np.asarray(rows)
        return TokenRows(self.tokens, self.starts[kept], self.lengths[kept], self.untrained[kept], digest)

    def histogram(self) -> Lengths:
        """Return how many rows have which length: what `estimate --lengths` reads, and packing is counted from."""
        lengths, counts = np.unique(self.lengths, return_counts=True)
        return lengths_of(zip(lengths.tolist(), counts.tolist(), strict=True))
