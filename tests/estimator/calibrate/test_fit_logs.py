import re
from dataclasses import replace

import numpy as np
import pytest

from estimator.calibrate.fit_logs import (
    MoaiRun,
    fit_stack,
    host_paces,
    leave_one_out,
    observe,
    predict_logs,
    stack_from_runs,
    startup_of,
    try_run,
    with_runs,
)
from estimator.runs.read import read_runs
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.file import fit_text
from estimator.stack.stack import load_premises, load_stack, parse_fit
from estimator.work.plan import Plan
from hardware.catalog import load_catalog
from tests.support.paths import MEASURED

CATALOG = load_catalog()
LOGS = ("mistral_7b", "qwen1.5_7b", "llama2_13b", "llama3_8b", "llama2_13b_ap_guide")
PATHS = [next((MEASURED / "moai").glob(f"{name}_?xlarge.log")) for name in LOGS]
RUNS = [MoaiRun.of(read_runs([path], CATALOG).runs[0]) for path in PATHS]
PREMISES = load_premises("moai-24.2")
TRUTH = {
    "matmul_efficiency": 0.7,
    "memory_efficiency": 0.5,
    "exposed_communication": 0.3,
    "launch_s_per_layer": 0.02,
    "launch_s_per_step": 0.2,
    "memory_ratio": 1.05,
}


def test_fit_returns_the_truth_that_made_the_data() -> None:
    """Fitted to the model's own predictions, with wide priors, the fit returns the parameters behind them."""
    truth = Efficiencies(**TRUTH)
    made = []
    for observation in map(observe, RUNS):
        step, launch, memory = predict_logs(observation, PREMISES.habits, truth)
        made.append(replace(observation, log_step=step, log_step_se=1e-4, log_launch=launch, log_memory=memory))
    priors = {name: prior.model_copy(update={"log_sd": 3.0}) for name, prior in PREMISES.priors.items()}
    fit = fit_stack(made, PREMISES.habits, priors, "mi250")
    found = dict(zip(fit.names, np.exp(fit.log_values), strict=True))
    for name in ("matmul_efficiency", "launch_s_per_layer", "launch_s_per_step", "memory_ratio"):
        assert found[name] == pytest.approx(TRUTH[name], rel=0.05), name
    assert all(abs(found[family] - 1) < 0.05 for family in fit.families)


def test_refit_reproduces_the_file() -> None:
    """Fitting the committed logs again gives the committed stack, to the digits that optimisers agree on."""
    found, kept = stack_from_runs(PREMISES, RUNS), load_stack("moai-24.2")
    assert np.exp(found.fit.log_values) == pytest.approx(np.exp(kept.fit.log_values), rel=2e-3)
    assert found.fit.step_log_sd == pytest.approx(kept.fit.step_log_sd, rel=2e-2)
    assert found.window.slow_ratio == pytest.approx(kept.window.slow_ratio, rel=1e-5)
    assert [run.sha256 for run in kept.runs] == [run.log.sha256 for run in RUNS]


def test_left_out_errors_of_the_file_are_true() -> None:
    """The errors that the stack file quotes are those of predictions that never saw the run."""
    left_out = leave_one_out(PREMISES, RUNS, CATALOG)
    kept = load_stack("moai-24.2")
    errors = [row.error("step") or 0.0 for row in left_out]
    assert errors == pytest.approx([r.left_out_step_error for r in kept.runs], abs=3e-3)
    in_sample = [abs(try_run(run, kept, CATALOG).error("step") or 0.0) for run in RUNS]
    assert sum(map(abs, errors)) > sum(in_sample)


def test_a_family_left_out_gets_the_population_and_a_wider_interval() -> None:
    """Without its only run a family has factor 1 and a wider interval than with it."""
    seed = RUNS[0]
    without = stack_from_runs(PREMISES, RUNS[1:])
    assert "mistral" not in without.fit.families
    assert without.efficiencies("mistral").family_factor == 1
    known, unknown = try_run(seed, load_stack("moai-24.2"), CATALOG), try_run(seed, without, CATALOG)
    assert unknown.step_s.high / unknown.step_s.low > known.step_s.high / known.step_s.low


def test_pooling_is_partial() -> None:
    """A family's factor lies between the population's and the one that would explain its run alone."""
    kept = load_stack("moai-24.2")
    for run in RUNS[:2]:
        observation = observe(run)
        family = run.workload.shape.family
        own, population = kept.efficiencies(family), kept.efficiencies("unseen")
        pooled, plain = (predict_logs(observation, PREMISES.habits, e)[0] for e in (own, population))
        assert abs(pooled - observation.log_step) < abs(plain - observation.log_step)


def test_a_fit_to_logs_round_trips() -> None:
    """What is written of a fit reads back as one that is written the same."""
    found = stack_from_runs(PREMISES, RUNS)
    text = fit_text(with_runs(found, RUNS, [try_run(run, found, CATALOG) for run in RUNS]))
    again = parse_fit(text.encode(), PREMISES, "mine")
    assert again.fit.names == found.fit.names
    assert fit_text(again) == text


def test_host_paces_of_one_pace() -> None:
    """Windows without a gap show one pace, and no slow steps are assumed."""
    assert host_paces([RUNS[3]]) == (0.0, 1.0)
    fraction, ratio = host_paces(RUNS)
    assert 0.4 < fraction < 0.7
    assert 1.2 < ratio < 1.5


def test_a_fit_needs_runs() -> None:
    """A fit to nothing is refused, and leaving one run out of one; so is a run whose plan cannot have run."""
    with pytest.raises(ValueError, match="fit: no measured runs; give a table with at least one"):
        stack_from_runs(PREMISES, [])
    with pytest.raises(ValueError, match="fit: 1 measured run; give a table with at least two"):
        leave_one_out(PREMISES, RUNS[:1], CATALOG)
    with pytest.raises(
        ValueError, match=re.escape("plan: num_stages * tp * cp = 5 * 1 * 1 does not divide 32 devices")
    ):
        observe(replace(RUNS[0], run=replace(RUNS[0].run, plan=Plan(num_stages=5))))


def test_a_run_needs_its_log_and_its_steps() -> None:
    """A run of a table is refused, and a record that does not say how many steps the run had."""
    run = RUNS[0].run
    with pytest.raises(ValueError, match="has no log, which this stack is fitted to"):
        MoaiRun.of(replace(run, log=None))
    record = RUNS[0].record.model_copy(update={"num_steps": None})
    with pytest.raises(ValueError, match="its run record has no num_steps; add it"):
        MoaiRun.of(replace(run, log=replace(RUNS[0].log, record=record)))


def test_a_startup_needs_its_events() -> None:
    """Logs that begin at their first step say nothing of the startup."""
    late = replace(RUNS[0], run=replace(RUNS[0].run, startup=None))
    with pytest.raises(ValueError, match="no log holds the events of a startup"):
        startup_of([late], load_s=1.0)
