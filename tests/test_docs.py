"""The examples of the pages under docs/, run; what was measured or fitted may move a little without a new page."""

import doctest
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
TOLERANCE = 0.2
"""Of a quantity; a fit that moves one further is worth a new page."""
QUANTITY = re.compile(r"\d[\d,]*\.\d+(?:e[+-]\d+)?|\d{1,3}(?:,\d{3})+|\d+e[+-]\d+")
"""A number with a point, a comma or an exponent: measured or predicted. Whole ones are counts and names, and exact."""


class Checker(doctest.OutputChecker):
    """Texts agree where their words do, and their quantities nearly."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        """Whether what was printed is what the page shows."""
        if super().check_output(
            *(" ".join(QUANTITY.sub("#", text).split()) + "\n" for text in (want, got)), optionflags
        ):
            shown, found = ([float(q.replace(",", "")) for q in QUANTITY.findall(text)] for text in (want, got))
            return found == pytest.approx(shown, rel=TOLERANCE)
        return False


def failures(page: str, name: str) -> str:
    """Return what of a page's examples came out otherwise; "" where nothing did."""
    examples = doctest.DocTestParser().get_doctest(page.replace("```", ""), {}, name, name, 0)
    told: list[str] = []
    doctest.DocTestRunner(Checker()).run(examples, out=told.append)
    return "".join(told)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_are_true(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in order from the repository's folder, each prints what the page shows."""
    monkeypatch.chdir(ROOT)
    text = page.read_text(encoding="utf-8")
    assert text.count(">>> ") > 0
    assert failures(text, page.name) == ""


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("21.0 (17.2 to 25.7) s", "22.9 (18.0 to 25.1) s"),
        ("4.0e+10  52,416", "4.2e+10\n 52,420"),
        ("16 plans", "16 plans"),
    ],
)
def test_what_moved_a_little_is_as_shown(printed: str, shown: str) -> None:
    """Quantities within a fifth, spaces aside, are what the page shows."""
    assert failures(f">>> print({printed!r})\n{shown}\n", "page") == ""


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("21.0 s", "31.0 s"),
        ("21.0 s", "21.0 min"),
        ("52,416", "32,416"),
        ("4e+10", "4e+11"),
        ("16 plans", "17 plans"),
        ("21.0 22.0", "21.0"),
        ("", "1"),
    ],
)
def test_what_is_otherwise_fails(printed: str, shown: str) -> None:
    """Another word, another count, or a quantity that is far off, is not what the page shows."""
    assert "Expected:" in failures(f">>> print({printed!r})\n{shown}\n", "page")
