"""The work of a fine-tune: a shape, a sequence length, a global batch, and how many steps."""

from dataclasses import dataclass
from typing import NamedTuple

from estimator.work.shape import Shape
from hardware.errors import shown

MAX_COUNT = 2**40
"""Rows, tokens and steps stay below this: no run has more.

Each is exact as a 64-bit integer and as a float; a product of two is exact only as a Python integer.
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be trained; every row is padded or packed to `seq_len` tokens."""

    shape: Shape
    seq_len: int
    """Tokens per row."""
    global_batch: int
    """Rows per optimizer step, over all devices."""
    num_steps: int
    recipe: str = ""
    """How it is trained, in words, where not as the stack does by itself."""
    padding: "Padding | None" = None
    """What is padding of it; None where the lengths of the rows are not known."""

    def __post_init__(self) -> None:
        """Refuse sizes that no run has."""
        _refuse_no_count({"seq-len": self.seq_len, "batch": self.global_batch, "steps": self.num_steps})
        if 0 < self.shape.num_positions < self.seq_len:
            raise ValueError(
                f"seq-len: {self.seq_len} is more than the {self.shape.num_positions} learned positions of "
                f"{shown(self.shape.name)}; use at most {self.shape.num_positions}"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, padding included."""
        return self.seq_len * self.global_batch


class Padding(NamedTuple):
    """What of the tokens is useful, and what packing short rows together would leave to do."""

    useful_fraction: float
    """Tokens that are not padding, over all."""
    packed_rows: int
    """Rows of the data set once packed."""
    packed_steps: int


def num_steps(rows: int, epochs: int, global_batch: int) -> int:
    """Return optimizer steps of a run that drops each epoch's last incomplete batch.

    steps = floor(rows / batch) * epochs.

    Raises:
        ValueError: there is less than one full batch, or a count is not positive.

    >>> num_steps(rows=18612, epochs=2, global_batch=256)
    144
    """
    _refuse_no_count({"rows": rows, "epochs": epochs, "batch": global_batch})
    if rows < global_batch:
        raise ValueError(f"rows: {rows} rows do not fill one batch of {global_batch}; use a smaller --batch or --steps")
    return rows // global_batch * epochs


def _refuse_no_count(counts: dict[str, int]) -> None:
    """Refuse a count that no run has, by the name of its option."""
    for name, value in counts.items():
        if not 0 < value < MAX_COUNT:
            raise ValueError(f"{name}: {shown(value)} is not from 1 to 2**40 - 1; give a positive count")
