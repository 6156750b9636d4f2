import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.shape import load_shape
from estimator.stack import Stack, builtin_stacks, interval_ratio, load_stack, parse_stack, read_stack_text

TEXT = read_stack_text("moai-24.2")


def test_builtin_stacks_load() -> None:
    """Every built-in stack loads, and is called as its file."""
    assert "moai-24.2" in builtin_stacks()
    for name in builtin_stacks():
        assert load_stack(name).name == name


def test_every_habit_has_evidence() -> None:
    """Each habit of a built-in stack says why."""
    habits = load_stack("moai-24.2").habits
    assert set(habits.evidence) == set(type(habits).model_fields) - {"evidence"}


def test_fused_attention_is_by_family() -> None:
    """On the platform Qwen's attention is fused and Mistral's is not; `always` fuses all."""
    habits = load_stack("moai-24.2").habits
    mistral, qwen = load_shape("Mistral-7B-v0.1"), load_shape("Qwen1.5-7B")
    assert habits.fuses_attention(qwen)
    assert not habits.fuses_attention(mistral)
    assert habits.model_copy(update={"fused_attention": "always"}).fuses_attention(mistral)


@given(st.floats(0, 1), st.integers(3, 10**6))
def test_interval_widens_with_spread_and_with_fewer_runs(log_sd: float, runs: int) -> None:
    """An interval is never narrower for more spread or fewer degrees of freedom, and is 1 without spread."""
    assert interval_ratio(log_sd, runs) >= interval_ratio(log_sd, runs + 1) >= 1
    assert interval_ratio(log_sd + 0.1, runs) > interval_ratio(log_sd, runs)
    assert interval_ratio(0.0, runs) == 1


@pytest.mark.parametrize(("degrees", "quantile"), [(3, 2.353), (4, 2.132), (10, 1.812), (30, 1.697)])
def test_student_quantiles(degrees: int, quantile: float) -> None:
    """The 95 % quantiles of Student's t as tables print them, within 1 %."""
    assert math.log(interval_ratio(1.0, degrees)) == pytest.approx(quantile, rel=0.01)


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
        ("[fit]", "[fit", "not valid TOML"),
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
