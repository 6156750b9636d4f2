from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estimator.arrays import Array
from estimator.calibrate.asking import answered
from estimator.calibrate.fit_runs import FitProblem, RunsFit
from estimator.calibrate.run_model import LAUNCH, READ, STEP, TOTAL, RunModel
from estimator.runs.measured import Run
from estimator.stack.stack import Premises, load_premises
from tests.support.measured import moai_logs, table_runs

PREMISES = load_premises("megatron-deepspeed")
CASES = table_runs("vtrain_a100_single_node")[::14]
ALL = np.arange(len(CASES))
TRUTH = {"matmul_efficiency": 0.7, "launch_s_per_layer": 3e-3, "attention_efficiency": 1.3}

MOAI = load_premises("moai-24.2")
LOGS = moai_logs().runs
LOGS_TRUTH = {
    "matmul_efficiency": 0.7,
    "memory_efficiency": 0.5,
    "exposed_communication": 0.3,
    "launch_s_per_layer": 0.02,
    "launch_s_per_step": 0.2,
    "memory_ratio": 1.05,
}


def modelled(runs: Sequence[Run], premises: Premises = PREMISES) -> RunModel:
    """Return the model of runs."""
    return RunModel(runs, premises.habits, premises.priors)


def fitted(runs: Sequence[Run], rows: Array | None = None, premises: Premises = PREMISES) -> tuple[FitProblem, RunsFit]:
    """Return a fit to runs, or to some of them."""
    model = modelled(runs, premises)
    problem = FitProblem(model, np.arange(len(runs)) if rows is None else rows)
    return problem, answered(problem.fit(problem.rows), model.predict)


def true_values(model: RunModel, truth: dict[str, float]) -> Array:
    """Return the logarithms behind made runs: the priors', but for the truth; no factor."""
    medians = {name: prior.median for name, prior in model.priors.items()} | truth
    return np.array([np.log(medians.get(name, 1.0)) for name in model.names])


def made(log_noise: Array) -> list[Run]:
    """Return the runs with the seconds that the truth implies, with noise."""
    model = modelled(CASES)
    seconds = np.exp(model.predict(true_values(model, TRUTH)[None, :])[STEP, 0] + log_noise)
    return [replace(run, step_s=float(s)) for run, s in zip(CASES, seconds, strict=True)]


@given(seed=st.integers(0, 10**6))
@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow])
def test_made_runs_give_back_their_truth(seed: int) -> None:
    """From runs with 3 % of noise, one in ten of them twice as slow, the parameters return within standard errors."""
    random = np.random.default_rng(seed)
    noise = 0.03 * random.normal(size=len(CASES))
    noise[random.permutation(len(CASES))[: len(CASES) // 10]] += np.log(2)
    problem, found = fitted(made(noise))
    values = dict(zip(problem.names, found.solution.values, strict=True))
    sds = dict(zip(problem.names, np.sqrt(np.diag(found.solution.covariance)), strict=True))
    for name, truth in TRUTH.items():
        assert abs(values[name] - np.log(truth)) < 4 * sds[name] + 0.01, name


def test_seconds_launches_and_bytes_give_back_their_truth() -> None:
    """Fitted to the model's own seconds, launches and bytes of all devices, wide priors give the parameters back."""
    wide = {name: prior.model_copy(update={"log_sd": 3.0}) for name, prior in MOAI.priors.items()}
    model = modelled(LOGS, MOAI)
    logs = model.predict(true_values(model, LOGS_TRUTH)[None, :])[:, 0]
    runs = [
        replace(
            run,
            step_s=float(np.exp(logs[STEP, i])),
            step_log_se=1e-4,
            launch_windows_s=(float(np.exp(logs[LAUNCH, i])),) if run.launch_windows_s else (),
            total_bytes=float(np.exp(logs[TOTAL, i])) if run.total_bytes else None,
        )
        for i, run in enumerate(LOGS)
    ]
    problem, found = fitted(runs, premises=MOAI.model_copy(update={"priors": wide}))
    values = dict(zip(problem.names, np.exp(found.solution.values), strict=True))
    for name in ("matmul_efficiency", "launch_s_per_layer", "launch_s_per_step", "memory_ratio"):
        assert values[name] == pytest.approx(LOGS_TRUTH[name], rel=0.05), name
    assert problem.labels["family"] == ("llama", "mistral", "qwen2")
    assert [values[family] for family in problem.labels["family"]] == pytest.approx([1.0] * 3, abs=0.05)


def test_permuting_runs_changes_nothing() -> None:
    """The order of the runs changes no parameter."""
    runs = made(0.02 * np.random.default_rng(0).normal(size=len(CASES)))
    first, second = (fitted(order)[1].solution for order in (runs, runs[::-1]))
    assert second.values == pytest.approx(first.values, abs=1e-5)


def test_what_runs_do_not_tell_stays_at_its_prior() -> None:
    """One node says nothing of hops between nodes: median and width stay the prior's."""
    problem, found = fitted(made(np.zeros(len(CASES))))
    i, prior = problem.names.index("hop_s"), PREMISES.priors["hop_s"]
    assert found.solution.values[i] == pytest.approx(np.log(prior.median))
    assert found.solution.covariance[i, i] ** 0.5 == pytest.approx(prior.log_sd)


def test_a_part_is_fitted_as_if_the_others_were_not() -> None:
    """What the runs outside the part measured changes nothing, to the last digit; nor does that they are there."""
    inside, outside = ALL[::2], ALL[1::2]
    runs = made(0.02 * np.random.default_rng(1).normal(size=len(CASES)))
    other = [replace(c, step_s=9 * (c.step_s or 0)) if i in outside else c for i, c in enumerate(runs)]
    first, second = (fitted(r, inside)[1] for r in (runs, other))
    alone = fitted([runs[i] for i in inside])[1]
    for found in (second, alone):
        assert found.solution.values.tolist() == first.solution.values.tolist()
        assert found.seconds is not None
        assert first.seconds is not None
        assert found.seconds.weights.tolist() == first.seconds.weights.tolist()


def test_a_part_has_factors_of_its_own_labels_alone() -> None:
    """Where only one family of several is in a part, it has no factor; the model's parameters alone are fitted."""
    model = modelled(LOGS, MOAI)
    llamas = np.array([i for i, run in enumerate(LOGS) if run.shape.family == "llama"])
    assert FitProblem(model, llamas).names == tuple(MOAI.priors)
    assert model.names == (*MOAI.priors, "llama", "mistral", "qwen2")
    problem = FitProblem(model, llamas)
    assert problem.full(np.ones((2, len(problem.names))))[:, len(MOAI.priors) :].tolist() == [[0.0] * 3] * 2


def test_predictions_of_many_samples_are_each_alone() -> None:
    """A sample's predictions are the same to the last digit whatever is predicted beside it."""
    model = modelled([*CASES[:20], *CASES[-20:]])
    values = true_values(model, TRUTH) + 0.1 * np.random.default_rng(0).normal(size=(7, len(model.names)))
    together = model.predict(values)
    for i in range(len(values)):
        assert together[:, i].tolist() == model.predict(values[i : i + 1])[:, 0].tolist()


def test_seconds_and_bytes_depend_on_parameters_apart() -> None:
    """No parameter of memory moves seconds, and no other moves bytes."""
    runs = [replace(run, reserved_bytes=1e10) for run in CASES[:6]]
    premises = load_premises("nanotron")
    model = modelled(runs, premises)
    center = true_values(model, {})
    moved = model.predict(np.vstack([center, center + 0.1 * np.eye(len(center))]))
    for i, name in enumerate(model.names, start=1):
        if "bytes" in name or "memory_ratio" in name:
            assert (moved[STEP, i] == moved[STEP, 0]).all(), name
        else:
            assert (moved[READ, i] == moved[READ, 0]).all(), name


def test_targets_take_bounds_of_memory_and_no_unhealthy_seconds() -> None:
    """A run that ran bounds its memory from above, one out of memory from below; unhealthy seconds are not taken."""
    ran, failed = CASES[0], replace(CASES[1], step_s=None, fits=False)
    read, sick = replace(CASES[2], reserved_bytes=1e10), replace(CASES[3], why_unhealthy="hot")
    found = modelled([ran, failed, read, sick]).targets
    assert found.rows[found.quantity == STEP].tolist() == [0, 2]
    of_memory = found.of(found.quantity != STEP)
    assert dict(zip(of_memory.rows.tolist(), of_memory.bound.tolist(), strict=True)) == {0: -1, 1: 1, 2: 0, 3: -1}
    usable = PREMISES.habits.usable_memory_fraction * CASES[1].machine.accelerator.hbm_bytes
    assert found.logs[found.bound == 1] == pytest.approx(np.log(usable))


def test_targets_take_what_logs_tell() -> None:
    """Launches are the mean of their windows; bytes of all devices are read as such; a step has its standard error."""
    found = modelled(LOGS, MOAI).targets
    with_windows = [i for i, run in enumerate(LOGS) if run.launch_windows_s]
    assert found.rows[found.quantity == LAUNCH].tolist() == with_windows
    means = [np.log(np.mean(LOGS[i].launch_windows_s)) for i in with_windows]
    assert found.logs[found.quantity == LAUNCH] == pytest.approx(means)
    assert found.rows[found.quantity == TOTAL].tolist() == [i for i, run in enumerate(LOGS) if run.total_bytes]
    assert found.log_se[found.quantity == STEP].tolist() == [run.step_log_se for run in LOGS]
    sick = modelled([replace(LOGS[0], why_unhealthy="hot"), *LOGS[1:]], MOAI).targets
    assert 0 not in sick.rows[(sick.quantity == STEP) | (sick.quantity == LAUNCH)]
