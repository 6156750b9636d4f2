from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.search.frontier import knee, pareto

Points = list[tuple[float, float]]

values = st.integers(1, 12).map(float) | st.floats(1e-3, 1e6)  # few enough to be equal, or of any size
points = st.lists(st.tuples(values, values), min_size=1, max_size=40)


def columns(drawn: Points) -> tuple[list[float], list[float]]:
    """Return the minutes and the USD of points."""
    return [minutes for minutes, _ in drawn], [usd for _, usd in drawn]


def beaten(point: tuple[float, float], drawn: Points) -> bool:
    """Whether another point is no worse in both and better in one."""
    return any(m <= point[0] and u <= point[1] and (m, u) != point for m, u in drawn)


def below_chord(drawn: Points) -> list[float]:
    """Return how far each point lies below the chord of the frontier, in scaled logarithms."""
    on = [point for point in drawn if not beaten(point, drawn)]
    ends = np.log([min(on), max(on)])
    width = ends.max(axis=0) - ends.min(axis=0)
    scaled = (np.log(drawn) - ends.min(axis=0)) / np.where(width > 0, width, 1)
    return [float(1 - x - y) for x, y in scaled]


@given(points)
def test_frontier_is_that_of_all_pairs(drawn: Points) -> None:
    """A point is on the frontier exactly where none of the others beats it; at least one always is."""
    found = pareto(*columns(drawn))
    assert found.tolist() == [not beaten(point, drawn) for point in drawn]
    assert found.any()


@given(points, st.floats(1, 10), st.floats(1, 10), st.data())
def test_a_beaten_point_changes_nothing(drawn: Points, slower: float, dearer: float, data: st.DataObject) -> None:
    """A point that another beats is off the frontier, and leaves it and its knee as they were."""
    minutes, usd = data.draw(st.sampled_from(drawn))
    more = [*drawn, (minutes * slower + 1, usd * dearer)]
    assert pareto(*columns(more)).tolist() == [*pareto(*columns(drawn)).tolist(), False]
    assert knee(*columns(more)) == knee(*columns(drawn))


@given(points)
def test_only_order_matters(drawn: Points) -> None:
    """Any rising function of an axis, and the other axis first, leave the frontier as it is."""
    minutes, usd = columns(drawn)
    found = pareto(minutes, usd).tolist()
    ranks = np.unique(usd, return_inverse=True)[1]
    assert pareto(minutes, ranks**3).tolist() == found
    assert pareto(np.unique(minutes, return_inverse=True)[1], usd).tolist() == found
    assert pareto(usd, minutes).tolist() == found


@given(st.data(), points)
def test_points_in_any_order(data: st.DataObject, drawn: Points) -> None:
    """A permutation of the points permutes the mask, and leaves the knee where it is."""
    order = data.draw(st.permutations(range(len(drawn))))
    other = [drawn[i] for i in order]
    assert pareto(*columns(other)).tolist() == [bool(pareto(*columns(drawn))[i]) for i in order]
    assert other[knee(*columns(other))] == drawn[knee(*columns(drawn))]


@given(points)
def test_knee_is_farthest_below_the_chord(drawn: Points) -> None:
    """The knee is on the frontier, and none of it lies farther below the chord between its ends."""
    found, below = knee(*columns(drawn)), below_chord(drawn)
    on = [i for i, point in enumerate(drawn) if not beaten(point, drawn)]
    assert found in on
    assert below[found] >= max(below[i] for i in on) - 1e-9


@given(points, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_knee_in_other_units(drawn: Points, hours: float, euros: float) -> None:
    """Other units, or a factor on all prices, leave the knee where it is, or at a point as far below the chord."""
    minutes, usd = columns(drawn)
    other, below = knee(np.array(minutes) * hours, np.array(usd) * euros), below_chord(drawn)
    assert below[other] == pytest.approx(below[knee(minutes, usd)], abs=1e-6)


@given(st.tuples(values, values), st.tuples(values, values))
def test_knee_of_two_points(first: tuple[float, float], second: tuple[float, float]) -> None:
    """Of one point the knee is that point; of two it is the cheaper, since neither is below the chord."""
    assert knee(*columns([first])) == 0
    assert knee(*columns([first, first])) == 0
    both = [first, second]
    assert both[knee(*columns(both))] == min(both, key=lambda point: (point[1], point[0]))


def test_knee_is_no_poor_compromise() -> None:
    """A point above the chord is on the frontier, and yet not the knee."""
    drawn = [(10.0, 100.0), (90.0, 90.0), (100.0, 10.0)]
    assert pareto(*columns(drawn)).all()
    assert knee(*columns(drawn)) == 2


def test_no_points() -> None:
    """No points have an empty frontier, and no knee."""
    assert pareto([], []).tolist() == []
    with pytest.raises(ValueError, match=r"^frontier: there is no point; give at least one$"):
        knee([], [])


@pytest.mark.parametrize("function", [pareto, knee])
@pytest.mark.parametrize(
    ("minutes", "usd", "message"),
    [
        ([1.0, 2.0], [3.0], r"^frontier: 2 minutes and 1 usd are no points; give one of each per point$"),
        ([[1.0]], [[1.0]], r"^frontier: 1 minutes and 1 usd are no points"),
        ([1.0, float("nan")], [1.0, 2.0], r"^frontier: minutes\[1\] = nan is not finite; leave such points out$"),
        ([1.0], [float("inf")], r"^frontier: usd\[0\] = inf is not finite"),
    ],
)
def test_values_that_are_no_points(
    function: Callable[..., object], minutes: list[float], usd: list[float], message: str
) -> None:
    """Lists of different lengths, and values that are no numbers, are refused with where they are."""
    with pytest.raises(ValueError, match=message):
        function(minutes, usd)


@pytest.mark.parametrize(("minutes", "usd"), [([0.0, 1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, -2.0])])
def test_knee_without_a_logarithm(minutes: list[float], usd: list[float]) -> None:
    """A price or a time that is not positive has a frontier, and no knee."""
    assert pareto(minutes, usd).any()
    with pytest.raises(ValueError, match=r"^frontier: (minutes|usd) of (0.0|-2.0) has no logarithm; leave such points"):
        knee(minutes, usd)
