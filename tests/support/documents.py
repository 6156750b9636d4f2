"""Documents whose every token tells where it is from, for laws about what becomes of them."""

import numpy as np

from trainer.data.token_rows import TokenRows

PAD = 0


def token_rows(lengths: list[int], untrained: list[int] | None = None) -> TokenRows:
    """Return rows of these lengths; token t of document d is 1000 * (d + 1) + t, so that no two are the same."""
    documents = [1000 * (d + 1) + np.arange(length) for d, length in enumerate(lengths)]
    sizes = np.array(lengths, dtype=np.int64)
    return TokenRows(
        tokens=np.concatenate([np.zeros(0), *documents]).astype(np.int32),
        starts=np.cumsum(sizes) - sizes,
        lengths=sizes,
        untrained=np.array(untrained or [1] * len(lengths), dtype=np.int64),
        digest=f"{lengths} {untrained}",
    )
