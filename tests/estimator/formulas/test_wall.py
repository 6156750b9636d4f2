from datetime import date

import pytest

from estimator.formulas.wall import energy_kwh, price_range, wall
from estimator.stack.stack import Startup
from hardware.catalog import load_catalog
from hardware.models import Price, Source

STARTUP = Startup(load_s=10, request_s=5, search_s_per_candidate=2, first_step_excess_s=60, evidence="made")


def price(usd: float, high: float | None = None) -> Price:
    """Return a price of a made-up provider."""
    source = Source(url="https://example.org", checked=date(2026, 1, 1))
    return Price(
        accelerator="mi250",
        provider="made",
        market="on-demand",
        usd_per_device_h=usd,
        usd_per_device_h_high=high,
        on=date(2026, 1, 1),
        sources=(source,),
    )


def test_wall_is_the_sum_of_its_parts() -> None:
    """Startup is load, request and search; then the first step, longer than the others; then those."""
    found = wall(20.0, 144, STARTUP, num_candidates=16)
    assert found.startup_s == 10 + 5 + 2 * 16
    assert found.first_step_s == 60 + 20
    assert found.seconds == 47 + 60 + 144 * 20


def test_what_a_first_step_does_once_adds_to_it() -> None:
    """However long steps are, the first takes as much longer: its compilation does not hide in them."""
    for step_s in (1.0, 100.0):
        assert wall(step_s, 1, STARTUP, num_candidates=0).first_step_s == step_s + 60


def test_price_range() -> None:
    """Median, least and greatest; an unclear unit spans both readings; no price is None."""
    assert price_range([]) is None
    assert price_range([price(1.0), price(4.0), price(2.0)]) == (2.0, 1.0, 4.0)
    assert price_range([price(1.0), price(4.0)]) == (2.5, 1.0, 4.0)
    assert price_range([price(0.5, 1.5)]) == (1.0, 0.5, 1.5)


def test_energy_is_power_times_time() -> None:
    """Eight devices at their design power for an hour."""
    device = load_catalog().accelerator("mi300x")
    assert energy_kwh(3600.0, 8, device) == pytest.approx(8 * 0.75)
