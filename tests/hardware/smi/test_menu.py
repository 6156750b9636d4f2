from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.catalog import load_catalog
from hardware.smi.menu import converse, menu_of

CATALOG = load_catalog()
MENU = menu_of(CATALOG)

MINE = """
[[flavor]]
id = "{id}"
node = "mi250-x4"
num_devices = 2
num_nodes = 1
{place}
sources = [{{ url = "https://example.com/a", checked = 2026-01-15 }}]
"""


def test_the_menu_of_the_page() -> None:
    """The platform's thirteen flavors have their numbers, the star is at the current one, the others come after."""
    lines = MENU.lines("4xLarge.2048GB")
    assert lines[:2] == ["1. Small.64GB", "2. Medium.128GB"]
    assert lines[7] == "8. 4xLarge.2048GB  *"
    assert lines[12:] == ["13. 48xLarge.24576GB", "   mi210x32", "   mi300x8"]
    assert [line for line in MENU.lines("mi300x8") if "*" in line] == ["   mi300x8  *"]
    assert MENU.span() == "1-13"


@pytest.mark.parametrize("flavor", CATALOG.flavors, ids=lambda flavor: flavor.id)
def test_each_flavor_can_be_selected(flavor: object) -> None:
    """A flavor is found by its number, where it has one, by its name and its other spellings."""
    numbers = [str(number) for number, numbered in MENU.numbered.items() if numbered == flavor]
    for answer in [*numbers, flavor.id, flavor.id.upper(), *flavor.aliases]:  # type: ignore[attr-defined]
        assert MENU.flavor(answer) == flavor


@pytest.mark.parametrize("answer", ["", "0", "14", "-1", "+8", "8.0", "1" * 99, "0" * 8 + "14", "\u0668", "08x", "8 "])
def test_what_is_not_on_the_menu(answer: str) -> None:
    """Another number, or none, is refused in one line that says what is on it."""
    with pytest.raises(
        ValueError, match=r"^(selection: '.* is not on the menu; use 1-13, or a name|unknown flavor .*)$"
    ):
        MENU.flavor(answer)


@given(answer=st.text())
def test_any_answer_is_a_flavor_or_one_line(answer: str) -> None:
    """Whatever is typed selects a flavor, or is refused in one line of ASCII."""
    try:
        assert MENU.flavor(answer) in CATALOG.flavors
    except ValueError as error:
        assert str(error).isascii()  # noqa: PT017 - an answer may be good
        assert str(error).isprintable()  # noqa: PT017


def test_a_users_catalog_comes_after(tmp_path: Path) -> None:
    """A user's flavor comes after the menu; with a place of its own it has that number; a taken place stays taken."""
    mine = tmp_path / "mine.toml"
    places = {"mine": "", "mine-20": "menu_index = 20", "mine-8": "menu_index = 8"}
    mine.write_text("".join(MINE.format(id=name, place=place) for name, place in places.items()))
    menu = menu_of(load_catalog([mine]))
    assert menu.lines()[13:] == ["20. mine-20", "   mi210x32", "   mi300x8", "   mine", "   mine-8"]
    assert menu.flavor("8").id == "4xLarge.2048GB"
    assert menu.span() == "1-20"


@pytest.mark.parametrize(
    ("typed", "acted"),
    [("", []), ("q\n", []), ("Q\n", []), (" q \n", []), ("8\nq\n9\n", ["8"]), ("8\n9", ["8", "9"])],
)
def test_a_dialogue_ends(typed: str, acted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Selections are acted upon in turn, until q, Q or the end of the input; nothing behind that counts."""
    done: list[str] = []
    monkeypatch.setattr("sys.stdin", StringIO(typed))
    converse("1-13", str, done.append)
    assert done == acted


def test_a_pipe_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a pipe a wrong selection ends the dialogue, and what follows it is not done."""
    done: list[object] = []
    monkeypatch.setattr("sys.stdin", StringIO("1\n14\n2\n"))
    with pytest.raises(ValueError, match="selection: '14' is not on the menu; use 1-13, or a name"):
        converse(MENU.span(), MENU.flavor, done.append)
    assert done == [MENU.flavor("1")]
