import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.runs.logs.read import Log, read_log
from tests.support.paths import GOLDEN as GOLDEN_FOLDER
from tests.support.paths import MEASURED

LOGS = GOLDEN_FOLDER / "logs"
MOAI = MEASURED / "moai"

# file, format, seconds per step it was made with (or the run took), tolerance
GOLDEN = [
    (LOGS / "steps.jsonl", "steps.jsonl", 0.3 * (1 + 0.35 * 12 / 37), 0.01),
    (LOGS / "torchtitan.log", "torchtitan", 0.915, 0.005),
    (LOGS / "torchtitan_2024.log", "torchtitan", 1.31, 0.005),
    (LOGS / "megatron.log", "megatron", 3.391, 0.003),
    (LOGS / "megatron_2022.log", "megatron", 0.6406, 0.005),
    (LOGS / "primus.log", "megatron", 13.180, 0.003),
    (LOGS / "megatron_bridge.log", "megatron", 4.2, 0.002),
    (LOGS / "composer.log", "composer", 1.25, 0.01),
    (LOGS / "litgpt.log", "litgpt", 0.62, 0.003),
    (LOGS / "nemo.log", "nemo", 2.5, 0.003),
    (LOGS / "nanotron.log", "nanotron", 1.29, 0.003),
    (LOGS / "lightning_metrics.csv", "lightning", 0.731, 0.003),
    (LOGS / "llama_factory.jsonl", "llama-factory", 24.2, 0.002),
    (LOGS / "deepspeed.log", "deepspeed", 2.04, 0.002),
    (LOGS / "deepspeed_pipeline.log", "deepspeed", 0.936, 0.003),
    (LOGS / "trainer_state.json", "transformers", (17.3683 - 0.67) / 60, 0.03),
    (LOGS / "trainer_state_tokens.json", "transformers", 17.2 / 60, 0.1),
    (LOGS / "transformers_console.log", "transformers", (17.37 - 0.67) / 60, 0.03),
    (MOAI / "qwen1.5_7b_4xlarge.log", "moai", 16.662, 0.005),
]
# what a line of a step of each text format has
LINE = {
    "steps.jsonl": '"record": "step"',
    "torchtitan": "step:",
    "megatron": "elapsed time",
    "moai": "[Step ",
    "nemo": "train_step_timing",
    "nanotron": "time_per_iteration_ms",
}
TEXTS = [(path, form) for path, form, *_ in GOLDEN if form in LINE]


def read(path: Path, text: str) -> Log:
    """Return what a log of this text says."""
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    return read_log(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the tests write a log."""
    return tmp_path_factory.mktemp("logs") / "a.log"


def text_of(path: Path) -> str:
    """Return a log as it is, line ends too."""
    return path.read_bytes().decode()


@pytest.mark.parametrize(("path", "form", "step_s", "tolerance"), GOLDEN, ids=[path.name for path, *_ in GOLDEN])
def test_golden_logs(path: Path, form: str, step_s: float, tolerance: float) -> None:
    """Each format is told by its content, and its steps take what the log was made with, or the run took."""
    log = read_log(path)
    assert log.form == form
    assert log.pace().step_s == pytest.approx(step_s, rel=tolerance)


@pytest.mark.parametrize(("path", "form"), TEXTS, ids=[path.name for path, _ in TEXTS])
@given(order=st.randoms(use_true_random=False))
def test_shuffled_and_repeated_lines_change_nothing(file: Path, path: Path, form: str, order: Random) -> None:
    """A log whose lines are shuffled, and some told again, tells the same pace, memory and steps."""
    lines = text_of(path).split("\n")
    start = [line for line in lines if LINE[form] not in line]
    steps = [line for line in lines if LINE[form] in line]
    again = [*steps, *steps[: len(steps) // 3]]
    order.shuffle(again)
    log, shuffled = read(file, text_of(path)), read(file, "\n".join([*start, *again]))
    assert shuffled.pace() == log.pace()
    assert (shuffled.records, shuffled.reserved_bytes) == (log.records, log.reserved_bytes)


@pytest.mark.parametrize(("path", "form"), TEXTS, ids=[path.name for path, _ in TEXTS])
def test_line_ends_colours_and_marks_change_nothing(file: Path, path: Path, form: str) -> None:
    """CRLF, colours, a byte-order mark and foreign lines between leave what a log says as it is."""
    log = read_log(path)
    plain = re.sub(r"\x1b\[\d*m", "", text_of(path)).replace("\r\n", "\n")
    changes = [
        plain,
        "\ufeff" + plain,
        plain.replace("\n", "\r\n"),
        plain.replace("\n", "\x1b[0m\n\x1b[32m"),
        plain.replace("\n", "\nsome/file.py:12: UserWarning: a step: of loss: or it/s\n"),
    ]
    for changed in changes:
        found = read(file, changed)
        assert (found.form, found.pace(), found.reserved_bytes) == (form, log.pace(), log.reserved_bytes)


@pytest.mark.parametrize(("path", "form"), TEXTS, ids=[path.name for path, _ in TEXTS])
@given(cut=st.integers(2, 400))
def test_a_log_that_breaks_off_tells_its_whole_lines(file: Path, path: Path, form: str, cut: int) -> None:
    """A log cut anywhere in its last line tells what it tells without that line, or with it where it is whole."""
    lines = text_of(path).rstrip("\r\n").split("\n")
    last = max(i for i, line in enumerate(lines) if LINE[form] in line)
    whole = read(file, "\n".join(lines[: last + 1]))
    without = read(file, "\n".join(lines[:last]))
    broken = read(file, "\n".join([*lines[:last], lines[last][:-cut]]))
    assert broken.pace() in (whole.pace(), without.pace())


@pytest.mark.parametrize(("path", "form"), TEXTS, ids=[path.name for path, _ in TEXTS])
def test_two_ranks_in_one_line_are_refused_and_quoted(file: Path, path: Path, form: str) -> None:
    """Two records that share a line are left out and quoted, and the other steps stand."""
    lines = [line for line in text_of(path).replace("\r", "").split("\n") if LINE[form] in line]
    glued = [*lines[:-3], lines[-3] + lines[-2], lines[-1]]
    log, found = read(file, "\n".join(lines)), read(file, "\n".join(glued))
    assert found.num_refused > log.num_refused
    assert found.pace().step_s == pytest.approx(log.pace().step_s, rel=0.03)


def test_two_formats_in_one_file(file: Path) -> None:
    """The format is the one that most lines are of; of the others it is told how many lines there are."""
    both = text_of(LOGS / "megatron.log") + text_of(LOGS / "torchtitan_2024.log")
    log = read(file, both)
    assert log.form == "megatron"
    assert log.pace() == read_log(LOGS / "megatron.log").pace()
    assert log.refused[-1] == "11 lines of another format, torchtitan"


def test_losses_are_the_first_and_the_last() -> None:
    """The loss of the first step and of the last are told."""
    assert read_log(MOAI / "mistral_7b_4xlarge.log").losses == (1.2421875, 0.5625)


@pytest.mark.parametrize("text", ["", "\n", "hello", "step: 1", "{", "{}", '{"log_history": []}', "[Step 1/2]"])
def test_what_is_no_log_is_refused(file: Path, text: str) -> None:
    """A file without a whole step of a known format is refused in one line that names the formats."""
    with pytest.raises(ValueError, match=r"^log '.*a\.log': no whole step of a known format in it, which are") as error:
        read(file, text)
    assert str(error.value).isprintable()


def test_too_short_a_log_is_refused(file: Path) -> None:
    """A log with too few steps after the warm-up is refused with the number it needs."""
    lines = text_of(LOGS / "megatron.log").split("\n")
    short = [line for line in lines if "elapsed time" in line][:3]
    with pytest.raises(ValueError, match=r"^log '.*': 1 timed intervals after the first 2 steps; give a longer log"):
        read(file, "\n".join(short)).pace()


def test_no_lines_of_steps_name_the_first_refused(file: Path) -> None:
    """Where all step lines are broken, the error quotes one."""
    line = next(x for x in text_of(LOGS / "megatron.log").split("\n") if "elapsed time" in x)
    with pytest.raises(ValueError, match=r"\(not whole, or not in milliseconds: ' \[2025-06-11 03:20:19\] iteration"):
        read(file, line.replace("(ms)", "(s)"))
