"""The tokenizer: a byte-level BPE trained on the embedded dataset, or one that transformers loads."""

import json
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hardware.errors import shown
from trainer.data.cache import cached, file_digest, key_of
from trainer.data.prompt import FORM, columns_of, form, parts_of
from trainer.data.stdlib_code import embedded_rows

VERSION = 1
"""Rises when another tokenizer comes of the same rows."""
VOCAB_SIZE = 4096
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
"""With the ids 0 to 3; the first three are Mistral's."""

_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "config.json",
)
"""Files of a checkpoint folder that say how text becomes tokens."""


class Tokenizer:
    """A tokenizer by where it lies; transformers loads it when it is first needed."""

    def __init__(self, source: str) -> None:
        """Name a folder or a hub id; nothing is read yet."""
        self.source = source

    @cached_property
    def digest(self) -> str:
        """Of what it does to a text: of its files, or of its whole state where the hub keeps them.

        Raises:
            ValueError: it cannot be loaded.
        """
        folder = Path(self.source)
        if not folder.is_dir():
            return key_of(self.loaded.backend_tokenizer.to_str(), self.loaded.eos_token_id, self.loaded.pad_token_id)
        names = sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()})
        return key_of(*((path.name, file_digest(path)) for path in names))

    @cached_property
    def loaded(self) -> Any:
        """The transformers tokenizer.

        Raises:
            ValueError: there is none, or it lacks what rows need.
        """
        from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds, and cached rows do without

        where = f"tokenizer {shown(self.source, 200)}"
        try:
            loaded = AutoTokenizer.from_pretrained(self.source)
        except Exception as error:  # tokenizers raises no narrower one for a file of another form
            reason = shown(str(error).partition("\n")[0], 120)
            raise ValueError(
                f"{where}: cannot be loaded ({reason}); give a folder with tokenizer.json, or a hub id"
            ) from error
        if not loaded.is_fast:
            raise ValueError(f"{where}: has no fast form; save one with a tokenizer.json beside it")
        if loaded.eos_token_id is None:
            raise ValueError(f"{where}: names no end-of-text token; set eos_token in tokenizer_config.json")
        return loaded

    @property
    def pad_id(self) -> int:
        """Fills rows up: the pad token, or else the unknown or end-of-text token, as pads are never a target."""
        ids = (self.loaded.pad_token_id, self.loaded.unk_token_id, self.loaded.eos_token_id)
        return int(next(found for found in ids if found is not None))

    def encode(self, texts: list[tuple[str, int]]) -> Iterator[tuple[list[int], int]]:
        """Yield the tokens of each text with the end-of-text token, and how many begin before its answer.

        Args:
            texts: each with the index of its answer's first character.
        """
        batch = self.loaded(
            [text for text, _ in texts], return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        eos = self.loaded.eos_token_id
        for encoding, (text, answer_start) in zip(batch.encodings, texts, strict=True):
            tokens = encoding.ids
            if tokens[-1:] != [eos]:
                tokens.append(eos)
            yield tokens, _first_token(encoding, answer_start, len(text))


def _first_token(encoding: Any, answer_start: int, end: int) -> int:
    """Return the index of the first token that begins in the answer."""
    for character in range(answer_start, end):  # a normalizer may have dropped some
        token = encoding.char_to_token(character)
        if token is not None and encoding.token_to_chars(token)[0] >= answer_start:
            return int(token)
    return len(encoding.ids)


def embedded_tokenizer(cache: Path) -> Tokenizer:
    """Return the BPE trained on the embedded dataset, from the cache if it is there."""
    rows = embedded_rows(cache)
    name = f"tokenizer-{key_of(VERSION, VOCAB_SIZE, FORM, file_digest(rows))}"
    return Tokenizer(str(cached(cache, name, partial(_train, rows))))


def _train(rows: Path, folder: Path) -> None:
    """Train a byte-level BPE on the texts of a JSON Lines file, and save it as transformers does.

    Sennrich et al. 2016, arXiv:1508.07909, over bytes as in Radford et al. 2019 (GPT-2), so that no text is unknown.
    """
    from tokenizers import Tokenizer as Model  # noqa: PLC0415 - only the first run trains
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    unknown, begin, end, pad = SPECIAL_TOKENS
    model = Model(models.BPE(unk_token=unknown))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(_texts(rows), trainer)
    model.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, model.token_to_id(begin))]
    )
    loadable = PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token=unknown, bos_token=begin, eos_token=end, pad_token=pad
    )
    loadable.save_pretrained(folder)


def _texts(rows: Path) -> Iterator[str]:
    with rows.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield form(parts_of(row, columns_of(row)))[0]
