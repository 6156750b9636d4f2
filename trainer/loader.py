"""Batches of a data-parallel rank, made ahead of the step that needs them."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from trainer.token_rows import TokenRows

NO_TARGET = -100
"""Label of a position without a target: `ignore_index` of torch's cross entropy."""


class Batch(NamedTuple):
    """One rank's rows of one optimizer step; B rows of T tokens."""

    input_ids_BT: npt.NDArray[np.int64]
    labels_BT: npt.NDArray[np.int64]
    """Already shifted: the target of each position, `NO_TARGET` where there is none."""
    position_ids_BT: npt.NDArray[np.int64]
    """Place of each token in its document: 0 begins one. A row that is not packed is one document, padding included."""
    useful_tokens: int
    """Targets of the global batch."""
    tokens: int
    """Tokens of the global batch, padding included."""


class Loader(Iterator[Batch]):
    """Batches for ever, epoch after epoch; the rows that do not fill an epoch's last global batch are left out.

    The global batch of a step is a pure function of (seed, epoch, step): rank r of dp takes its rows r*B to (r+1)*B - 1,
    so that another plan continues the same order.
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
        """Begin at epoch 0."""
        raise NotImplementedError

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        raise NotImplementedError

    def __next__(self) -> Batch:
        """Return the next step's batch; it is waited for only if making it takes longer than the step."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch handed out (not the last prefetched): plain values for JSON."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken: the next batch is the one the uninterrupted run would have had.

        Raises:
            ValueError: the state is of other rows, another seed, sequence length, global batch or packing.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the thread; the loader hands out no more."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Return the loader; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def evaluation_batches(
    rows: TokenRows, *, seq_len: int, global_batch: int, dp_rank: int, dp: int, packing: bool, pad_id: int
) -> Iterator[Batch]:
    """Yield all rows once, in their order; the last global batch is filled up with rows of padding, without targets."""
    raise NotImplementedError
