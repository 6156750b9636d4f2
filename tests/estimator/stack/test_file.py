import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.stack import stack as stacks
from estimator.stack.file import fit_text, refuse_unwritable, write_fit
from estimator.stack.stack import Stack, builtin_stacks, fit_path, load_stack, parse_fit, stack_path

STACK = load_stack("moai-24.2")


@given(number=st.floats(0, 1e6, exclude_min=True), text=st.text())
def test_what_is_written_is_read_again(number: float, text: str) -> None:
    """Any text comes back through the file of a fit to the letter, any number to six digits."""
    startup = STACK.startup.model_copy(update={"evidence": text, "load_s": number})
    written = fit_text(STACK.model_copy(update={"startup": startup}))
    again = parse_fit(written.encode(), STACK, "mine").startup
    assert again.evidence == text
    assert again.load_s == pytest.approx(number, rel=1e-5)
    assert json.loads(written)["startup"]["evidence"] == text


@pytest.mark.parametrize("name", builtin_stacks())
def test_a_written_fit_is_the_fit(name: str) -> None:
    """The file of a fit, written again, is the same to the letter."""
    text = fit_path(name).read_text(encoding="utf-8")
    assert fit_text(load_stack(name)) == text


def test_write_fit(tmp_path: Path) -> None:
    """A fit takes the place of what the file held, beside premises that stay as they are, and leaves nothing else."""
    premises, path = tmp_path / "mine.toml", tmp_path / "mine.fit.json"
    shutil.copy(stack_path("moai-24.2"), premises)
    path.write_text("old", encoding="utf-8")
    write_fit(STACK, fit_path(str(premises)))
    assert load_stack(str(premises)) == STACK
    assert premises.read_bytes() == stack_path("moai-24.2").read_bytes()
    assert set(tmp_path.iterdir()) == {premises, path}


def test_a_fit_that_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    """What breaks a rule of the file leaves it as it was."""
    path = tmp_path / "mine.fit.json"
    path.write_text("old", encoding="utf-8")
    broken = STACK.model_copy(update={"fit": STACK.fit.model_copy(update={"log_values": ()})})
    with pytest.raises(ValueError, match=r"^fit '.*mine\.fit\.json': fit: log_values and covariance must have 9 rows"):
        write_fit(broken, path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["none/mine.fit.json", "folder", "x" * 300, "a\0b"])
def test_a_fit_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    """A folder that is not there, a folder itself, and names that no file has are one line; nothing is left over."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r": cannot be written; check its folder, and the room there$") as error:
        write_fit(STACK, tmp_path / name)
    assert str(error.value).isprintable()
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_the_fit_of_an_installed_package_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A built-in stack is fitted in a checkout alone; elsewhere, or where it cannot be written, what to do is told."""
    refuse_unwritable(str(tmp_path / "mine.toml"))
    data = tmp_path / "estimator" / "data"
    shutil.copytree(stack_path("megatron").parents[1], data)
    monkeypatch.setattr(stacks.resources, "files", lambda package: tmp_path / package)
    with pytest.raises(
        ValueError,
        match=r"^stack megatron: its fit is part of the installed package; copy '.*/stacks/megatron\.toml' to "
        r"mine\.toml, and give --stack mine\.toml: the fit then goes to mine\.fit\.json$",
    ):
        refuse_unwritable("megatron")
    (tmp_path / "pyproject.toml").touch()
    refuse_unwritable("megatron")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="its fit is part of the installed package"):
        refuse_unwritable("megatron")


def of_places(places: list[tuple[float, ...]]) -> Stack:
    """Return a stack that learned at these places."""
    stack = load_stack("mlperf-nvidia")
    found = stack.fit.step_residual
    assert found
    many = {"places": tuple(places), "weights": (0.5,) * len(places), "noise": (0.125,) * len(places)}
    fit = stack.fit.model_copy(update={"step_residual": found.model_copy(update=many)})
    return stack.model_copy(update={"fit": fit})


PLACE = st.tuples(*[st.sampled_from([0.0, 1.0, 1.5, 19.9008])] * 16)


@given(st.lists(PLACE, min_size=1, max_size=20))
def test_places_are_read_as_written(places: list[tuple[float, ...]]) -> None:
    """Places come back from their codes as they were, in their order."""
    stack = of_places(places)
    assert parse_fit(fit_text(stack).encode(), stack, "mine") == stack


def test_many_values_of_a_feature_take_longer_codes() -> None:
    """A feature of more than 256 values has codes of two bytes, and comes back as it was."""
    stack = of_places([(float(i), *(0.0,) * 15) for i in range(300)])
    text = fit_text(stack)
    assert '"code_bytes": 2' in text
    assert parse_fit(text.encode(), stack, "mine") == stack


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"codes": "', '"codes": "AAAA', "codes: .* bytes are not 16 numbers a place; fit anew"),
        ('"codes": "', '"codes": "' + "/" * 64, "codes: one is of no value of its feature; fit anew"),
        ('"codes": "', '"codes": "A', "codes: .* does not fit; base64 decoding error"),
        ('"code_bytes": 1', '"code_bytes": 3', "code_bytes: 3 does not fit"),
    ],
)  # fmt: skip
def test_codes_that_are_none(old: str, new: str, message: str) -> None:
    """Codes that are cut, of no value or no base64 are one line."""
    stack = of_places([(0.0,) * 16] * 3)
    text = fit_text(stack)
    assert old in text
    with pytest.raises(ValueError, match=rf"^fit 'mine': fit\.step_residual\.places: .*{message}") as error:
        parse_fit(text.replace(old, new, 1).encode(), stack, "mine")
    assert "\n" not in str(error.value)
