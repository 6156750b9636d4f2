import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import MODELS, VOCAB, write_checkpoint
from trainer.parallel.model import FAMILIES
from trainer.source import config_of, find_config, find_model


@pytest.mark.parametrize("vocab_size", [1, 64, 65, 4096])
def test_the_tiny_model_fits_any_tokenizer(vocab_size: int) -> None:
    """Without a model there is a small Mistral, whose vocabulary holds the tokenizer's and divides by 64."""
    source = find_model("", vocab_size)
    assert (source.name, source.weights, source.config.model_type) == ("tiny-mistral", None, "mistral")
    assert source.config.vocab_size >= vocab_size
    assert source.config.vocab_size % 64 == 0
    assert source.config.vocab_size - vocab_size < 64


def test_a_folder_is_a_checkpoint_and_its_config_alone_is_none(tmp_path: Path) -> None:
    """A folder is continued from its weights, its config.json begins from random ones; both have one config."""
    write_checkpoint("mistral", tmp_path / "model")
    whole, bare = find_model(str(tmp_path / "model"), VOCAB), find_model(str(tmp_path / "model" / "config.json"), VOCAB)
    assert (whole.name, whole.weights) == ("model", tmp_path / "model")
    assert (bare.name, bare.weights) == ("model", None)
    assert whole.config.to_dict() == bare.config.to_dict()


@pytest.mark.parametrize("name", MODELS)
def test_configs_are_read_as_transformers_writes_them(tmp_path: Path, name: str) -> None:
    """The config read back is the one that was saved, of a family that the trainer splits."""
    write_checkpoint(name, tmp_path)
    source = find_model(str(tmp_path), VOCAB)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert source.config.model_type in FAMILIES
    assert {key: source.config.to_dict()[key] for key in MODELS[name]} == {key: saved[key] for key in MODELS[name]}


def test_a_known_name_needs_no_file() -> None:
    """Where the config alone is needed, a name that the estimator knows is enough, in any case of letters."""
    source = find_config("MISTRALAI/mistral-7b-v0.1")
    assert source.name == "mistralai/Mistral-7B-v0.1"
    assert (source.config.num_hidden_layers, source.weights) == (32, None)


def test_a_config_needs_no_weights(tmp_path: Path) -> None:
    """Where the config alone is needed, a folder without weights is enough."""
    write_checkpoint("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert find_config(str(tmp_path)).config.model_type == "llama"


def write_config(folder: Path, document: Any) -> Path:
    """Write a config.json of anything."""
    path = folder / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "cannot be read as JSON; check the path"),
        ("[" * 100_000, "cannot be read as JSON; check the path"),
        ([], "has no model_type; give a Hugging Face config"),
        ({}, "has no model_type; give a Hugging Face config"),
        ({"model_type": 3}, "has no model_type; give a Hugging Face config"),
        ({"model_type": "no-such-kind"}, "is no usable config: .*; mend it"),
        ({"model_type": "mistral", "hidden_size": "wide"}, "is no usable config: .*; mend it"),
    ],
)
def test_unusable_configs_are_refused(tmp_path: Path, document: Any, said: str) -> None:
    """What is wrong with a config is said in one line, with its path."""
    with pytest.raises(ValueError, match=rf"^model: '.*config.json' {said}$"):
        find_model(str(write_config(tmp_path, document)), 1)


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    """A path to a config that is not there is named."""
    with pytest.raises(ValueError, match=r"^model: '.*none.json' cannot be read as JSON; check the path$"):
        find_model(str(tmp_path / "none.json"), 1)


def test_a_config_without_weights_is_no_checkpoint(tmp_path: Path) -> None:
    """A folder that has a config alone is refused; the mend says how to begin from random weights."""
    write_checkpoint("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    said = (
        r"^model: '.*' holds no \*.safetensors; convert the checkpoint to safetensors, or give the config.json itself "
        "to start from random weights$"
    )
    with pytest.raises(ValueError, match=said):
        find_model(str(tmp_path), VOCAB)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path: Path) -> None:
    """Every id of the tokenizer needs a row of the embedding."""
    write_checkpoint("llama", tmp_path)
    said = rf"has a vocabulary of {VOCAB}, the tokenizer one of {VOCAB + 1}; give the tokenizer that belongs to it$"
    with pytest.raises(ValueError, match=said):
        find_model(str(tmp_path), VOCAB + 1)


def test_a_name_that_the_hub_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the hub fails, the error says what was looked for where."""

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    said = (
        r"^model: 'no/such' is no folder or config.json here, and the hub does not give it \(ConnectionError\); "
        "check the name, or give a folder$"
    )
    with pytest.raises(ValueError, match=said):
        find_model("no/such", 1)


def test_a_config_is_checked_by_transformers() -> None:
    """Any error of transformers becomes one line."""
    with pytest.raises(ValueError, match=r"^model: 'x' is no usable config: .*; mend it$"):
        config_of({"model_type": "llama", "num_hidden_layers": "many"}, "x")
