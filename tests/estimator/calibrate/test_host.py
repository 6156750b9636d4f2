from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.calibrate.host import host_paces, startup_of
from estimator.runs.measured import Startup
from tests.support.measured import moai_logs

LOGS = moai_logs().runs
(SEED,) = (run for run in LOGS if "mistral" in run.name)


def test_logs_of_one_pace_show_one() -> None:
    """Windows without a gap show one pace, as few windows do, and no slow steps are assumed; the five logs show two."""
    assert host_paces([replace(SEED, launch_windows_s=(1.0, 1.01, 1.02, 1.03))]) == (0.0, 1.0)
    assert host_paces([replace(SEED, launch_windows_s=(1.0, 2.0)), replace(SEED, launch_windows_s=())]) == (0.0, 1.0)
    fraction, ratio = host_paces(LOGS)
    assert 0.3 < fraction < 0.7
    assert 1.2 < ratio < 1.5


@given(st.integers(2, 20), st.integers(2, 20), st.floats(1.2, 3.0), st.floats(0.01, 100.0), st.randoms())
def test_two_paces_are_found(num_fast: int, num_slow: int, ratio: float, fast_s: float, random: object) -> None:
    """Of windows at two paces, in any order and unit, the fraction at the slow one and the ratio come back."""
    windows = [fast_s] * num_fast + [fast_s * ratio] * num_slow
    random.shuffle(windows)  # type: ignore[attr-defined]
    found = host_paces([replace(SEED, launch_windows_s=tuple(windows))] * 2)
    assert found == pytest.approx((num_slow / (num_slow + num_fast), ratio))


def test_a_startup_is_of_the_runs_that_tell_it() -> None:
    """Each of its seconds is the median over the runs that tell them, 0 where none does; the load is as premised."""
    told = [Startup(1.0, None, 5.0), Startup(3.0, None, 9.0), Startup(5.0), None]
    found = startup_of([replace(SEED, step_s=1.0, startup=one) for one in told], load_s=2.0)
    assert (found.load_s, found.request_s, found.search_s_per_candidate) == (2.0, 3.0, 0.0)
    assert found.first_step_excess_s == 6.0
    assert found.evidence.startswith("request: median over 3 logs, of which 90 % took below ")
    assert "; first step excess: median over 2 logs" in found.evidence
    assert found.evidence.endswith("; the rest as premised")
    none = startup_of([replace(SEED, startup=None)], load_s=2.0)
    assert (none.first_step_excess_s, none.evidence) == (0.0, "assumed: the runs say nothing of it")


def test_the_first_step_of_the_seed_is_its_median() -> None:
    """Of the five logs, the startup is the median of each of their seconds."""
    found = startup_of(LOGS, load_s=43.7)
    told = [(run.startup.first_step_s, run.step_s) for run in LOGS if run.startup]
    excess = [first - step_s for first, step_s in told if first is not None and step_s is not None]
    assert found.first_step_excess_s == pytest.approx(np.median(excess))
    assert 30 < found.first_step_excess_s < 100
