import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.tiny_tokenizer import save_tokenizer
from trainer.data.stdlib_code import embedded_rows
from trainer.data.tokenizer import VOCAB_SIZE, Tokenizer, embedded_tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="session")
def embedded(embedded_cache: Path) -> Tokenizer:
    """Return the embedded tokenizer."""
    return embedded_tokenizer(embedded_cache)


@given(prompt=TEXT, answer=TEXT.filter(bool))
@example(prompt="", answer="</s>")
@example(prompt="</", answer="s></s>")
def test_no_text_is_lost(embedded: Tokenizer, prompt: str, answer: str) -> None:
    """Any text comes back from its tokens, which begin and end it once; no token is unknown."""
    [(tokens, _)] = embedded.encode([(prompt + answer, len(prompt))])
    loaded = embedded.loaded
    text = (prompt + answer).removesuffix(loaded.eos_token)  # a text that ends itself is not ended again
    assert (tokens[0], tokens[-1]) == (loaded.bos_token_id, loaded.eos_token_id)
    if not any(token in text for token in loaded.all_special_tokens):
        assert not set(loaded.all_special_ids) & set(tokens[1:-1])
    assert loaded.decode(tokens[1:-1]) == text


@given(prompt=TEXT, answer=TEXT.filter(bool))
@example(prompt="", answer="</s>")
@example(prompt="", answer="<s>x")
def test_the_prompt_ends_where_the_answer_begins(embedded: Tokenizer, prompt: str, answer: str) -> None:
    """The tokens of the prompt are exactly those that begin before the answer's first byte, and the first of all."""
    [(tokens, first)] = embedded.encode([(prompt + answer, len(prompt))])
    sizes = [len(token) for token in embedded.loaded.convert_ids_to_tokens(tokens[1:])]  # a character per byte
    if not (prompt + answer).endswith(embedded.loaded.eos_token):
        sizes.pop()
    assert sum(sizes) == len((prompt + answer).encode())
    begins = [sum(sizes[:token]) for token in range(len(sizes))]
    assert first == 1 + sum(begin < len(prompt.encode()) for begin in begins)


def test_training_is_deterministic(embedded_cache: Path, embedded: Tokenizer, tmp_path: Path) -> None:
    """The same rows train the same tokenizer; it is kept by its content, and found again."""
    rows = embedded_rows(embedded_cache).parent
    (tmp_path / rows.name).symlink_to(rows)
    again = embedded_tokenizer(tmp_path)
    assert again.source != embedded.source
    assert again.digest == embedded.digest
    assert Path(again.source).name == Path(embedded.source).name
    assert embedded_tokenizer(embedded_cache).source == embedded.source


def test_the_embedded_tokenizer_is_what_a_model_needs(embedded: Tokenizer) -> None:
    """It has the vocabulary asked for, Mistral's special ids and a pad, and shortens code to under half its bytes."""
    loaded = embedded.loaded
    assert len(loaded) == VOCAB_SIZE
    ids = (loaded.unk_token_id, loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id)
    assert ids == (0, 1, 2, embedded.pad_id) == (0, 1, 2, 3)
    source = Path(__file__).read_text(encoding="utf-8")
    [(tokens, _)] = embedded.encode([(source, 0)])
    assert len(tokens) < len(source) / 2


def test_a_batch_is_its_texts(embedded: Tokenizer) -> None:
    """Texts of other lengths beside it change nothing about a text's tokens."""
    texts = [("a", 0), ("def f(x):\n    return x\n" * 50, 10), ("", 0)]
    assert list(embedded.encode(texts)) == [next(embedded.encode([text])) for text in texts]


@pytest.mark.parametrize(
    ("special", "pad_id"),
    [
        ({"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}, 3),
        ({"eos": "</s>", "unk": "<unk>"}, 0),
        ({"eos": "</s>"}, 2),
    ],
)
def test_a_tokenizer_without_a_pad_fills_up_all_the_same(tmp_path: Path, special: dict[str, str], pad_id: int) -> None:
    """The pad is the pad token, or else one of those that every tokenizer has."""
    assert Tokenizer(str(save_tokenizer(tmp_path, **special))).pad_id == pad_id


def test_the_end_is_not_doubled(tmp_path: Path) -> None:
    """A text that already ends in the end-of-text token gets no second one; others get theirs."""
    found = Tokenizer(str(save_tokenizer(tmp_path, eos="</s>"))).encode([("ab</s>", 0), ("ab", 0)])
    ended, plain = (tokens for tokens, _ in found)
    assert ended == plain
    assert all(first != second for first, second in pairwise(ended))


def test_what_is_saved_with_a_cut_is_not_cut(tmp_path: Path) -> None:
    """A tokenizer saved with truncation and padding on gives all tokens, and no pads."""
    save_tokenizer(tmp_path, eos="</s>", pad="<pad>")
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text())
    state["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    state["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 3,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    file.write_text(json.dumps(state))
    assert [len(tokens) for tokens, _ in Tokenizer(str(tmp_path)).encode([("a" * 30, 0), ("b", 0)])] == [31, 2]


def test_digests_follow_the_files(tmp_path: Path) -> None:
    """Another special token is another tokenizer; weights beside it, or another place, are not."""
    first = save_tokenizer(tmp_path / "first", eos="</s>")
    second = save_tokenizer(tmp_path / "second", eos="</s>")
    other = save_tokenizer(tmp_path / "other", eos="<s>")
    (second / "model.safetensors").write_text("weights")
    digests = [Tokenizer(str(folder)).digest for folder in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("files", "special", "message"),
    [
        (None, {}, r"^tokenizer '.*': cannot be loaded \(.*\); give a folder with tokenizer\.json, or a hub id$"),
        ({"tokenizer.json": "{"}, {}, r"^tokenizer '.*': cannot be loaded \(.*\); give a folder with"),
        ({"tokenizer.json": '{"model": 3}'}, {}, r"^tokenizer '.*': cannot be loaded \(.*\); give a folder with"),
        ({}, {}, r"^tokenizer '.*': names no end-of-text token; set eos_token in tokenizer_config\.json$"),
    ],
)
def test_what_is_no_tokenizer_is_one_line(
    tmp_path: Path, files: dict[str, str] | None, special: dict[str, Any], message: str
) -> None:
    """A folder without one, a broken file, and one without an end each have their line."""
    if files is not None:
        save_tokenizer(tmp_path, **special)
        for name, text in files.items():
            (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer(str(tmp_path)).loaded  # noqa: B018 - loads when asked for
    assert "\n" not in str(caught.value)
