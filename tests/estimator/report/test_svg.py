import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.report import svg
from estimator.report.svg import Axis

NUMBERS = st.floats(-1e6, 1e6)


@given(low=st.floats(1e-3, 10), factor=st.floats(1.5, 1e4), log=st.booleans(), value=st.floats(1e-4, 1e6))
def test_values_lie_within_their_axis(low: float, factor: float, log: bool, value: float) -> None:
    """The ends of an axis are its pixels, every value lies between them, and marks lie on the axis."""
    axis = Axis(low, low * factor, 10.0, 200.0, is_log=log)
    assert axis.at(low) == pytest.approx(10)
    assert axis.at(low * factor) == pytest.approx(200)
    assert 10 - 1e-6 <= axis.at(value) <= 200 + 1e-6
    assert all(low * (1 - 1e-6) <= mark <= low * factor * (1 + 1e-6) for mark in axis.ticks())


@given(low=st.floats(1e-3, 10), factor=st.floats(10, 1e4))
def test_marks_are_few_but_some(low: float, factor: float) -> None:
    """An axis over a decade or more has from 1 to 15 marks."""
    assert 1 <= len(Axis(low, low * factor, 0, 1, is_log=True).ticks()) <= 15
    assert 1 <= len(Axis(low, low * factor, 0, 1).ticks()) <= 10


@given(
    points=st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20),
    words=st.text(st.characters(codec="ascii", min_codepoint=32)),
)
def test_any_numbers_and_words_make_well_formed_pictures(points: list[tuple[float, float]], words: str) -> None:
    """A picture of any dots and words is an SVG document, and the same text for the same numbers."""
    made = [
        svg.picture(100, words, svg.dots(points, "a"), svg.text(1, 2, words), svg.legend(0, 0, [("a", words)]))
        for _ in range(2)
    ]
    assert made[0] == made[1]
    root = ET.fromstring(made[0])  # noqa: S314 - our own text
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root[0].text == (words or None)
