"""The work of a fine-tune: a shape, a sequence length, a global batch, and how many steps."""

from dataclasses import dataclass

from estimator.shape import Shape

MAX_COUNT = 2**40
"""Rows, tokens and steps stay below this, so that products are exact in 64-bit arithmetic."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be trained; every row is padded or packed to `seq_len` tokens."""

    shape: Shape
    seq_len: int
    """Tokens per row."""
    global_batch: int
    """Rows per optimizer step, over all devices."""
    num_steps: int

    def __post_init__(self) -> None:
        """Refuse sizes that no run has."""
        for name in ("seq_len", "global_batch", "num_steps"):
            value = getattr(self, name)
            if not 0 < value < MAX_COUNT:
                raise ValueError(f"{name.replace('_', '-')}: {value} is not between 1 and 2**40; give a positive count")
        if 0 < self.shape.num_positions < self.seq_len:
            raise ValueError(
                f"seq-len: {self.seq_len} is more than the {self.shape.num_positions} learned positions of "
                f"{self.shape.name!r}; use at most {self.shape.num_positions}"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, padding included."""
        return self.seq_len * self.global_batch


def num_steps(rows: int, epochs: int, global_batch: int) -> int:
    """Return optimizer steps of a run that drops each epoch's last incomplete batch.

    steps = floor(rows / batch) * epochs.

    Raises:
        ValueError: there is less than one full batch, or a count is not positive.

    >>> num_steps(rows=18612, epochs=2, global_batch=256)
    144
    """
    for name, value in (("rows", rows), ("epochs", epochs), ("batch", global_batch)):
        if not 0 < value < MAX_COUNT:
            raise ValueError(f"{name}: {value} is not between 1 and 2**40; give a positive count")
    if rows < global_batch:
        raise ValueError(f"rows: {rows} rows do not fill one batch of {global_batch}; use a smaller --batch or --steps")
    return rows // global_batch * epochs
