import re
import xml.etree.ElementTree as ET

import pytest

from estimator.predict.interval import Range
from estimator.report import figures
from estimator.report.figures import Believed, Compared

RUNS = [Compared(1.0, Range(1.1, 0.9, 1.4), "h100"), Compared(20.0, Range(15.0, 10.0, 22.0), "a100")]
PICTURES = {
    "compared": figures.predicted_against_measured("Seconds", "s", RUNS),
    "residuals": figures.residuals("Errors", {"tp2": [0.1, -0.2], "a & b": [0.0]}),
    "coverage": figures.coverage("Coverage", [0.5, 0.9], {"halves": [0.4, 1.0]}),
    "shares": figures.shares("Parts", {"tp2": {"matmul": 3.0, "host": 1.0}, "dp": {"matmul": 1.0}}),
    "beliefs": figures.beliefs("Parameters", [Believed("matmul_efficiency", 0.8, 0.2, 0.6, 0.05)]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_well_formed_and_within_its_frame(name: str) -> None:
    """Each is an SVG document with a title, whose coordinates lie in it, and whose numbers are numbers."""
    picture = PICTURES[name]
    root = ET.fromstring(picture)  # noqa: S314 - our own text
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert root[0].text
    assert "nan" not in picture.replace("<title>", "")
    for x, y in re.findall(r"M(-?[\d.]+) (-?[\d.]+)", picture):
        assert -1 <= float(x) <= width + 1
        assert -1 <= float(y) <= height + 1


def test_a_dot_per_run_and_a_line_per_interval() -> None:
    """A picture of runs has a dot and an upright line for each, in the colour of its kind."""
    picture = PICTURES["compared"]
    assert picture.count("h0") == len(RUNS) + 2  # and two of the legend
    assert len(re.findall(r'class="thin s-[ab]"', picture)) == 2


def test_shares_fill_their_bar() -> None:
    """The parts of a bar are as wide together as the bar of one part."""
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', PICTURES["shares"])]
    assert widths[0] + widths[1] == pytest.approx(widths[2], abs=0.2)
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.4)


def test_a_long_label_is_cut() -> None:
    """A label that does not fit beside its row ends in dots."""
    assert "x" * 31 + "..." in figures.residuals("Errors", {"x" * 50: [0.1]})
