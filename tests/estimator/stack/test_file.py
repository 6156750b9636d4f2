import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.stack import stack as stacks
from estimator.stack.file import (
    Place,
    fit_text,
    own_premises,
    place_of,
    refuse_replacing,
    refuse_unwritable,
    write_fit,
    write_stack,
)
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
    """A fit takes the place of what the file held, which is kept, beside premises that stay as they are."""
    premises, path = tmp_path / "mine.toml", tmp_path / "mine.fit.json"
    shutil.copy(stack_path("moai-24.2"), premises)
    path.write_text("old", encoding="utf-8")
    write_fit(STACK, fit_path(str(premises)))
    assert load_stack(str(premises)) == STACK
    assert premises.read_bytes() == stack_path("moai-24.2").read_bytes()
    kept = tmp_path / "mine.fit.json.bak"
    assert kept.read_text(encoding="utf-8") == "old"
    write_fit(STACK, path)  # as it is: nothing is to be kept
    assert kept.read_text(encoding="utf-8") == "old"
    assert set(tmp_path.iterdir()) == {premises, path, kept}


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


@pytest.mark.parametrize("name", builtin_stacks())
def test_a_stack_of_the_package_makes_one_of_ones_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fit goes with its premises into the working folder, under a name that tells both; they load there."""
    monkeypatch.chdir(tmp_path)
    place = place_of(name)
    assert place == (Path(f"{name}-own.fit.json"), Path(f"{name}-own.toml"))
    write_stack(load_stack(name), name, place)
    made = load_stack(f"{name}-own.toml")
    assert made == load_stack(name).model_copy(update={"name": f"{name}-own"})
    assert own_premises(name, "x").startswith(f"# The premises of {name}, which comes with the package; x.fit.json was")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}-own.toml", f"{name}-own.fit.json"}


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit, or premises, of one's own that are there are refused, with the mend."""
    monkeypatch.chdir(tmp_path)
    refuse_replacing(place_of("megatron"))
    Path("megatron-own.toml").touch()
    message = r"^write: megatron-own\.toml is there already; add --replace \(it is kept as megatron-own\.toml\.bak\)$"
    with pytest.raises(ValueError, match=message):
        refuse_replacing(place_of("megatron"))
    refuse_replacing(place_of("mine.toml"))
    Path("mine.fit.json").touch()
    with pytest.raises(ValueError, match=r"^write: mine\.fit\.json is there already; add --replace "):
        refuse_replacing(place_of("mine.toml"))


@pytest.mark.skipif("site-packages" in str(fit_path("megatron")), reason="of an installed package, fits stay")
def test_in_place_is_of_the_package() -> None:
    """In place a stack of the package is fitted in its checkout; one's own is none of these."""
    assert place_of("megatron", in_place=True) == Place(fit_path("megatron"))
    with pytest.raises(
        ValueError, match=r"^in-place: 'mine\.toml' does not come with the package; leave --in-place out"
    ):
        place_of("mine.toml", in_place=True)


def test_the_fit_of_an_installed_package_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A built-in stack is fitted in a checkout alone; elsewhere, or where it cannot be written, what to do is told."""
    data = tmp_path / "estimator" / "data"
    shutil.copytree(stack_path("megatron").parents[1], data)
    monkeypatch.setattr(stacks.resources, "files", lambda package: tmp_path / package)
    with pytest.raises(
        ValueError,
        match=r"^stack megatron: its fit is part of the installed package; leave out --in-place: the fit then goes to "
        r"megatron-own\.fit\.json$",
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
