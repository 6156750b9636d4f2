import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from hardware.errors import first_error, shown, unknown_name

FLAVORS = ["xLarge.512GB", "1.5xLarge.768GB", "4xLarge.2048GB", "6xLarge.3072GB", "mi300x8"]
ALIASES = {"xlarge": FLAVORS[0], "1.5xlarge": FLAVORS[1], "4xlarge": FLAVORS[2], "6xlarge": FLAVORS[3]}
VALUES = st.text() | st.binary() | st.integers() | st.floats() | st.lists(st.text())


@given(value=VALUES, length=st.integers(10, 100))
def test_shown_is_short_printable_ascii(value: object, length: int) -> None:
    """Whatever is shown takes one line of ASCII of at most the length."""
    text = shown(value, length)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= length


def test_shown_survives_what_python_does_not_print() -> None:
    """Tables thousands deep and integers of thousands of digits are named by their type."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "<list too long to show>"
    assert shown(10**9999) == "<int too long to show>"


@given(name=st.text())
def test_unknown_name_is_one_line_that_helps(name: str) -> None:
    """For any name, the error is one line of ASCII that proposes known names only."""
    message = unknown_name("flavor", name, FLAVORS, ALIASES)
    assert message.isascii()
    assert message.isprintable()
    prefix, _, proposal = message.rpartition(": ")
    assert prefix.startswith("unknown flavor ")
    if proposal.startswith("did you mean "):
        assert set(proposal.removeprefix("did you mean ").removesuffix("?").split(" or ")) <= set(FLAVORS)
    else:
        assert proposal == f"use one of {', '.join(FLAVORS)}"


@pytest.mark.parametrize(
    ("name", "proposal"),
    [
        ("5xLarge", "did you mean 4xLarge.2048GB or 6xLarge.3072GB?"),
        ("4xLarge.20", "did you mean 4xLarge.2048GB?"),
        ("mi300", "did you mean mi300x8?"),
        ("mi310x8", "did you mean mi300x8?"),
        ("xlagre", "did you mean xLarge.512GB or 6xLarge.3072GB?"),
        ("", f"use one of {', '.join(FLAVORS)}"),
        ("zzz", f"use one of {', '.join(FLAVORS)}"),
    ],
)
def test_what_was_meant(name: str, proposal: str) -> None:
    """A beginning, then numbers beside it, then a like spelling is what was meant; else every name is listed."""
    assert unknown_name("flavor", name, FLAVORS, ALIASES) == f"unknown flavor {name!r}: {proposal}"


def test_first_error_names_the_path() -> None:
    """The field inside a list is found by its place."""

    class Box(BaseModel):
        sizes: list[int]

    with pytest.raises(ValidationError) as caught:
        Box.model_validate({"sizes": [1, "two\n"]})
    assert first_error(caught.value).startswith("sizes.1: 'two\\n' does not fit; input should be a valid integer")
