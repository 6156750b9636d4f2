"""Optimizers: the bytes of their state, as the libraries that have them keep it."""

from typing import NamedTuple


class OptimizerState(NamedTuple):
    """What an optimizer keeps per parameter that it updates."""

    moments: float = 0.0
    """Numbers in the precision of moments."""
    other_bytes: float = 0.0
    """Bytes beside them, whatever that precision."""
    per_row: float = 0.0
    """Moments of a row of a matrix, not of each of its numbers."""
    end_moments: float | None = None
    """Moments of the embedding and the vocabulary projection, where they differ."""
    is_paged: bool = False
    """It lies in memory that the driver moves to the host where the device has too little."""
    is_orthogonal: bool = False
    """A matrix's update is made orthogonal."""


EIGHT_BIT_MOMENT = 1 + 4 / 256
"""Bytes of a moment in 8 bits with a 32-bit scale per 256.

documented: bitsandbytes 0.50 (optim/optimizer.py, `Optimizer2State.init_state`, blocksize) and torchao 0.18
(optim/adam.py, `AdamW8bit`, block_size); 2,048 in the paper (Dettmers et al. 2021, arXiv:2110.02861, section 2.1) and
in bitsandbytes up to 0.44. Parameters of fewer than 4,096 numbers keep 32 bits: norms, not counted so.
"""

FOUR_BIT_MOMENT = 0.5 + 4 / 128
"""The same in 4 bits with a scale per 128.  # documented: torchao 0.18, optim/adam.py, `AdamW4bit`, block_size"""

STATES = {
    "adamw": OptimizerState(moments=2),
    "adamw-8bit": OptimizerState(other_bytes=2 * EIGHT_BIT_MOMENT),
    "adafactor": OptimizerState(per_row=2),
    "sgd-momentum": OptimizerState(moments=1),
    "sgd": OptimizerState(),
    "adamw-4bit": OptimizerState(other_bytes=2 * FOUR_BIT_MOMENT),
    "paged-adamw-8bit": OptimizerState(other_bytes=2 * EIGHT_BIT_MOMENT, is_paged=True),
    "lion": OptimizerState(moments=1),
    "muon": OptimizerState(moments=1, end_moments=2, is_orthogonal=True),
}
"""By name. Adafactor keeps a row's and a column's mean for each matrix (Shazeer and Stern 2018, arXiv:1804.04235).

Paged: of parameters of 100,000 numbers and more, in managed memory (bitsandbytes 0.50, `get_state_buffer`). Lion: Chen
et al. 2023, arXiv:2302.06675; as lion-pytorch 0.2.5 keeps it (bitsandbytes' has 32 bits always). Muon: a momentum for
each matrix of a layer (torch 2.13, torch/optim/_muon.py, which takes matrices alone), AdamW for the embedding and the
vocabulary projection (Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982).
"""

OPTIMIZERS = tuple(STATES)


def state_bytes_each(state: OptimizerState, moment: float, hidden_size: int) -> float:
    """Return the bytes of an optimizer's state per parameter of a layer.

    >>> state_bytes_each(STATES["adamw"], 4.0, 4096), state_bytes_each(STATES["adamw-4bit"], 2.0, 4096)
    (8.0, 1.0625)
    """
    return state.moments * moment + state.per_row * moment / hidden_size + state.other_bytes
