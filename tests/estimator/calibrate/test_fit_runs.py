from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estimator.arrays import Array
from estimator.calibrate.fit_runs import FitProblem, targets
from estimator.runs.measured import Run
from estimator.runs.read import read_runs
from estimator.stack.stack import load_stack
from hardware.catalog import load_catalog
from tests.support.paths import TABLES

STACK = load_stack("megatron-deepspeed")
CASES = read_runs([TABLES / "vtrain_a100_single_node.csv"], load_catalog()).runs[::14]
ALL = np.arange(len(CASES))
TRUTH = {"matmul_efficiency": 0.7, "launch_s_per_layer": 3e-3, "attention_efficiency": 1.3}
PROBLEM = FitProblem(CASES, STACK.habits, STACK.priors)


def true_values() -> Array:
    """Return the logarithms behind the made runs: the priors', but for `TRUTH`."""
    found = PROBLEM.belief().mean.copy()
    for name, value in TRUTH.items():
        found[PROBLEM.names.index(name)] = np.log(value)
    return found


def made(log_noise: Array) -> list[Run]:
    """Return the runs with the seconds that the truth implies, with noise."""
    seconds = np.exp(PROBLEM.predict(true_values()[None, :], ALL)[0][0] + log_noise)
    return [replace(run, step_s=float(s)) for run, s in zip(CASES, seconds, strict=True)]


@given(seed=st.integers(0, 10**6))
@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow])
def test_made_runs_give_back_their_truth(seed: int) -> None:
    """From runs with 3 % of noise, one in ten of them twice as slow, the parameters return within standard errors."""
    random = np.random.default_rng(seed)
    noise = 0.03 * random.normal(size=len(CASES))
    noise[random.permutation(len(CASES))[: len(CASES) // 10]] += np.log(2)
    found = FitProblem(made(noise), STACK.habits, STACK.priors).fit(ALL)
    sd = np.sqrt(np.diag(found.solution.covariance))
    for name in TRUTH:
        i = found.names.index(name)
        assert abs(found.solution.values[i] - true_values()[i]) < 4 * sd[i] + 0.01, name


def test_permuting_runs_changes_nothing() -> None:
    """The order of the runs changes no parameter."""
    runs = made(0.02 * np.random.default_rng(0).normal(size=len(CASES)))
    first = FitProblem(runs, STACK.habits, STACK.priors).fit(ALL).fit
    second = FitProblem(runs[::-1], STACK.habits, STACK.priors).fit(ALL).fit
    assert second.log_values == pytest.approx(first.log_values, abs=1e-5)


def test_what_runs_do_not_tell_stays_at_its_prior() -> None:
    """One node says nothing of hops between nodes: median and width stay the prior's."""
    found = FitProblem(made(np.zeros(len(CASES))), STACK.habits, STACK.priors).fit(ALL).fit
    i, prior = found.names.index("hop_s"), STACK.priors["hop_s"]
    assert found.log_values[i] == pytest.approx(np.log(prior.median))
    assert found.covariance[i][i] ** 0.5 == pytest.approx(prior.log_sd)


def test_a_part_is_fitted_as_if_the_others_were_not() -> None:
    """What the runs outside the part measured changes nothing."""
    inside, outside = ALL[::2], ALL[1::2]
    runs = made(np.zeros(len(CASES)))
    other = [replace(c, step_s=9 * (c.step_s or 0)) if i in outside else c for i, c in enumerate(runs)]
    first, second = (FitProblem(r, STACK.habits, STACK.priors).fit(inside).fit for r in (runs, other))
    assert first == second


def test_targets_take_bounds_of_memory_and_no_unhealthy_seconds() -> None:
    """A run that ran bounds its memory from above, one out of memory from below; unhealthy seconds are not taken."""
    ran, failed = CASES[0], replace(CASES[1], step_s=None, fits=False)
    read, sick = replace(CASES[2], reserved_bytes=1e10), replace(CASES[3], why_unhealthy="hot")
    found = targets([ran, failed, read, sick], 0.5)
    assert found.step_rows.tolist() == [0, 2]
    assert dict(zip(found.memory_rows.tolist(), found.bound.tolist(), strict=True)) == {0: -1, 1: 1, 2: 0, 3: -1}
    assert found.log_bytes[found.bound == 1] == pytest.approx(np.log(0.5 * CASES[1].machine.accelerator.hbm_bytes))
