"""Batches of a data-parallel rank, made ahead of the step that needs them. B: rows of the rank, T: tokens of a row."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from hardware.errors import shown
from trainer.data.packing import Packing, Packs
from trainer.data.token_rows import IntArray, TokenRows

NO_TARGET = -100
"""Label of a position without a target: `ignore_index` of torch's cross entropy."""


class Batch(NamedTuple):
    """One rank's rows of one optimizer step."""

    input_ids_BT: npt.NDArray[np.int64]
    labels_BT: npt.NDArray[np.int64]
    """Already shifted: the target of each position, `NO_TARGET` where there is none.

    Pads, and nothing else, are told by their place: an end-of-text token is a target even where it also fills rows up.
    """
    position_ids_BT: npt.NDArray[np.int64]
    """Place of each token in its document: a 0 begins one. Padding continues the last."""
    useful_tokens: int
    """Targets of the global batch."""
    tokens: int
    """Tokens of the global batch, padding included."""


class _Batches:
    """The batches that one rank makes of rows, whatever their order."""

    def __init__(
        self, rows: TokenRows, *, seq_len: int, global_batch: int, dp_rank: int, dp: int, packing: bool, pad_id: int
    ) -> None:
        if global_batch < 1 or dp < 1 or global_batch % dp:
            raise ValueError(f"global batch: {global_batch} rows are no multiple of dp={dp}; give one that is")
        if not 0 <= dp_rank < dp:
            raise ValueError(f"dp rank: {dp_rank} is not from 0 to {dp - 1}; correct it")
        if len(rows) and int(rows.lengths.max()) > seq_len:
            raise ValueError(f"rows: one has {rows.lengths.max()} tokens, more than seq-len {seq_len}; truncate them")
        self.packing = Packing(rows.lengths, seq_len if packing else None)
        self.seq_len, self.global_batch = seq_len, global_batch
        self._rows, self._pad_id, self._targets = rows, pad_id, rows.targets()
        self._positions = np.arange(seq_len)
        self._own = slice(dp_rank * (global_batch // dp), (dp_rank + 1) * (global_batch // dp))

    def make(self, packs: Packs, step: int) -> Batch:
        """Return the rank's part of a step's global batch; rows beyond the last are padding alone."""
        numbers = range(step * self.global_batch, (step + 1) * self.global_batch)
        rows = [packs[number] if number < len(packs) else packs.documents[:0] for number in numbers]
        useful = int(self._targets[np.concatenate(rows)].sum())
        return Batch(*self._arrays(rows[self._own]), useful, self.global_batch * self.seq_len)

    def _arrays(self, rows: Sequence[IntArray]) -> tuple[IntArray, IntArray, IntArray]:
        shape = (len(rows), self.seq_len)
        input_ids_BT, labels_BT = (np.full(shape, fill, dtype=np.int64) for fill in (self._pad_id, NO_TARGET))
        position_ids_BT = np.tile(self._positions, (len(rows), 1))
        for row, documents in enumerate(rows):
            start = 0
            for document in documents.tolist():
                tokens, untrained = self._rows[document], self._rows.untrained[document]
                end = start + len(tokens)
                input_ids_BT[row, start:end] = tokens
                labels_BT[row, start + untrained - 1 : end - 1] = tokens[untrained:]
                position_ids_BT[row, start:] = self._positions[: self.seq_len - start]
                start = end
        return input_ids_BT, labels_BT, position_ids_BT


class Loader(Iterator[Batch]):
    """Batches for ever, epoch after epoch; the rows that do not fill an epoch's last global batch are left out of it.

    The global batch of a step is a pure function of (seed, epoch, step); rank r takes its rows r*B to (r+1)*B - 1, so
    that another plan continues the same order. Which rows are left out changes with the epoch.
    """

    def __init__(
        self,
        rows: TokenRows,
        *,
        seq_len: int,
        global_batch: int,
        dp_rank: int,
        dp: int,
        seed: int,
        packing: bool,
        pad_id: int,
        prefetch: int = 2,
    ) -> None:
        """Begin at epoch 0.

        Args:
            rows: to train on, none longer than `seq_len`.
            seq_len: T.
            global_batch: rows of a step over all data-parallel ranks.
            dp_rank: which of them this is.
            dp: how many there are; divides the global batch.
            seed: of the order.
            packing: whether documents share rows.
            pad_id: what rows are filled up with.
            prefetch: batches made ahead, in a thread of their own.

        Raises:
            ValueError: the numbers do not fit one another, or there are fewer rows than one global batch.
        """
        self._batches = _Batches(
            rows, seq_len=seq_len, global_batch=global_batch, dp_rank=dp_rank, dp=dp, packing=packing, pad_id=pad_id
        )
        num_rows = len(self._batches.packing)
        if num_rows < global_batch:
            kind = "packed rows" if packing else "rows"
            raise ValueError(
                f"global batch: {global_batch} rows are more than the {num_rows} {kind} there are; lower it"
            )
        self.steps_per_epoch = num_rows // global_batch
        self._same = {
            "rows": rows.digest,
            "seed": seed,
            "seq_len": seq_len,
            "global_batch": global_batch,
            "packing": packing,
        }
        self._seed, self._prefetch = seed, prefetch
        self._given = 0  # batches handed out since the first epoch began
        self._epoch: tuple[int, Packs] | None = None  # of the thread
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._pending = deque[Future[Batch]]()

    def __next__(self) -> Batch:
        """Return the next step's batch; it is waited for only if making it takes longer than a step."""
        while len(self._pending) <= self._prefetch:
            self._pending.append(self._thread.submit(self._make, self._given + len(self._pending)))
        batch = self._pending.popleft().result()
        self._given += 1
        return batch

    def _make(self, number: int) -> Batch:
        epoch, step = divmod(number, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._batches.packing.of_epoch(self._seed, epoch)
        return self._batches.make(self._epoch[1], step)

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch handed out (not the last prefetched): plain values for JSON."""
        epoch, step = divmod(self._given, self.steps_per_epoch)
        return {"epoch": epoch, "step_in_epoch": step, **self._same}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken: the next batch is the one the uninterrupted run would have had.

        Raises:
            ValueError: the state is of other rows, another seed, sequence length, global batch or packing.
        """
        for key, here in self._same.items():
            if state.get(key) != here:
                there = shown(state.get(key))
                raise ValueError(f"loader state: {key} was {there}, and is {shown(here)}; give the same, or start anew")
        epoch, step = state.get("epoch"), state.get("step_in_epoch")
        if not (isinstance(epoch, int) and epoch >= 0 and isinstance(step, int) and 0 <= step < self.steps_per_epoch):
            raise ValueError(
                f"loader state: epoch {shown(epoch)}, step {shown(step)} is no place; take another checkpoint"
            )
        self._pending.clear()  # what is under way is made and forgotten
        self._given = epoch * self.steps_per_epoch + step

    def close(self) -> None:
        """End the thread; the loader hands out no more."""
        self._thread.shutdown(cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Self:
        """Return the loader; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def evaluation_batches(
    rows: TokenRows, *, seq_len: int, global_batch: int, dp_rank: int, dp: int, packing: bool, pad_id: int
) -> Iterator[Batch]:
    """Yield all rows once, in a fixed order; the last global batch is filled up with rows of padding, without targets.

    Raises:
        ValueError: as `Loader`.
    """
    batches = _Batches(
        rows, seq_len=seq_len, global_batch=global_batch, dp_rank=dp_rank, dp=dp, packing=packing, pad_id=pad_id
    )
    packs = batches.packing.in_order()
    for step in range(-(-len(packs) // global_batch)):
        yield batches.make(packs, step)
