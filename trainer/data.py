"""The data of a run: which rows, in which tokens; everything that is wrong with them is said before anything starts."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer.token_rows import TokenRows


@dataclass(frozen=True)
class DataConfig:
    """What to train on; plain values, as the command line gives them.

    Raises:
        ValueError: a value breaks its rule.
    """

    dataset: str = ""
    """"" is the embedded dataset; else a .jsonl, .json or .parquet file, a folder of them, or the id of a hub dataset."""
    tokenizer: str = ""
    """"" is a byte-level BPE trained on the embedded dataset; else a folder or the id of a hub tokenizer."""
    seq_len: int = 2048
    """Tokens of a row of a batch, padding included."""
    packing: bool = False
    """Put several rows into one of a batch; else each is padded to `seq_len`, as the seed run does."""
    mask_prompt: bool = False
    """Prompt tokens get no loss."""
    truncate: bool = False
    """Cut rows that are longer than `seq_len`; else they are refused."""
    seed: int = 0
    """Of the order of the rows, and of the choice of the held-out ones."""
    eval_rows: int = 0
    """Rows held out for evaluation."""


@dataclass(frozen=True)
class Data:
    """The rows of a run, and the tokenizer that they were made with."""

    train: TokenRows
    """Rows to train on."""
    evaluation: TokenRows
    """Rows held out."""
    tokenizer_source: str
    """The folder or hub id that the tokenizer is loaded from."""
    vocab_size: int
    """Ids that the tokenizer may give: 0 to `vocab_size` - 1."""
    pad_id: int
    """Fills rows up; never a target."""

    @property
    def num_rows(self) -> int:
        """Rows to train on."""
        return len(self.train)

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer (`save_pretrained`, `decode`); loaded when first asked for."""
        raise NotImplementedError


def load_data(config: DataConfig, cache: Path | None = None) -> Data:
    """Return the rows of a run, tokenised once and then read from the user's cache folder.

    Safe to call from all ranks at once: one prepares, the others wait for its files.

    Raises:
        ValueError: the dataset, the tokenizer or the cache folder cannot be used: which rule is broken, and where.
    """
    raise NotImplementedError
