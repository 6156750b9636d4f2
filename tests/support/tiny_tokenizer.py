"""A tokenizer that needs no training: one token per byte, and the special tokens."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def save_tokenizer(folder: Path, **special: str) -> Path:
    """Save a tokenizer of bytes as transformers does; `special` says which token is its eos, pad and so on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({token: number for number, token in enumerate([*SPECIAL, *alphabet])}, []))
    model.add_special_tokens(list(SPECIAL))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    named = {f"{role}_token": token for role, token in special.items()}
    loadable = PreTrainedTokenizerFast(tokenizer_object=model, **named)  # type: ignore[no-untyped-call]
    loadable.save_pretrained(folder)
    return folder
