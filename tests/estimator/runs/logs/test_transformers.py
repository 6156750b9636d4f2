import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.runs.logs.steps import Refused
from estimator.runs.logs.transformers import TransformersReader, is_trainer_state, read_trainer_state
from tests.support.paths import GOLDEN

LOGS = GOLDEN / "logs"
END = (
    "{'train_runtime': 400.0, 'train_samples_per_second': 25.0, 'train_steps_per_second': 2.5, 'train_loss': 0.4, "
    "'epoch': 3.0}"
)


def read(*lines: str) -> TransformersReader:
    """Return a reader that has read lines of a console."""
    reader = TransformersReader()
    for line in lines:
        reader.take(line)
    return reader


def state(text: str, size: int = 10**6) -> TransformersReader:
    """Return a reader that has read a file, in pieces of a size."""
    reader = TransformersReader()
    read_trainer_state(iter(text[i : i + size] for i in range(0, len(text), size)), reader)
    return reader


def document(*entries: dict[str, Any], **keys: Any) -> str:
    """Return a trainer_state.json of these entries."""
    return json.dumps({"global_step": 1, "log_history": list(entries), "max_steps": 1000} | keys, indent=2)


def test_the_end_of_a_console_tells_the_whole_loop() -> None:
    """400 s at 2.5 steps a second are 1,000 steps of 0.4 s; version 5 prints the same as strings."""
    as_text = re.sub(r": ([\d.]+)", r": '\1'", END)
    assert read(END).whole() == read(as_text).whole() == (0.4, 1000)
    assert read(END, END).whole() == (0.4, 1000)


def test_evaluations_are_no_training() -> None:
    """The seconds of evaluations, each once, are taken off the loop's."""
    evaluation = "{'eval_loss': 0.59, 'eval_runtime': 50.0, 'eval_samples_per_second': 78.6, 'epoch': 1.0}"
    other = evaluation.replace("'epoch': 1.0", "'epoch': 2.0")
    assert read(evaluation, evaluation, other, END).whole() == (0.3, 1000)
    with pytest.raises(ValueError, match=r"^train_runtime: 400 s are less than the evaluations in them$"):
        read(evaluation.replace("50.0", "500.0"), END).whole()


def test_a_broken_evaluation_is_refused() -> None:
    """An evaluation that is not whole, takes no time, or whose rates times seconds are no counts is left out."""
    whole = "{'eval_runtime': '0.6773', 'eval_samples_per_second': '94.5', 'eval_steps_per_second': '11.81'}"
    assert read(whole, END).whole() == ((400 - 0.6773) / 1000, 1000)
    wrong = whole.replace("0.6773", "8.6773")  # 820 samples, but 102.5 steps
    reader = read("{'eval_runtime': 50.0}", "{'eval_runtime': -1.0, 'eval_samples_per_second': 2.0}", wrong, END)
    assert reader.whole() == (0.4, 1000)
    assert reader.refused.count == 3


@given(samples=st.integers(1, 10**5), per_step=st.integers(1, 64), runtime=st.floats(0.01, 5000))
def test_true_evaluations_are_taken(samples: int, per_step: int, runtime: float) -> None:
    """An evaluation of any counts is taken, printed with decimals as version 4 does, or with four digits as 5 does."""
    rates = (samples / runtime, -(-samples // per_step) / runtime)
    old = [round(runtime, 4), *(round(rate, 3) for rate in rates)]
    new = [f"{value:.4g}" for value in (round(runtime, 4), *(round(rate, 3) for rate in rates))]
    for told in (old, new):
        if all(float(value) for value in told):
            names = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
            line = str(dict(zip(names, told, strict=True)))
            assert read(line, END).refused.count == 0


def test_a_progress_bar_times_steps() -> None:
    """The bar of the training, the longest-running one, tells seconds since it began, hours too."""
    bars = [f" 5%|#| {i}/378 [{i // 60}:{i % 60:02d}:08<2:31:47, 60.1s/it]" for i in range(1, 100)]
    reader = read("\r".join(bars), "62%|######   | 5/8 [00:02<00:00, 4.88it/s]", END.replace("2.5", "0.945"))
    records = reader.records.forward(Refused(), is_elapsed=True)
    assert [(r.step, r.clock_s) for r in records[:2]] == [(1, 68.0), (2, 128.0)]
    assert len(records) == 99


def test_stamped_entries_time_steps() -> None:
    """Entries that have their `train_runtime` tell seconds since training began, evaluations apart."""
    entries = [
        {"loss": 2.0, "step": 10, "train_runtime": 20.0},
        {"eval_loss": 1.0, "eval_runtime": 7.0, "eval_samples_per_second": 9.0, "step": 10},
        {"loss": 1.0, "step": 20, "train_runtime": 37.0},
    ]
    records = state(document(*entries)).records.forward(Refused(), is_elapsed=True)
    assert [(r.step, r.clock_s, r.loss) for r in records] == [(10, 20.0, 2.0), (20, 30.0, 1.0)]


@given(size=st.integers(1, 500))
def test_pieces_of_a_file_do_not_matter(size: int) -> None:
    """However a file is cut into pieces, it tells the same."""
    for name in ("trainer_state.json", "trainer_state_tokens.json"):
        text = (LOGS / name).read_text(encoding="utf-8")
        whole, cut = state(text), state(text, size)
        assert cut.whole() == whole.whole()
        assert cut.records.forward(Refused()) == whole.records.forward(Refused())


@given(cut=st.integers(0, 4000))
def test_a_file_that_breaks_off_is_read_up_to_there(cut: int) -> None:
    """A file that breaks off tells the entries before, and that it does."""
    text = (LOGS / "trainer_state_tokens.json").read_text(encoding="utf-8")
    reader = state(text[:-cut] if cut else text)
    records = reader.records.forward(Refused())
    assert records == state(text).records.forward(Refused())[: len(records)]
    in_history = text[:-cut].count("{") > 1 and "]" not in text[:-cut] if cut else False
    assert (reader.refused.count == 1) == in_history


def test_a_file_is_known_by_its_history() -> None:
    """A file that begins as a JSON object with a history is one; a step log is not."""
    assert is_trainer_state(document())
    assert is_trainer_state(json.dumps({"log_history": []}))
    assert not is_trainer_state((LOGS / "steps.jsonl").read_text(encoding="utf-8"))
    assert not is_trainer_state("")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([END.replace("2.5", "0.004")], "train_steps_per_second: 0.004 is too coarse; give trainer_state.json instead"),
        (
            [END.replace("'train_steps_per_second': 2.5, ", "")],
            "train_steps_per_second: not in the last dictionary; give",
        ),
        (["1/700 [00:01<00:00, 1.0it/s]", END], "train_steps_per_second: 2.5 over 400 s are not 700 steps"),
    ],
)
def test_ends_that_tell_too_little(lines: list[str], message: str) -> None:
    """A rate rounded too far, or none, or one that contradicts the steps, is refused with the mend."""
    with pytest.raises(ValueError, match=f"^{message}"):
        read(*lines).whole()


def test_no_end_is_no_time() -> None:
    """Without an end there is no time of the whole loop; a second end is left out."""
    assert read("{'loss': 0.5, 'learning_rate': 1e-05, 'epoch': 0.1}").whole() is None
    second = read(END, END.replace("400.0", "300.0"))
    assert second.whole() == (0.4, 1000)
    assert second.refused.told[0].startswith("a second run's end; the first counts: ")


@pytest.mark.parametrize("value", ["-1", "0", "nan", "1e12"])
def test_a_runtime_of_no_run_is_refused(value: str) -> None:
    """A runtime that no run has is left out and quoted."""
    reader = read(END.replace("400.0", value))
    assert reader.whole() is None
    assert reader.refused.told[0].startswith("a runtime that no run has: ")
