import tomllib
from math import gamma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.counts import num_parameters
from estimator.formulas.failures import (
    DEVICE_MTBF_S,
    NODE_WRITE_BYTES_PER_S,
    Endurance,
    best_interval_s,
    checkpoint_bytes,
    endurance,
    goodput_fraction,
)
from estimator.work.shape import load_shape
from tests.support.paths import GOLDEN as GOLDEN_FOLDER
from tests.support.strategies import HABITS

GOLDEN = tomllib.loads((GOLDEN_FOLDER / "megatron.toml").read_text(encoding="utf-8"))
HOUR = 3600.0

devices = st.integers(1, 10**5)
sizes = st.floats(1e9, 1e14)
rates = st.floats(1e8, 1e13)
restarts = st.floats(1, 1e4)
mtbfs = st.floats(1e6, 1e9)
in_mtbf = st.floats(1e-9, 20)
factors = st.floats(1, 1000)


def young_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Return Young's interval, to the first order."""
    return float(np.sqrt(2 * checkpoint_s * mtbf_s))


def daly_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Return Daly's interval, his Eq. 37."""
    x = checkpoint_s / (2 * mtbf_s)
    return young_s(checkpoint_s, mtbf_s) * (1 + x**0.5 / 3 + x / 9) - checkpoint_s if x < 1 else mtbf_s


def simulated_goodput(
    interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float, shape: float = 1.0, num: int = 50_000
) -> float:
    """Return the useful part of a run of many intervals, failures drawn one by one on its clock.

    Times between failures are Weibull: of shape 1 exponential, of less in bursts.
    """
    random, scale = np.random.default_rng(20240723), mtbf_s / gamma(1 + 1 / shape)
    clock, failure = 0.0, scale * random.weibull(shape)

    def ran(seconds: float) -> bool:
        """Advance by so many seconds, or to the failure before; whether there was none."""
        nonlocal clock, failure
        if clock + seconds <= failure:
            clock += seconds
            return True
        clock = failure
        failure += scale * random.weibull(shape)
        return False

    for _ in range(num):
        while not ran(interval_s + checkpoint_s):
            while not ran(restart_s):
                pass
    return num * interval_s / clock


@given(devices, sizes, rates, restarts, mtbfs)
def test_goodput_is_a_fraction(num: int, size: float, rate: float, restart_s: float, mtbf_s: float) -> None:
    """Some of the time is useful, never more than all; where any is, checkpoints alone cost less than the rest."""
    found = endurance(num, size, rate, restart_s, mtbf_s)
    assert 0 <= found.goodput_fraction <= found.interval_s / (found.interval_s + found.checkpoint_s) <= 1
    assert found.goodput_fraction > 0 or found.checkpoint_s + restart_s > 100 * found.mtbf_s


@given(devices, devices, sizes, rates, restarts, mtbfs, st.booleans())
def test_more_devices_never_help(
    num: int, more: int, size: float, rate: float, restart_s: float, mtbf_s: float, scales: bool
) -> None:
    """Goodput does not rise with the devices, at one write rate, nor at one that grows with them."""
    few, many = (endurance(n, size, rate * n / 1e5 if scales else rate, restart_s, mtbf_s) for n in (num, num + more))
    assert many.goodput_fraction <= few.goodput_fraction * (1 + 1e-9)
    assert many.mtbf_s < few.mtbf_s


@given(devices, sizes, rates, restarts, mtbfs, factors)
def test_what_helps(num: int, size: float, rate: float, restart_s: float, mtbf_s: float, factor: float) -> None:
    """Goodput does not fall with smaller checkpoints, faster writes, shorter restarts or sturdier devices."""
    found = endurance(num, size, rate, restart_s, mtbf_s).goodput_fraction * (1 - 1e-9)
    assert endurance(num, size / factor, rate, restart_s, mtbf_s).goodput_fraction >= found
    assert endurance(num, size, rate * factor, restart_s, mtbf_s).goodput_fraction >= found
    assert endurance(num, size, rate, restart_s / factor, mtbf_s).goodput_fraction >= found
    assert endurance(num, size, rate, restart_s, mtbf_s * factor).goodput_fraction >= found


@given(in_mtbf, restarts, mtbfs)
def test_the_interval_is_the_best(checkpoint: float, restart_s: float, mtbf_s: float) -> None:
    """No interval of a fine grid, from a thousandth of the best to a thousand times it, gives more goodput."""
    checkpoint_s = checkpoint * mtbf_s
    best = best_interval_s(checkpoint_s, mtbf_s)
    grid = np.append(best * np.logspace(-3, 3, 2001), mtbf_s * np.logspace(-6, 1, 2001))
    highest = goodput_fraction(best, checkpoint_s, restart_s, mtbf_s)
    assert (goodput_fraction(grid, checkpoint_s, restart_s, mtbf_s) <= highest * (1 + 1e-12)).all()


@given(in_mtbf, mtbfs)
def test_the_interval_against_the_papers(checkpoint: float, mtbf_s: float) -> None:
    """The interval is within 7 % of Daly's Eq. 37, within 1 % below M/2, and below Young's and below M."""
    checkpoint_s = checkpoint * mtbf_s
    found = best_interval_s(checkpoint_s, mtbf_s)
    assert found == pytest.approx(daly_s(checkpoint_s, mtbf_s), rel=0.01 if checkpoint < 0.5 else 0.07)
    assert found <= min(young_s(checkpoint_s, mtbf_s), mtbf_s) * (1 + 1e-12)


@given(st.floats(1e-12, 1e-6), mtbfs)
def test_the_interval_of_short_checkpoints(checkpoint: float, mtbf_s: float) -> None:
    """Where a checkpoint takes no time to speak of, Young's interval is the best one."""
    checkpoint_s = checkpoint * mtbf_s
    assert best_interval_s(checkpoint_s, mtbf_s) == pytest.approx(young_s(checkpoint_s, mtbf_s), rel=1e-3)


@pytest.mark.parametrize(
    ("interval_s", "checkpoint_s", "restart_s", "mtbf_s"),
    [
        (250.0, 3.0, 600.0, 3.1 * HOUR),
        (2000.0, 300.0, 600.0, 3.1 * HOUR),
        (600.0, 60.0, 600.0, HOUR),
        (4 * HOUR, 600.0, 2 * HOUR, 24 * HOUR),
        (900.0, 900.0, 1800.0, 0.5 * HOUR),
    ],
)
def test_goodput_against_simulation(interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float) -> None:
    """The closed form is within 2 % of a simulated run of 50,000 intervals."""
    simulated = simulated_goodput(interval_s, checkpoint_s, restart_s, mtbf_s)
    assert goodput_fraction(interval_s, checkpoint_s, restart_s, mtbf_s) == pytest.approx(simulated, rel=0.02)


@pytest.mark.parametrize("interval_s", [250.0, 2000.0])
def test_failures_in_bursts(interval_s: float) -> None:
    """Failures of the same mean that come in bursts cost less than the closed form says, by up to 5 %."""
    run = (interval_s, interval_s / 80, 600.0, 3.1 * HOUR)
    assert 0.95 < goodput_fraction(*run) / simulated_goodput(*run, shape=0.5) < 0.995


def test_a_run_fails_when_any_device_does() -> None:
    """The first failure among devices comes, on average, after the run's mean time between failures."""
    first = np.random.default_rng(54).exponential(1e6, (20_000, 64)).min(axis=1).mean()
    assert endurance(64, 1e12, 1e12, device_mtbf_s=1e6).mtbf_s == pytest.approx(first, rel=0.02)


@given(st.lists(devices, min_size=1, max_size=5), sizes, rates)
def test_arrays_are_runs_one_by_one(drawn: list[int], size: float, rate: float) -> None:
    """Runs in an array fare as each does alone."""
    together = endurance(np.array(drawn), size, rate)
    alone = [endurance(num, size, rate) for num in drawn]
    for field in Endurance._fields:
        expected = [float(getattr(one, field)) for one in alone]
        assert np.broadcast_to(getattr(together, field), len(drawn)).tolist() == pytest.approx(expected, rel=1e-12)


def test_llama() -> None:
    """With its own storage the model gives what Meta reports of Llama 3 405B: over 90 % of the time effective."""
    found = endurance(16384, 405e9 * 14, 2e12)
    device_h = DEVICE_MTBF_S / HOUR
    assert device_h == pytest.approx(50_677, abs=1)
    assert found.mtbf_s / HOUR == pytest.approx(54 * 24 / 419)
    assert 0.9 < found.goodput_fraction < 0.95


def test_checkpoint_of_a_trillion_parameters() -> None:
    """Weights, master copy and two Adam moments are the 13.8 TB that Narayanan et al. print, within 3 %."""
    size = checkpoint_bytes(num_parameters(load_shape("megatron-1t")), HABITS)
    assert float(size) / 1e12 == pytest.approx(GOLDEN["checkpoint_tb"], rel=0.03)
    assert endurance(3072, size, 384 * NODE_WRITE_BYTES_PER_S).checkpoint_s == pytest.approx(51.7, rel=0.01)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), np.array([1.0, 0.0])])
@pytest.mark.parametrize("name", ["num_devices", "checkpoint_bytes", "write_bytes_per_s", "restart_s", "device_mtbf_s"])
def test_quantities_that_no_run_has(name: str, value: float) -> None:
    """A quantity that is not positive and finite is refused by its name."""
    good = {"num_devices": 8, "checkpoint_bytes": 1e9, "write_bytes_per_s": 1e9, "restart_s": 60, "device_mtbf_s": 1e8}
    with pytest.raises(
        ValueError, match=rf"^failures: {name} = (0.0|-1.0|nan|inf) is not a positive number; give one$"
    ):
        endurance(**(good | {name: value}))
