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


def test_an_evaluation_outside_the_loop_is_not_in_its_seconds() -> None:
    """An evaluation after the last dictionary, or before there is an epoch, is not taken off the loop's seconds."""
    inside = "{'eval_loss': 0.59, 'eval_runtime': 50.0, 'eval_samples_per_second': 78.6, 'epoch': 1.0}"
    after = "{'eval_loss': 0.59, 'eval_runtime': 311.0, 'eval_samples_per_second': 1.0, 'epoch': 3.0}"
    before = after.replace(", 'epoch': 3.0", "")
    assert read(inside, END).whole() == (0.35, 1000)
    assert read(before, inside, END, after).whole() == (0.35, 1000)
    assert read(before, END, after).whole() == (0.4, 1000)


def test_an_evaluation_after_training_in_a_file() -> None:
    """The same of trainer_state.json: ten seconds a step stay ten, whatever is evaluated at the end."""
    end = {"train_runtime": 400.0, "train_loss": 0.4, "train_steps_per_second": 0.1, "epoch": 1.0, "step": 40}
    after = {"eval_runtime": 311.0, "eval_samples_per_second": 1.0, "epoch": 1.0, "step": 40}
    assert state(document(end, after, max_steps=40)).whole() == (10.0, 40)
    assert state(document(after, end, max_steps=40)).whole() == (89 / 40, 40)


def test_a_stamp_is_shortened_by_evaluations_before_it() -> None:
    """Of stamped entries, an evaluation shortens those that come after it alone."""
    entries: list[dict[str, Any]] = [
        {"loss": 2.0, "step": 10, "train_runtime": 20.0},
        {"loss": 1.0, "step": 20, "train_runtime": 30.0},
        {"train_runtime": 40.0, "train_loss": 0.4, "train_steps_per_second": 0.75, "step": 30},
        {"eval_loss": 1.0, "eval_runtime": 7.0, "eval_samples_per_second": 9.0, "step": 30, "epoch": 1.0},
        {"loss": 1.0, "step": 40, "train_runtime": 50.0},
    ]
    records = state(document(*entries)).records.forward(Refused(), is_elapsed=True)
    assert [(r.step, r.clock_s) for r in records] == [(10, 20.0), (20, 30.0), (40, 50.0)]


@pytest.mark.parametrize(
    ("keys", "reserved", "allocated"),
    [
        ("'memory/max_allocated (GiB)': 2.0, 'memory/device_reserved (GiB)': 4.0", 4, 2),
        ("'memory/max_mem_allocated(gib)': '2', 'memory/device_mem_reserved(gib)': '4.5'", 4.5, 2),
        ("'memory/max_allocated (GiB)': 2.0, 'memory/device_reserved (GiB)': 0.0", None, None),
        ("'memory_allocated (GB)': 13.5, 'max_memory_allocated (GB)': 48.0", None, 48),
        ("'num_tokens': 40026.0, 'mean_token_accuracy': 0.8128562897443772, 'entropy': 1.5", None, None),
    ],
)  # fmt: skip
def test_memory_of_what_is_built_on_it(keys: str, reserved: float | None, allocated: float | None) -> None:
    """Axolotl's GiB, and optimum-habana's GB, are 2**30 bytes; TRL's further numbers change nothing."""
    bars = [f"{i}/99 [{i // 6:02d}:{i % 6}0<09:00, 10.00s/it]" for i in range(1, 9)]
    found = read(*bars, "{'loss': 1.5, 'learning_rate': 2e-4, " + keys + ", 'epoch': 0.02}").records
    held = (found.reserved_bytes, found.allocated_bytes)
    assert held == tuple(value and value * 2**30 for value in (reserved, allocated))


def test_bars_alone_are_few_lines() -> None:
    """Where there are only progress bars, ten are a line, since other trainers draw them beside lines of their own."""
    bars = [f"{i}/99 [00:{i:02d}<09:00, 1.00s/it]" for i in range(1, 26)]
    assert (read(*bars).count, read(*bars, "{'loss': 1.5}").count) == (3, 26)


def test_a_broken_evaluation_is_refused() -> None:
    """An evaluation that is not whole, takes no time, or whose rates times seconds are no counts is left out."""
    whole = (
        "{'eval_runtime': '0.6773', 'eval_samples_per_second': '94.5', 'eval_steps_per_second': '11.81', 'epoch': '1'}"
    )
    assert read(whole, END).whole() == ((400 - 0.6773) / 1000, 1000)
    wrong = whole.replace("0.6773", "8.6773")  # 820 samples, but 102.5 steps
    halves = (
        "{'eval_runtime': 50.0, 'epoch': 1.0}",
        "{'eval_runtime': -1.0, 'eval_samples_per_second': 2, 'epoch': 1.0}",
    )
    reader = read(*halves, wrong, END)
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
            names = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "epoch")
            line = str(dict(zip(names, [*told, 1.0], strict=True)))
            assert read(line, END).refused.count == 0


def test_a_progress_bar_times_steps() -> None:
    """The bar of the training, the longest-running one, tells seconds since it began, hours too."""
    bars = [f" 5%|#| {i}/378 [{i // 60}:{i % 60:02d}:08<2:31:47, 60.1s/it]" for i in range(1, 100)]
    reader = read("\r".join(bars), "62%|######   | 5/8 [00:02<00:00, 4.88it/s]", END.replace("2.5", "0.945"))
    records = reader.records.forward(Refused(), is_elapsed=True)
    assert [(r.step, r.clock_s) for r in records[:2]] == [(1, 68.0), (2, 128.0)]
    assert len(records) == 99


@pytest.mark.parametrize("is_drawn_again", [True, False])
def test_an_evaluation_between_bars_is_taken_off(is_drawn_again: bool) -> None:
    """Steps of 10 s with an evaluation of 60 s after every fifth take 10 s, whether the bar is drawn again or not."""
    reader, passed = TransformersReader(), 0
    for step in range(1, 41):
        passed += 10
        reader.take(f"{step}/99 [{passed // 60:02d}:{passed % 60:02d}<09:00, 10.00s/it]")
        if step % 5 == 0:
            passed += 60
            rates = "'eval_samples_per_second': 2.0, 'eval_steps_per_second': 1.0"
            reader.take(f"{{'eval_loss': 0.5, 'eval_runtime': 60.0, {rates}, 'epoch': {step / 10}}}")
            if is_drawn_again:
                reader.take(f"{step}/99 [{passed // 60:02d}:{passed % 60:02d}<09:00, 10.00s/it]")
    assert [(one.step, one.clock_s) for one in reader.steps()] == [(step, 10.0 * step) for step in range(1, 41)]


def test_an_evaluation_that_lies_elsewhere_is_not_taken_off() -> None:
    """Dictionaries that come late, where no two bars are as far apart, change nothing."""
    bars = [f"{step}/99 [{step // 6:02d}:{step % 6}0<09:00, 10.00s/it]" for step in range(1, 21)]
    evaluation = "{'eval_runtime': 60.0, 'eval_samples_per_second': 2.0, 'epoch': 1.0}"
    found = read(*bars[:10], evaluation, *bars[10:]).steps()
    assert [one.clock_s for one in found] == [10.0 * step for step in range(1, 21)]


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
