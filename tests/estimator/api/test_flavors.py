import pytest

from estimator import Estimates, estimate
from estimator.api.flavors import COLUMNS


@pytest.fixture(scope="module")
def every() -> Estimates:
    """Return the seed run on every flavor."""
    return estimate(flavor="all", deadline="1h", objective="cost", space="moai")


def test_a_row_a_flavor(every: Estimates) -> None:
    """The frame has each flavor's best plan: minutes and USD with their intervals, nan where nothing fits."""
    frame = every.to_frame()
    assert tuple(frame.columns) == COLUMNS
    assert list(frame.flavor) == [one.flavor.id for one in every]
    for row, one in zip(frame.itertuples(), every, strict=True):
        assert row.possible == (one.best is not None) == (row.reason == "")
        if one.best:
            assert row.total_minutes == pytest.approx(one.best.wall_s.value / 60)
            assert row.total_minutes_low < row.total_minutes < row.total_minutes_high
            assert row.plan == str(one.best.plan)
    fitting = frame[frame.possible]
    assert frame.step_s.notna().equals(frame.possible)
    assert (fitting.missed != "").equals(fitting.total_minutes > 60)


def test_the_frontier_in_the_frame(every: Estimates) -> None:
    """On the frontier are flavors that no other beats in minutes and USD; the chosen one is the cheapest in time."""
    frame = every.to_frame().dropna(subset=["usd"])
    for row in frame.itertuples():
        beaten = (frame.total_minutes <= row.total_minutes) & (frame.usd <= row.usd)
        beaten &= (frame.total_minutes < row.total_minutes) | (frame.usd < row.usd)
        assert row.frontier == (not beaten.any())
    assert set(every.frontier) == set(frame.flavor[frame.frontier])
    assert frame.total_minutes[frame.marks.str.contains("fastest")].tolist() == [frame.total_minutes.min()]
    in_time = frame[(frame.total_minutes <= 60) & ~frame.risky]
    assert frame.usd[frame.chosen].tolist() == [in_time.usd.min()]


def test_an_estimate_by_its_flavor(every: Estimates) -> None:
    """Either spelling names one; one that is not there is told."""
    assert every["4xlarge"] is every["4xLarge.2048GB"]
    with pytest.raises(ValueError, match="unknown flavor '5xLarge': did you mean 4xLarge"):
        every["5xLarge"]


def test_why_no_flavor_is_chosen() -> None:
    """One line says that no flavor keeps the limits, or that no plan fits any; "" where one is chosen."""
    assert estimate(flavor=["4xlarge"]).problem == ""
    assert estimate(flavor=["4xlarge"], budget=1).problem.startswith(
        "no flavor keeps the limits; on 4xLarge.2048GB the best plan costs "
    )
    nothing = estimate(flavor=["Small.64GB", "Medium.128GB"])
    assert (nothing.chosen, nothing.best) == (None, None)
    assert nothing.problem.startswith("no plan fits any flavor; the nearest is on Medium.128GB: the nearest, ")
    assert nothing.problem in repr(nothing)


def test_what_a_notebook_shows(every: Estimates) -> None:
    """The text is a few lines, the table of a notebook has a row a flavor."""
    assert repr(every).startswith(
        f"mistralai/Mistral-7B-v0.1 on {len(every)} flavors, stacks generic, moai-24.2, reference: "
    )
    assert every.chosen is not None
    assert f"least cost: {every.chosen.flavor.id}, " in repr(every).replace(", cheapest", "").replace(", knee", "")
    assert every._repr_html_().count("<tr") == len(every) + 1
