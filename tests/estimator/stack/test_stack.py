from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.stack.stack import (
    builtin_stacks,
    fit_path,
    load_premises,
    load_stack,
    parse_fit,
    parse_premises,
    stack_path,
)
from estimator.work.shape import load_shape

PREMISES, STACK = load_premises("moai-24.2"), load_stack("moai-24.2")
WRITTEN = stack_path("moai-24.2").read_text(encoding="utf-8")
FOUND = fit_path("moai-24.2").read_text(encoding="utf-8")


def test_builtin_stacks_load() -> None:
    """Every built-in stack loads, is called as its file, and was fitted; no fit is of no stack."""
    assert "moai-24.2" in builtin_stacks()
    for name in builtin_stacks():
        assert load_stack(name).name == name
    assert {path.stem for path in fit_path("generic").parent.iterdir()} == set(builtin_stacks())


def test_every_habit_has_evidence() -> None:
    """Each habit that a built-in stack states says why; what it does not state is a habit of few, or a recipe's."""
    for name in builtin_stacks():
        habits = load_premises(name).habits
        assert set(habits.evidence) == habits.model_fields_set - {"evidence"}, name


def test_fused_attention_is_by_family() -> None:
    """On the platform Qwen's attention is fused and Mistral's is not; `always` fuses all."""
    habits = PREMISES.habits
    mistral, qwen = load_shape("Mistral-7B-v0.1"), load_shape("Qwen1.5-7B")
    assert habits.fuses_attention(qwen)
    assert not habits.fuses_attention(mistral)
    assert habits.model_copy(update={"fused_attention": "always"}).fuses_attention(mistral)


def test_premises_say_what_the_log_times() -> None:
    """The premises say what the log times and how long loading takes, each with its evidence."""
    log = PREMISES.log
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
        ("[habits]", "[habits", "not valid TOML: .*; correct it there"),
        pytest.param("[log]", "a = " + "[" * 100_000, "not valid TOML: nested too deep; correct it there", id="deep"),
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
        ("[log]", "[fit]\nnames = []\n[log]", "fit: is not a field of this record"),
    ],
)  # fmt: skip
def test_bad_premises_name_file_field_and_rule(old: str, new: str, message: str) -> None:
    """Broken premises raise one line that names the file, the field and the rule."""
    assert old in WRITTEN
    with pytest.raises(ValueError, match=rf"^stack 'mine': .*{message}") as error:
        parse_premises(WRITTEN.replace(old, new, 1), "mine")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema": "fit/1"', '"schema": "stack/1"', "schema: 'stack/1' does not fit"),
        ('"names": ["matmul_efficiency"', '"names": ["matmul"', r"fit: names are .* they must be"),
        ('"names": [', '"names": ]', "not valid JSON: .*; fit it again"),
        pytest.param('"fit": {', '"fit": ' + "[" * 100_000, "not valid JSON: .*; fit it again", id="deep"),
        pytest.param('"load_s": 43.7', '"load_s": ' + "9" * 5000, "not valid JSON: .number out of range", id="digits"),
        ('"log_values": [', '"log_values": [51, ', r"log_values\.0: 51 .* less than or equal to 50"),
        ('"covariance": [\n   [', '"covariance": [[101, ', r"covariance\.0\.0: 101 .* less than or equal to 100"),
        ('"covariance": [\n   [', '"covariance": [[NaN, ', r"covariance\.0\.0: nan does not fit"),
        ('"family_log_sd": ', '"family_log_sd": 1e9, "a": ', "family_log_sd: 1000000000.0 .* less than"),
        ('"degrees_of_freedom": ', f'"degrees_of_freedom": 1{"0" * 400}, "a": ', "degrees_of_freedom: 1000.*"),
        ('"load_s": ', '"load_s": NaN, "a": ', r"startup\.load_s: nan does not fit"),
        ('"memory_ratio", "llama"', '"llama"', "names are .* they must be the parameters in their order, then"),
    ],
)  # fmt: skip
def test_a_bad_fit_names_file_field_and_rule(old: str, new: str, message: str) -> None:
    """A broken file of a fit raises one line that names it, the field and the rule."""
    assert old in FOUND
    with pytest.raises(ValueError, match=rf"^fit 'mine': .*{message}") as error:
        parse_fit(FOUND.replace(old, new, 1).encode(), PREMISES, "mine")
    assert "\n" not in str(error.value)


@given(st.text(max_size=200))
def test_any_text_is_refused_in_one_line(text: str) -> None:
    """Text that is neither premises nor a fit raises one line."""
    with pytest.raises(ValueError, match=r"^stack 'mine': ") as error:
        parse_premises(text, "mine")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^fit 'mine': ") as error:
        parse_fit(text.encode(), PREMISES, "mine")
    assert "\n" not in str(error.value)


def test_a_stack_that_was_never_fitted(tmp_path: Path) -> None:
    """Premises alone are premises; as a stack they end in one line that says how to fit them."""
    path = tmp_path / "mine.toml"
    path.write_text(WRITTEN, encoding="utf-8")
    assert load_premises(str(path)) == PREMISES
    with pytest.raises(
        ValueError,
        match=r"mine\.toml': was never fitted, there is no 'mine\.fit\.json' beside it; fit it: calibrate RUNS --stack "
        r"STACK --write$",
    ):
        load_stack(str(path))
    fit_path(str(path)).mkdir()
    with pytest.raises(ValueError, match=r"^fit .*mine\.fit\.json: is a directory, not a file; name a file in it$"):
        load_stack(str(path))


def test_a_stack_whose_premises_changed() -> None:
    """A fit of other parameters than the premises have priors of is refused, and how to mend it is told."""
    other = load_premises("nanotron")
    with pytest.raises(
        ValueError, match=r"^fit 'mine': the fit found .*, and the premises have priors of .*; fit it again: "
    ):
        parse_fit(FOUND.encode(), other, "mine")


def test_an_unknown_stack_is_told() -> None:
    """A name that is neither built in nor a readable file names those that are; one that can be no path is told so."""
    with pytest.raises(ValueError, match=r"^unknown stack 'none': use one of generic, .*, or a readable TOML file$"):
        load_stack("none")
    with pytest.raises(ValueError, match=r"^stack 'a\\x00b': is no path of a file; give one$"):
        load_stack("a\0b")


def test_an_unseen_source_has_the_mean_factor() -> None:
    """Of a source that was never measured the factor lies between the least and the largest of those that were."""
    stack = load_stack("generic")
    seen = [stack.efficiencies("llama", "h100-sxm-80gb", source).family_factor for source in stack.fit.sources]
    assert min(seen) < stack.efficiencies("llama", "h100-sxm-80gb", "mine").family_factor < max(seen)
    assert stack.efficiencies("llama", "h100-sxm-80gb") == stack.efficiencies("llama", "h100-sxm-80gb", "mine")
