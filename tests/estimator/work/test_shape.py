import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.work.shape import MAX_SIZE, Shape, builtin_configs, load_shape, shape_from_config
from tests.support.strategies import MODEL_TYPES, documents

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 32,
    "vocab_size": 100,
}
MIXTRAL = LLAMA | {"model_type": "mixtral"}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
json_like = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
)


@st.composite
def broken_documents(draw: st.DrawFn) -> Any:
    """Draw a config with some of its values replaced by others of any kind."""
    document = draw(st.sampled_from(MODEL_TYPES).flatmap(documents))
    names = [*document, "num_experts_per_tok", "sliding_window", "use_sliding_window", "head_dim", "resid_pdrop"]
    return document | draw(st.dictionaries(st.sampled_from(names), json_like, max_size=3))


def refused_in_one_line(error: ValueError) -> bool:
    """Whether a message is one line of ASCII that says what was given."""
    return str(error).isascii() and len(str(error).splitlines()) == 1 and "model" in str(error)


@given(json_like | broken_documents(), st.text())
def test_any_document_is_a_shape_or_one_line(document: Any, name: str) -> None:
    """Any JSON document gives a shape of positive sizes, or is refused in one line."""
    try:
        shape = shape_from_config(document, name)
    except ValueError as error:
        assert refused_in_one_line(error)  # noqa: PT017 - a document that is a config raises nothing
    else:
        sizes = (shape.hidden_size, shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.head_dim)
        assert all(0 < size < MAX_SIZE for size in (*sizes, shape.ffn_size, shape.vocab_size))
        assert shape.num_heads % shape.num_kv_heads == 0
        assert shape.num_experts_per_token <= shape.num_experts


@given(st.text() | st.text(min_size=200, max_size=400))
def test_any_name_is_a_shape_or_one_line(model: str) -> None:
    """Any text names a model, or is refused in one line."""
    try:
        assert isinstance(load_shape(model), Shape)
    except ValueError as error:
        assert refused_in_one_line(error)  # noqa: PT017 - a text that is a name raises nothing


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], r"^model 'm': its config is not a JSON object$"),
        ("llama", r"its config is not a JSON object$"),
        ({}, r"^model 'm': model_type None is not modelled; use one of bloom, deepseek_v3, .*, smollm3$"),
        ({"model_type": "mamba"}, r"model_type 'mamba' is not modelled; use one of"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not modelled"),
        ({"model_type": "llama"}, r"^model 'm': its config lacks 'hidden_size'; add it as a positive integer$"),
        (LLAMA | {"vocab_size": None}, r"its config lacks 'vocab_size'"),
        (LLAMA | {"vocab_size": 0}, r"^model 'm': vocab_size = 0 is not a positive integer below 2\*\*31$"),
        (LLAMA | {"vocab_size": -1}, r"vocab_size = -1 is not a positive integer"),
        (LLAMA | {"vocab_size": True}, r"vocab_size = True is not a positive integer"),
        (LLAMA | {"vocab_size": 1.0}, r"vocab_size = 1.0 is not a positive integer"),
        (LLAMA | {"vocab_size": "100"}, r"vocab_size = '100' is not a positive integer"),
        (LLAMA | {"vocab_size": MAX_SIZE}, r"vocab_size = 2147483648 is not a positive integer"),
        (LLAMA | {"tie_word_embeddings": 1}, r"^model 'm': tie_word_embeddings = 1 is not true or false$"),
        (
            LLAMA | {"num_attention_heads": 6},
            r"num_attention_heads = 6 does not divide hidden_size = 64; give head_dim",
        ),
        (
            LLAMA | {"num_key_value_heads": 3},
            r"num_key_value_heads = 3 does not divide num_attention_heads = 4; use a divisor$",
        ),
        (
            MIXTRAL | {"num_local_experts": 2, "num_experts_per_tok": 3},
            r"num_experts_per_tok = 3 is more than num_local_experts = 2$",
        ),
        (GPT2 | {"n_head": 5}, r"^model 'm': n_head = 5 does not divide n_embd = 64$"),
        (GPT2 | {"n_positions": None}, r"its config lacks 'n_positions'"),
        (GPT2 | {"resid_pdrop": float("nan")}, r"^model 'm': resid_pdrop = nan is not a finite number$"),
        (GPT2 | {"resid_pdrop": "0.1"}, r"resid_pdrop = '0.1' is not a finite number$"),
        (GPT2 | {"resid_pdrop": False}, r"resid_pdrop = False is not a finite number$"),
        (GPT2 | {"resid_pdrop": 10**400}, r"resid_pdrop = 1000.* is not a finite number$"),
    ],
)
def test_documents_that_are_no_config(document: Any, message: str) -> None:
    """A document that is no config of a known model is refused with the key, its value and the rule."""
    with pytest.raises(ValueError, match=message):
        shape_from_config(document, "m")


def test_what_is_left_out_takes_the_default_of_transformers() -> None:
    """Key heads are the query heads, an expert count is Mixtral's, a GPT-2 block is four times as wide."""
    heads = shape_from_config({k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}, "m")
    assert (heads.num_kv_heads, heads.head_dim) == (4, 16)
    mixtral = shape_from_config(MIXTRAL, "m")
    assert (mixtral.num_experts, mixtral.num_experts_per_token) == (8, 2)
    gpt2 = shape_from_config(GPT2, "m")
    assert (gpt2.ffn_size, gpt2.tied_embeddings, gpt2.residual_dropout) == (256, True, True)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_qwen_uses_its_window_only_where_told(model_type: str) -> None:
    """A window in a Qwen config counts only with `use_sliding_window`."""
    document = LLAMA | {"model_type": model_type, "sliding_window": 32, "max_window_layers": 0}
    assert shape_from_config(document, "m").sliding_window == 0
    assert shape_from_config(document | {"use_sliding_window": True}, "m").sliding_window == 32


@pytest.mark.parametrize("name", builtin_configs())
def test_short_names(name: str) -> None:
    """A built-in model is found by its name, and by that without its owner, in any case."""
    owner, _, short = name.rpartition("/")
    assert owner
    assert load_shape(name) == load_shape(short) == load_shape(short.upper()) == load_shape(name.lower())
    assert load_shape(name).name == name


def test_unknown_name() -> None:
    """An unknown name is answered with what it may have meant."""
    with pytest.raises(ValueError, match=r"^unknown model 'Mistral-7B-v0.2': "):
        load_shape("Mistral-7B-v0.2")


def test_config_file_and_its_directory(tmp_path: Path) -> None:
    """A config is read from its file and from its directory, and bears the directory's name or its own."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA), encoding="utf-8")
    assert load_shape(str(path)) == load_shape(str(tmp_path)) == shape_from_config(LLAMA, tmp_path.name)
    path.write_text(json.dumps(LLAMA | {"_name_or_path": "someone/small"}), encoding="utf-8")
    assert load_shape(str(path)).name == "someone/small"


@pytest.mark.parametrize(
    "name", ["", "  ", "two\nlines", "\x1b[31mred", "e\u0301", "\u202eback", "\ud800", "x" * 201, 7, ["a"]]
)
def test_a_name_that_garbles_tables(name: Any, tmp_path: Path) -> None:
    """A name that is no printable text of ASCII, or far too long, gives way to the folder's, as Python writes it."""
    for folder, expected in (("mine", "mine"), ("m\nine", "'m\\nine'")):
        path = tmp_path / folder / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps(LLAMA | {"_name_or_path": name}), encoding="utf-8")
        assert load_shape(str(path)).name == expected


@pytest.mark.parametrize(
    "text", ["", "{", "{'model_type': 'llama'}", "[" * 100_000, '{"vocab_size": ' + "1" * 5000 + "}"]
)
def test_broken_json(text: str, tmp_path: Path) -> None:
    """A file that is not JSON, or nested too deep, is refused by its name."""
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON; fix or download it again$"):
        load_shape(str(path))


def test_binary_file(tmp_path: Path) -> None:
    """A file that is not text cannot be read."""
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"config.json is not text in UTF-8; download it again$"):
        load_shape(str(path))


def test_missing_path(tmp_path: Path) -> None:
    """A directory without a config and a path to nothing are refused as paths, not as names."""
    for path in (tmp_path, tmp_path / "config.json", tmp_path / "none"):
        with pytest.raises(ValueError, match=r"its config.json cannot be read; check the path$"):
            load_shape(str(path))


@pytest.mark.parametrize("letter", ["a", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{GRINNING FACE}"])
def test_a_name_too_long_for_a_file(letter: str) -> None:
    """A name that no file system takes is an unknown model, whatever the bytes of its letters."""
    with pytest.raises(ValueError, match=r"^unknown model '.*\.\.\.: use one of"):
        load_shape(letter * 300)


def test_a_hub_id_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id is read from the snapshot that `refs/main` of the local cache names; without one it is unknown."""
    folder = tmp_path / "hub" / "models--someone--small"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc\n", encoding="utf-8")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert load_shape("someone/small") == shape_from_config(LLAMA, "someone/small")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=r"^unknown model 'someone/small': "):
        load_shape("someone/small")


@pytest.mark.parametrize("at", ["refs/main", "snapshots/abc/config.json"])
def test_a_pipe_in_the_local_cache_is_not_waited_for(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache holds a pipe instead of a file, the hub id is unknown."""
    folder = tmp_path / "hub" / "models--someone--small"
    for path in (folder / "refs" / "main", folder / at):
        path.parent.mkdir(parents=True, exist_ok=True)
    if at != "refs/main":
        (folder / "refs" / "main").write_text("abc\n", encoding="utf-8")
    os.mkfifo(folder / at)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"^unknown model 'someone/small': "):
        load_shape("someone/small")


@pytest.mark.parametrize(
    ("document", "key"),
    [(LLAMA, "num_hidden_layers"), (GPT2, "n_layer"), ({"model_type": "mpt", "d_model": 64, "n_heads": 4}, "n_layers")],
)
def test_more_layers_than_any_model_are_refused(document: dict[str, Any], key: str) -> None:
    """Of the most there is an answer; of more, their splits over stages would never end."""
    sizes = document | {"vocab_size": 96}
    assert shape_from_config(sizes | {key: 2**14}, "m").num_layers == 2**14
    for layers in (2**14 + 1, 2**31 - 1):
        with pytest.raises(ValueError, match=f"^model 'm': {key} = {layers} is more than 16,384 layers, "):
            shape_from_config(sizes | {key: layers}, "m")


def test_the_language_model_of_several_media() -> None:
    """Of a model of several media the language model is read, and what is left out is noted."""
    shape = shape_from_config({"model_type": "llava", "text_config": LLAMA}, "m")
    assert shape == shape_from_config(LLAMA, "m")
    assert shape.notes == ("all of llava but its language model (llama)",)
