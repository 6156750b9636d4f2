import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.calibrate.assess import assess
from estimator.calibrate.fit_stack import (
    ASSUMED_SPREADS,
    LEAST_WIDENING,
    conformal_log_sd,
    fit_stack_to_runs,
    fit_stacks,
    folds,
    held_out_log_sd,
    widening,
)
from estimator.calibrate.unseen import NO_ERRORS, Errors
from estimator.stack.file import fit_text
from estimator.stack.fit import interval_ratio
from estimator.stack.stack import load_premises, load_stack, parse_fit
from tests.support.measured import moai_logs, table_runs

PREMISES = load_premises("megatron-deepspeed")
CASES = table_runs("vtrain_a100_single_node")[::28]
MOAI = load_premises("moai-24.2")
LOGS = moai_logs()


@given(count=st.integers(1, 200), parts=st.integers(1, 7))
def test_folds_are_even(count: int, parts: int) -> None:
    """Parts differ in size by one at most, and are the same each time."""
    sizes = np.bincount(folds(count, parts), minlength=parts)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    assert (folds(count, parts) == folds(count, parts)).all()


@given(seed=st.integers(0, 10**6), heavy=st.booleans())
def test_conformal_intervals_hold_nine_in_ten(seed: int, *, heavy: bool) -> None:
    """Whatever the errors' distribution, the interval that 2,000 of them give holds 90 % of 2,000 others."""
    random = np.random.default_rng(seed)
    errors = random.standard_t(2, size=4000) if heavy else random.normal(size=4000)
    half_width = np.log(interval_ratio(conformal_log_sd(errors[:2000], 4), 4))
    assert 0.85 < (np.abs(errors[2000:]) < half_width).mean() < 0.95


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ratio", [0.8, 1.0, 3.0])
@pytest.mark.parametrize("unsure", [0.0, 0.05])
def test_widened_intervals_hold_nine_in_ten(seed: int, ratio: float, unsure: float) -> None:
    """Spreads stated too narrow by some ratio, each run's its own, are widened by it; the intervals then hold 90 %."""
    random = np.random.default_rng(seed)
    left = np.exp(random.uniform(-4, -1, size=4000))
    values = np.hypot(ratio * left, unsure) * random.normal(size=4000)
    errors = Errors(values, left, np.full(4000, unsure), np.zeros(4000))
    half = Errors(*(part[:2000] for part in errors))
    found = widening(half, 10**6)
    assert found == pytest.approx(ratio, rel=0.15)
    log_sd = np.hypot(found * left, unsure)[2000:]
    assert 0.86 < (np.abs(values[2000:]) < np.log(interval_ratio(log_sd, 10**6))).mean() < 0.94


def test_few_errors_are_pooled_with_what_is_assumed() -> None:
    """Without errors the assumed spread stands; four errors count as much as it."""
    none, one = np.zeros(4), np.full(4, 0.3)
    assert held_out_log_sd(NO_ERRORS, 0.1, 4) == pytest.approx(0.1)
    assert held_out_log_sd(Errors(one, none, none, none), 0.1, 4) == pytest.approx(np.sqrt((0.09 + 0.01) / 2))


def test_what_parameters_are_unsure_of_is_not_told_twice() -> None:
    """Of few errors, what the spread of the parameters explains leaves the spread beside it at half of what is assumed.

    Their interval has both: of four errors as large as the parameters' own spread, none is left over.
    """
    none, one = np.zeros(4), np.full(4, 0.3)
    assert held_out_log_sd(Errors(one, none, one, none), 0.1, 4) == pytest.approx(0.1 / np.sqrt(2))
    half = held_out_log_sd(Errors(one, none, 0.5 * one, none), 0.1, 4)
    assert half == pytest.approx(np.sqrt((0.75 * 0.09 + 0.01) / 2))


def test_what_measurements_are_unsure_of_is_not_the_models() -> None:
    """Errors no larger than the measurements' own leave nothing to the model, be they few or many."""
    none, one = np.zeros(4), np.full(4, 0.3)
    assert held_out_log_sd(Errors(one, none, none, one), 0.1, 4) == pytest.approx(0.1 / np.sqrt(2))
    many = Errors(np.full(40, 0.3), np.full(40, 0.1), np.zeros(40), np.full(40, 0.3))
    assert held_out_log_sd(many, 0.1, 4) == 0
    assert widening(many, 4) == LEAST_WIDENING


def test_a_stack_knows_its_runs() -> None:
    """It lists the table with its digest, the runs fitted, and the versions; its file reads back as it was written."""
    origin = {"a.csv": ("0" * 64, [run.digest for run in CASES]), "b.csv": ("1" * 64, [])}
    found = fit_stack_to_runs(PREMISES, CASES, origin)
    (table,) = found.tables
    assert (table.name, table.rows, table.sha256) == ("a.csv", len(CASES), "0" * 64)
    assert set(table.digests.split()) == {run.digest for run in CASES}
    assert set(found.versions) == {"foretrain", "numpy", "scipy"}
    text = fit_text(found)
    assert fit_text(parse_fit(text.encode(), PREMISES, "mine")) == text


def test_one_run_has_the_spreads_assumed() -> None:
    """Of a run alone nothing can be held out: the spreads are those assumed, and nothing is learned."""
    fit = fit_stack_to_runs(PREMISES, CASES[:1], {}).fit
    assert {name: getattr(fit, name) for name in ASSUMED_SPREADS} == ASSUMED_SPREADS
    assert fit.step_residual is None
    assert fit.usable_memory_fraction is None


def test_a_fit_needs_a_timed_run() -> None:
    """Without a healthy timed run of its trainer a stack is refused."""
    with pytest.raises(ValueError, match="fit: no healthy timed run of trainer 'megatron-deepspeed'; give a table"):
        fit_stack_to_runs(PREMISES, [], {})


def test_parts_fitted_together_are_each_alone() -> None:
    """Stacks fitted to parts of the runs at once are those fitted to each part alone, to the last digit."""
    parts = [np.arange(0, len(CASES), 2), np.arange(len(CASES) // 2)]
    for part, stack in zip(parts, fit_stacks(PREMISES, CASES, parts, 3), strict=True):
        assert stack == fit_stack_to_runs(PREMISES, [CASES[i] for i in part], {}, 3)


# The five runs of the MoAI platform: few, with logs that time the launch of work, of several families


def test_refit_reproduces_the_file() -> None:
    """Fitting the committed logs again gives the committed stack, to the digits that processors agree on."""
    found, kept = fit_stack_to_runs(MOAI, LOGS.runs, LOGS.origin), load_stack("moai-24.2")
    assert found.fit.names == kept.fit.names
    assert np.exp(found.fit.log_values) == pytest.approx(np.exp(kept.fit.log_values), rel=2e-3)
    for spread in ("step_log_sd", "launch_log_sd", "memory_log_sd", "family_log_sd"):
        assert getattr(found.fit, spread) == pytest.approx(getattr(kept.fit, spread), rel=2e-2)
    assert found.window.slow_ratio == pytest.approx(kept.window.slow_ratio, rel=1e-5)
    assert found.startup.first_step_excess_s == pytest.approx(kept.startup.first_step_excess_s, rel=1e-5)
    assert found.tables == kept.tables


def test_a_family_left_out_gets_the_population_and_a_wider_interval() -> None:
    """Without its only run a family has factor 1 and a wider interval than with it."""
    (seed,) = (run for run in LOGS.runs if run.shape.family == "mistral")
    without = fit_stack_to_runs(MOAI, [run for run in LOGS.runs if run is not seed], {})
    assert "mistral" not in without.fit.families
    assert without.efficiencies("mistral").family_factor == 1
    known, unknown = (assess([seed], [stack]).rows[0].step_s for stack in (load_stack("moai-24.2"), without))
    assert unknown.high / unknown.low > known.high / known.low


def test_pooling_is_partial() -> None:
    """A family's factor lies between the population's and the one that would explain its run alone."""
    kept = load_stack("moai-24.2")
    plain = kept.model_copy(
        update={"fit": kept.fit.model_copy(update={"log_values": (*kept.fit.log_values[: len(kept.priors)], 0, 0, 0)})}
    )
    for run in LOGS.runs:
        if run.shape.family != "llama":
            pooled, population = (assess([run], [stack]).rows[0].error("step") or 0.0 for stack in (kept, plain))
            assert abs(pooled) < abs(population)


def test_families_have_factors_where_kernels_differ_by_family() -> None:
    """A stack whose attention is fused for some families has a factor for each; one that fuses all or none, none."""
    for fused, names in ((("qwen2",), ("llama", "mistral", "qwen2")), ("always", ()), ((), ())):
        habits = MOAI.habits.model_copy(update={"fused_attention": fused})
        fit = fit_stack_to_runs(MOAI.model_copy(update={"habits": habits}), LOGS.runs, {}).fit
        assert tuple(fit.families) == names
        assert (fit.family_log_sd > 0) == bool(names)
