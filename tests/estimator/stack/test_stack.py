import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.stack.file import read_premises, stack_text, write_stack
from estimator.stack.stack import Premises, Stack, builtin_stacks, load_stack, parse_stack, read_stack_text
from estimator.work.shape import load_shape

TEXT = read_stack_text("moai-24.2")
STACK = load_stack("moai-24.2")


def test_builtin_stacks_load() -> None:
    """Every built-in stack loads, and is called as its file."""
    assert "moai-24.2" in builtin_stacks()
    for name in builtin_stacks():
        assert load_stack(name).name == name


def test_every_habit_has_evidence() -> None:
    """Each habit that a built-in stack states says why; what it does not state is a habit of few, or a recipe's."""
    for name in builtin_stacks():
        habits = read_premises(read_stack_text(name), name).habits
        assert set(habits.evidence) == habits.model_fields_set - {"evidence"}, name


def test_fused_attention_is_by_family() -> None:
    """On the platform Qwen's attention is fused and Mistral's is not; `always` fuses all."""
    habits = load_stack("moai-24.2").habits
    mistral, qwen = load_shape("Mistral-7B-v0.1"), load_shape("Qwen1.5-7B")
    assert habits.fuses_attention(qwen)
    assert not habits.fuses_attention(mistral)
    assert habits.model_copy(update={"fused_attention": "always"}).fuses_attention(mistral)


def test_premises_say_what_the_log_times() -> None:
    """The hand-written half says what the log times and how long loading takes, each with its evidence."""
    log = read_premises(TEXT, "mine").log
    assert (log.times, log.load_s) == ("launch", 43.7) == (STACK.window.times, STACK.startup.load_s)
    assert set(log.evidence) == set(type(log).model_fields) - {"evidence"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('schema = "stack/1"', 'schema = "stack/9"', "schema"),
        ("logit_bytes = 6.0", "logit_bytes = -6.0", "logit_bytes"),
        ("logit_bytes = 6.0", "logit_byte = 6.0", "logit_byte"),
        ("[priors.memory_ratio]", "[priors.memory]", "priors are .* they must be"),
        ("log_sd = 0.15", "log_sd = nan", "log_sd"),
        ("usable_memory_fraction = 0.8", "usable_memory_fraction = 8", "usable_memory_fraction"),
        ('names = ["matmul_efficiency"', 'names = ["matmul"', "names are .* they must be"),
        ("[fit]", "[fit", "not valid TOML: .*; correct it there"),
        pytest.param("[fit]", "a = " + "[" * 100_000, "not valid TOML: nested too deep; correct it there", id="deep"),
        pytest.param("load_s = 43.7", "load_s = " + "9" * 5000, "not valid TOML", id="digits"),
        ("usable_memory_fraction = 0.8", "usable_memory_fraction = 0", "usable_memory_fraction: 0 .* greater than 0"),
        ("weight_bytes = 2.0", "weight_bytes = 65", "weight_bytes: 65 .* less than or equal to 64"),
        ("optimizer_bytes = 8.0", "optimizer_bytes = 1e300", "optimizer_bytes: 1e.300 .* less than or equal to 64"),
        ("load_s = 43.7", "load_s = 1e7", r"log\.load_s: 10000000\.0 .* less than"),
        ("load_s = { kind", "load = { kind", r"log\.evidence"),
        ('times = "launch"', 'times = "loss"', r"log\.times: 'loss' does not fit"),
        ("[log]", "[logs]", r"log\.times: is missing; add it"),
        ("median = 0.8", "median = 1e21", "median: 1e.21 .* less than"),
        ("log_sd = 0.15", "log_sd = 11", "log_sd: 11 .* less than or equal to 10"),
        ("log_sd = 0.15", "log_sd = 1e-300", "log_sd: 1e-300 .* greater than"),
        ("log_values = [", "log_values = [51, ", r"log_values\.0: 51 .* less than or equal to 50"),
        ("covariance = [\n  [", "covariance = [[101, ", r"covariance\.0\.0: 101 .* less than or equal to 100"),
        ("covariance = [\n  [", "covariance = [[nan, ", r"covariance\.0\.0: nan does not fit"),
        ("family_log_sd = ", "family_log_sd = 1e9 # ", "family_log_sd: 1000000000.0 .* less than"),
        ("degrees_of_freedom = ", f"degrees_of_freedom = 1{'0' * 400} # ", "degrees_of_freedom: 1000.* less than"),
        ("\nstep_s = ", "\nstep_s = 1e300 # ", r"runs\.0\.step_s: 1e.300 .* less than"),
        ("left_out_step_error = ", "left_out_step_error = nan # ", "left_out_step_error: nan .* finite number"),
    ],
)
def test_a_bad_stack_names_file_field_and_rule(old: str, new: str, message: str) -> None:
    """A broken stack file raises one line that names the file, the field and the rule."""
    assert old in TEXT
    with pytest.raises(ValueError, match=rf"stack 'mine': .*{message}") as error:
        parse_stack(Stack, TEXT.replace(old, new, 1), "mine")
    assert "\n" not in str(error.value)


@given(st.text(max_size=200))
def test_any_text_is_refused_in_one_line(text: str) -> None:
    """Text that is no stack raises one line."""
    with pytest.raises(ValueError, match="stack 'mine': ") as error:
        parse_stack(Stack, text, "mine")
    assert "\n" not in str(error.value)


@given(number=st.floats(0, 1e6, exclude_min=True), text=st.text())
def test_what_is_written_is_read_again(number: float, text: str) -> None:
    """Any text in the fitted half of a file comes back through TOML to the letter, any number to six digits."""
    run = STACK.runs[0].model_copy(update={"log": text, "step_s": number})
    written = tomllib.loads(stack_text(TEXT, STACK.model_copy(update={"runs": (run,)})))["runs"][0]
    assert written["log"] == text
    assert written["step_s"] == pytest.approx(number, rel=1e-5)


def test_a_written_stack_is_the_stack() -> None:
    """The file of a stack, written again, is the same to the letter."""
    assert stack_text(TEXT, STACK) == TEXT


def test_write_stack(tmp_path: Path) -> None:
    """A stack takes the place of what the file held, and leaves nothing else in its folder."""
    path = tmp_path / "mine.toml"
    path.write_text("old", encoding="utf-8")
    write_stack(path, TEXT)
    assert load_stack(str(path)) == STACK
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_that_is_no_stack_is_not_written(tmp_path: Path) -> None:
    """A half of a stack, or a text that no file holds, leaves the file as it was."""
    path = tmp_path / "mine.toml"
    path.write_text("old", encoding="utf-8")
    half = TEXT.partition("[startup]")[0]
    assert parse_stack(Premises, half, "mine").name == "moai-24.2"
    for text, message in ((half, "startup: is missing"), (f"{TEXT}# \ud800", "")):
        with pytest.raises(ValueError, match=rf"^stack '.*mine\.toml': {message}"):
            write_stack(path, text)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["none/mine.toml", "folder", "x" * 300, "a\0b"])
def test_a_stack_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    """A folder that is not there, a folder itself, and names that no file has are one line; nothing is left over."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r": cannot be written; check its folder, and the room there$") as error:
        write_stack(tmp_path / name, TEXT)
    assert str(error.value).isprintable()
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_an_unseen_source_has_the_mean_factor() -> None:
    """Of a source that was never measured the factor lies between the least and the largest of those that were."""
    stack = load_stack("generic")
    seen = [stack.efficiencies("llama", "h100-sxm-80gb", source).family_factor for source in stack.fit.sources]
    assert min(seen) < stack.efficiencies("llama", "h100-sxm-80gb", "mine").family_factor < max(seen)
    assert stack.efficiencies("llama", "h100-sxm-80gb") == stack.efficiencies("llama", "h100-sxm-80gb", "mine")
