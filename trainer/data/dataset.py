"""The data of a run: which rows, in which tokens; everything that is wrong with them is said before anything starts."""

import json
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from hardware.errors import shown
from trainer.data.cache import cache_folder, cached, key_of
from trainer.data.packing import shuffled
from trainer.data.prompt import COLUMNS, FORM, form
from trainer.data.rows import Files, Hub, open_source
from trainer.data.stdlib_code import embedded_rows
from trainer.data.token_rows import TokenRows, read_token_rows, write_token_rows
from trainer.data.tokenizer import Tokenizer, embedded_tokenizer

VERSION = 2
"""Rises when other tokens come of the same rows and tokenizer."""
CHUNK_ROWS = 1000
"""Rows that are text at a time, while they become tokens."""

_HELD_OUT = 0  # the seed of the choice
_IDS = "ids.json"


@dataclass(frozen=True)
class DataConfig:
    """What to train on; plain values, as the command line gives them.

    Raises:
        ValueError: a value breaks its rule.
    """

    dataset: str = ""
    """Empty for the embedded dataset, as far as its rows fit `seq_len`; else a .jsonl, .json or .parquet file, a folder
    of them, or the id of a hub dataset."""
    tokenizer: str = ""
    """Empty for a byte-level BPE trained on the embedded dataset; else a folder or the id of a hub tokenizer."""
    seq_len: int = 2048
    """Tokens of a row of a batch, padding included."""
    packing: bool = False
    """Put several rows into one of a batch; else each is padded to `seq_len`, as the seed run does."""
    mask_prompt: bool = False
    """Prompt tokens get no loss."""
    truncate: bool = False
    """Cut rows that are longer than `seq_len`; else they are refused."""
    seed: int = 0
    """Of the order of the rows."""
    eval_rows: int = 0
    """Rows held out for evaluation; which ones does not depend on the seed, so that runs can be compared."""

    def __post_init__(self) -> None:
        """Check each value by itself; what depends on files is checked by `load_data`."""
        if self.seq_len < 2:
            raise ValueError(f"seq-len: {self.seq_len} is less than 2, and leaves no token to predict; raise it")
        for name, count in (("seed", self.seed), ("eval-rows", self.eval_rows)):
            if count < 0:
                raise ValueError(f"{name}: {count} is negative; give 0 or more")


@dataclass(frozen=True)
class Data:
    """The rows of a run, and the tokenizer that they were made with."""

    train: TokenRows
    """Rows to train on."""
    evaluation: TokenRows
    """Rows held out."""
    tokenizer_source: Tokenizer
    """Where the tokenizer lies."""
    vocab_size: int
    """Ids that the tokenizer may give: 0 to `vocab_size` - 1."""
    pad_id: int
    """Fills rows up; never a target."""

    @property
    def num_rows(self) -> int:
        """Rows to train on."""
        return len(self.train)

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer (`save_pretrained`, `decode`); asking for it first takes seconds."""
        return self.tokenizer_source.loaded


def load_data(config: DataConfig, cache: Path | None = None) -> Data:
    """Return the rows of a run, tokenised once and then read from a cache folder, by default the user's.

    Safe to call from all ranks at once: one prepares, the others wait for its files.

    Raises:
        ValueError: the dataset, the tokenizer or the cache folder cannot be used: which rule is broken, and where.
    """
    cache = cache or cache_folder()
    source = open_source(config.dataset or str(embedded_rows(cache)))
    tokenizer = Tokenizer(config.tokenizer) if config.tokenizer else embedded_tokenizer(cache)
    made_by = [version(package) for package in ("tokenizers", "transformers")]
    key = key_of(VERSION, FORM, COLUMNS, made_by, source.digest(), tokenizer.digest)
    folder = cached(cache, f"rows-{key}", partial(_tokenise, source, tokenizer))
    rows = _fitting(read_token_rows(folder, mask_prompt=config.mask_prompt), source, config)
    if config.eval_rows >= len(rows):
        raise ValueError(f"eval-rows: {config.eval_rows} of {len(rows)} rows leave none to train on; hold out fewer")
    order = shuffled(len(rows), _HELD_OUT)
    held_out, kept = np.sort(order[: config.eval_rows]), np.sort(order[config.eval_rows :])
    ids = json.loads((folder / _IDS).read_text(encoding="utf-8"))
    return Data(rows.take(kept), rows.take(held_out), tokenizer, ids["vocab_size"], ids["pad_id"])


def _tokenise(source: Files | Hub, tokenizer: Tokenizer, folder: Path) -> None:
    texts = (form(parts) for _, parts in source.rows())
    chunks = iter(lambda: list(islice(texts, CHUNK_ROWS)), [])
    if not write_token_rows(chain.from_iterable(map(tokenizer.encode, chunks)), folder):
        raise ValueError(f"dataset {shown(source.name, 200)}: has no rows; give at least one")
    ids = {"vocab_size": max(tokenizer.loaded.get_vocab().values()) + 1, "pad_id": tokenizer.pad_id}
    (folder / _IDS).write_text(json.dumps(ids), encoding="utf-8")


def _fitting(rows: TokenRows, source: Files | Hub, config: DataConfig) -> TokenRows:
    """Return the rows as far as they fit the sequence, by the rule that the configuration gives."""
    too_long = rows.lengths > config.seq_len
    if not config.dataset and not too_long.all():
        return rows.take(np.flatnonzero(~too_long))
    cut = rows.cut(config.seq_len)
    if too_long.any() and not config.truncate:
        longest = int(rows.lengths.argmax())
        raise ValueError(
            f"{_place(source, longest)} has {rows.lengths[longest]} tokens, more than seq-len {config.seq_len}, "
            f"the longest of {too_long.sum()} that do; give --seq-len {rows.lengths[longest]}, or --truncate"
        )
    if not cut.targets().all():
        first = int(cut.targets().argmin())
        raise ValueError(
            f"{_place(source, first)} has a prompt of {rows.untrained[first]} tokens, which seq-len {config.seq_len} "
            f"cuts before its answer: no target is left; raise --seq-len, or leave out --mask-prompt"
        )
    return cut


def _place(source: Files | Hub, row: int) -> str:
    """Return where a row stands, by reading up to it again."""
    return next(islice(source.rows(), row, None))[0]
