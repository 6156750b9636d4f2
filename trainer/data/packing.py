"""Which documents share a row of a batch, and in which order the rows come."""

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data.token_rows import IntArray


def shuffled(count: int, seed: int, *place: int) -> IntArray:
    """Return a permutation of 0 to `count` - 1, a pure function of its arguments.

    It sorts the raw output of PCG64 seeded through SeedSequence: NumPy keeps both streams for ever, but may change
    what `Generator.permutation` makes of them (NEP 19), and a resumed run must see the order it began with.

    >>> shuffled(5, 1, 2)
    array([1, 0, 2, 3, 4])
    """
    keys = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place)).random_raw(count)
    return np.argsort(keys, kind="stable")


@dataclass(frozen=True, slots=True, eq=False)
class Packs:
    """Documents in the order of the rows that hold them."""

    documents: IntArray
    """Numbers of the documents, of shape (N,)."""
    bounds: IntArray
    """Row r holds documents[bounds[r] : bounds[r + 1]]; of shape (rows + 1,)."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> IntArray:
        """Return the documents of one row."""
        return self.documents[self.bounds[row] : self.bounds[row + 1]]


class Packing:
    """How rows are filled: by lengths alone, so that all epochs have the same number of rows, each other documents."""

    def __init__(self, lengths: IntArray, seq_len: int | None) -> None:
        """Fill rows of `seq_len` tokens with documents of these lengths; None gives each document its own row."""
        self._lengths = lengths
        rows = np.arange(len(lengths)) if seq_len is None else _best_fit_decreasing(np.sort(lengths)[::-1], seq_len)
        self._places = np.argsort(rows, kind="stable")  # the n-th longest document's place among all, row by row
        self._sizes = np.bincount(rows)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._sizes)

    def in_order(self) -> Packs:
        """Return the rows in a fixed order."""
        return self._packs(np.arange(len(self._lengths)), np.arange(len(self)))

    def of_epoch(self, seed: int, epoch: int) -> Packs:
        """Return the rows of an epoch, a pure function of the lengths and the arguments.

        Documents of one length change places with one another at random, then the rows do.
        """
        order = shuffled(len(self._lengths), seed, epoch, 0)
        return self._packs(order, shuffled(len(self), seed, epoch, 1))

    def _packs(self, order: IntArray, rows: IntArray) -> Packs:
        longest_first = order[np.argsort(-self._lengths[order], kind="stable")]
        documents = longest_first[self._places]
        ends = np.cumsum(self._sizes)
        sizes = self._sizes[rows]
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        first = np.repeat((ends - self._sizes)[rows] - bounds[:-1], sizes)
        return Packs(documents[first + np.arange(len(documents))], bounds)


def _best_fit_decreasing(lengths: npt.NDArray[np.int64], seq_len: int) -> IntArray:
    """Return the row of each document, given longest first: the fullest row that has room, a new one where none has.

    The rule of `estimator.work.lengths.packed_rows` (Ding et al. 2024, arXiv:2404.10830, section 2), which counts the
    rows but does not say what they hold.

    >>> _best_fit_decreasing(np.array([5, 4, 3, 2, 2]), seq_len=8)
    array([0, 1, 0, 1, 1])
    """
    with_room = defaultdict[int, list[int]](list)
    rooms: list[int] = []  # keys of `with_room` that have rows, ascending
    found, num_rows = np.empty(len(lengths), dtype=np.int64), 0
    for document, length in enumerate(lengths.tolist()):
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row, room, num_rows = num_rows, seq_len, num_rows + 1
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del rooms[place]
        found[document], left = row, room - length
        if left:
            if not with_room[left]:
                insort(rooms, left)
            with_room[left].append(row)
    return found
