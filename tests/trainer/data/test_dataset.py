import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import run_ranks
from tests.support.tiny_tokenizer import save_tokenizer
from trainer.data.dataset import DataConfig, load_data
from trainer.data.loader import NO_TARGET, Loader

ROWS = [{"instruction": f"say {'x' * i}", "input": "", "output": "y" * (i + 1)} for i in range(20)]
HEADINGS = 151
"""Tokens of the prompt form of an empty row, a byte each."""
LENGTHS = [HEADINGS + len("say ") + i + (i + 1) + 1 for i in range(20)]
"""Tokens of the rows, with the end-of-text token."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a tokenizer of bytes."""
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizer"), eos="</s>", pad="<pad>"))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return a dataset of 20 rows, each two tokens longer than the one before."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def texts(config: DataConfig, cache: Path) -> list[str]:
    """Return the text of each row to train on."""
    data = load_data(config, cache)
    return [data.tokenizer.decode(data.train[row]) for row in range(data.num_rows)]


def test_rows_are_the_form_and_the_end(dataset: Path, tokenizer: str, tmp_path: Path) -> None:
    """A row's tokens are its text in the seed's form and the end-of-text token; all but the first are targets."""
    data = load_data(DataConfig(str(dataset), tokenizer), tmp_path)
    assert data.tokenizer.decode(data.train[1]) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nsay x\n\n### Input:\n\n\n### Output:\nyy</s>"
    )
    assert data.train.lengths.tolist() == LENGTHS
    assert data.train.targets().tolist() == (data.train.lengths - 1).tolist()
    assert (data.num_rows, data.vocab_size, data.pad_id) == (20, 260, 3)


def test_a_masked_prompt_is_no_target(dataset: Path, tokenizer: str, tmp_path: Path) -> None:
    """With the prompt masked, a row's targets are its answer and the end."""
    data = load_data(DataConfig(str(dataset), tokenizer, mask_prompt=True), tmp_path)
    assert data.train.targets().tolist() == [i + 1 + 1 for i in range(20)]
    rest = {"global_batch": 20, "dp_rank": 0, "dp": 1, "seed": 0, "packing": False, "pad_id": data.pad_id}
    with Loader(data.train, seq_len=256, **rest) as batches:
        labels = next(batches).labels_BT
    decoded = {data.tokenizer.decode(row[row != NO_TARGET]) for row in labels}
    assert decoded == {row["output"] + "</s>" for row in ROWS}


def test_held_out_rows_are_not_trained_on(dataset: Path, tokenizer: str, tmp_path: Path) -> None:
    """Held out and trained rows are all rows; which are held out depends on their number alone."""
    whole = set(texts(DataConfig(str(dataset), tokenizer), tmp_path))
    held_out = []
    for seed in (0, 1):
        data = load_data(DataConfig(str(dataset), tokenizer, eval_rows=6, seed=seed), tmp_path)
        held_out.append({data.tokenizer.decode(data.evaluation[row]) for row in range(6)})
        assert held_out[-1] | set(texts(DataConfig(str(dataset), tokenizer, eval_rows=6), tmp_path)) == whole
        assert (len(data.evaluation), data.num_rows) == (6, 14)
    assert held_out[0] == held_out[1]


def test_rows_are_tokenised_once(
    dataset: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time rows come from the cache, whatever is masked or cut; other content is tokenised anew."""
    cache = tmp_path / "cache"
    config = DataConfig(str(dataset), tokenizer)
    before = texts(config, cache)
    with monkeypatch.context() as patched:
        patched.setattr("trainer.data.tokenizer.Tokenizer.encode", None)
        assert texts(config, cache) == before
        data = load_data(DataConfig(str(dataset), tokenizer, seq_len=180, truncate=True), cache)
        assert data.train.lengths.max() == 180
    dataset.write_text(json.dumps(ROWS[3]))
    assert texts(config, cache) == before[3:4]


def test_the_lengths_are_the_estimator_s(dataset: Path, tokenizer: str, tmp_path: Path) -> None:
    """The rows' histogram is one that `estimate --lengths` reads."""
    found = load_data(DataConfig(str(dataset), tokenizer), tmp_path).train.histogram()
    assert (found.num_rows, len(found.lengths), found.num_tokens()) == (20, 20, sum(LENGTHS))


def loaded_tokens(config: DataConfig, cache: Path) -> int:
    """Load as one rank, and return how many tokens there are."""
    return int(load_data(config, cache).train.lengths.sum())


@pytest.mark.slow
def test_ranks_may_load_at_once(dataset: Path, tokenizer: str, tmp_path: Path) -> None:
    """Processes that load together all get the rows, and leave one copy."""
    cache, config = tmp_path / "cache", DataConfig(str(dataset), tokenizer)
    assert run_ranks(3, loaded_tokens, config, cache) == [sum(LENGTHS)] * 3
    assert len([path for path in cache.iterdir() if path.is_dir() and path.name.startswith("rows-")]) == 1


@pytest.mark.slow
def test_the_default_is_the_embedded_dataset(embedded_cache: Path) -> None:
    """With nothing given there are thousands of rows of code, all of which fit; a shorter sequence takes fewer."""
    data, fewer = (load_data(DataConfig(seq_len=seq_len), embedded_cache) for seq_len in (2048, 256))
    assert data.num_rows > 3000
    assert 1000 < fewer.num_rows < data.num_rows
    assert fewer.train.lengths.max() <= 256
    text = data.tokenizer.decode(data.train[0])
    assert text.startswith("<s>Below is an instruction")
    assert text.endswith("\n</s>")


@pytest.mark.slow
def test_a_second_start_needs_no_torch(embedded_cache: Path) -> None:
    """From the cache the rows come without torch and transformers, which take seconds to import."""
    load_data(DataConfig(), embedded_cache)
    code = (
        "import sys; from pathlib import Path; from trainer.data.dataset import DataConfig, load_data\n"
        "load_data(DataConfig(), Path(sys.argv[1])); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code, str(embedded_cache)], capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 1}, r"^seq-len: 1 is less than 2, and leaves no token to predict; raise it$"),
        ({"seed": -1}, r"^seed: -1 is negative; give 0 or more$"),
        ({"eval_rows": -3}, r"^eval-rows: -3 is negative; give 0 or more$"),
    ],
)
def test_values_that_no_run_has_are_refused(changes: dict[str, Any], message: str) -> None:
    """Each rule of the configuration has its line."""
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seq_len": 190},
            r"jsonl': line 20 has 195 tokens, more than seq-len 190, the longest of 3 that do; give --seq-len 195, ",
        ),
        (
            {"seq_len": 159, "truncate": True, "mask_prompt": True},
            r"jsonl': line 5 has a prompt of 159 tokens, which seq-len 159 cuts before its answer: no target is left",
        ),
        ({"eval_rows": 20}, r"^eval-rows: 20 of 20 rows leave none to train on; hold out fewer$"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    dataset: Path, tokenizer: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """What the rows do not allow is one line that names the row and the mend."""
    with pytest.raises(ValueError, match=message):
        load_data(DataConfig(str(dataset), tokenizer, **changes), tmp_path)


def test_an_empty_dataset_is_refused(dataset: Path, tokenizer: str, tmp_path: Path) -> None:
    """A file without rows is named, and leaves nothing in the cache."""
    dataset.write_text("\n \n")
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"^dataset '.*rows\.jsonl': has no rows; give at least one$"):
        load_data(DataConfig(str(dataset), tokenizer), cache)
    assert not any(path.name.startswith("rows-") and path.is_dir() for path in cache.iterdir())


def test_a_bad_row_leaves_nothing_behind(dataset: Path, tokenizer: str, tmp_path: Path) -> None:
    """A row that is none ends the loading with its line; what was tokenised before it is not taken for the whole."""
    dataset.write_text(dataset.read_text() + '{"instruction": "a"}\n')
    cache = tmp_path / "cache"
    for _ in range(2):
        with pytest.raises(ValueError, match=r"rows\.jsonl': line 21: no column output or .*; name the column of the"):
            load_data(DataConfig(str(dataset), tokenizer), cache)


def test_only_the_embedded_dataset_is_thinned(embedded_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none of its rows fits, the embedded dataset is refused as any other."""
    monkeypatch.chdir(embedded_cache)
    with pytest.raises(ValueError, match=r"rows\.jsonl': line \d+ has \d+ tokens, more than seq-len 8, the longest of"):
        load_data(DataConfig(seq_len=8), embedded_cache)
