from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.runs.logs import steps as steps_module
from estimator.runs.logs.steps import MOST_QUOTED, Refused, StepLine, StepLines, timed

RANDOM = st.randoms(use_true_random=False)
STEPS = st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from("ab"), st.floats(0, 100)).map(lambda fields: StepLine(*fields)),
    max_size=80,
)


def gathered(lines: list[StepLine], *, is_elapsed: bool = False) -> list[StepLine]:
    """Return the records of lines."""
    records = StepLines()
    for line in lines:
        records.add(line)
    return records.forward(Refused(), is_elapsed=is_elapsed)


@given(lines=STEPS, order=RANDOM, elapsed=st.booleans())
def test_order_and_repetition_of_lines_do_not_matter(lines: list[StepLine], order: Random, elapsed: bool) -> None:
    """Lines shuffled, and told again, are the same records."""
    again = [*lines, *lines[:5]]
    order.shuffle(again)
    assert gathered(again, is_elapsed=elapsed) == gathered(lines, is_elapsed=elapsed)


@given(lines=STEPS)
def test_time_runs_forward_with_the_steps(lines: list[StepLine]) -> None:
    """What is kept has rising steps and times that never fall; nothing is refused where they rise anyhow."""
    kept = gathered(lines)
    assert [r.step for r in kept] == sorted({r.step for r in kept})
    clocks = [r.clock_s or 0.0 for r in kept]
    assert clocks == sorted(clocks)
    assert gathered(kept) == kept


def test_one_wrong_time_costs_one_line() -> None:
    """A single time far in the future, or in the past, is refused alone, and quoted."""
    records, refused = StepLines(), Refused()
    for step in range(1, 10):
        records.add(StepLine(step, f"line {step}", clock_s={3: 999.0, 6: 0.5}.get(step, float(step))))
    assert [r.step for r in records.forward(refused)] == [1, 2, 4, 5, 7, 8, 9]
    assert refused.told == [
        "step 3: time runs backward: 'line 3'",
        "step 6: time runs backward: 'line 6'",
    ]


def test_a_run_begun_again_counts_as_its_longest_stretch() -> None:
    """Where the clock starts with the run, a fall parts two stretches, of which the longer is kept."""
    times = [10.0, 20.0, 1.0, 2.0, 3.0]
    assert [r.step for r in gathered([StepLine(i, "", clock_s=t) for i, t in enumerate(times)], is_elapsed=True)] == [
        2,
        3,
        4,
    ]


def test_of_lines_of_one_step_the_last_and_slowest_counts() -> None:
    """Of two ranks' lines of one time the slower counts, of times little apart the later."""
    ranks = [StepLine(1, "a", clock_s=5.0, step_s=1.0), StepLine(1, "b", clock_s=5.0, step_s=1.1)]
    assert gathered([*ranks, StepLine(2, "c", clock_s=6.0, step_s=1.0)])[0].line == "b"
    late = [StepLine(i, "late", clock_s=i + 0.01) for i in range(1, 5)]
    assert {r.line for r in gathered([*late, *(StepLine(i, "early", clock_s=float(i)) for i in range(1, 5))])} == {
        "late"
    }


def test_a_step_told_at_two_times_is_in_doubt() -> None:
    """A step that one line tells at another time than another line does not count, and is quoted."""
    records, refused = StepLines(), Refused()
    for step in range(1, 7):
        records.add(StepLine(step, f"line {step}", clock_s=float(step)))
    records.add(StepLine(3, "wrong", clock_s=4.0))
    assert [r.step for r in records.forward(refused)] == [1, 2, 4, 5, 6]
    assert refused.told == ["step 3: told at times 1 s apart: 'wrong'"]


@given(order=RANDOM, count=st.integers(0, 3000))
def test_a_sample_is_bounded_and_the_same_in_any_order(order: Random, count: int) -> None:
    """However many steps there are, at most so many are kept, and which does not depend on the order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps_module, "MOST_RECORDS", 100)
        steps = [StepLine(i, "", step_s=1.0) for i in range(count)]
        kept = gathered(steps)
        order.shuffle(steps)
        assert gathered(steps) == kept
    assert len(kept) == count if count <= 100 else 20 <= len(kept) <= 100


@pytest.mark.parametrize("step_s", [1.0, 0.25, 7.0])
@pytest.mark.parametrize("every", [1, 10])
def test_direct_and_clock_times_tell_the_same(step_s: float, every: int) -> None:
    """Seconds that lines say, and those between lines, are one pace; the warm-up is left out of both."""
    steps = range(every, 40 * every + 1, every)
    direct = [StepLine(i, "", step_s=step_s * (9 if i == every else 1)) for i in steps]
    clock = [StepLine(i, "", clock_s=100 + i * step_s) for i in steps]
    for records in (direct, clock):
        found = timed(records, 1e-3)
        assert found.seconds == pytest.approx(step_s)
        assert set(found.number) == {every}
        assert found.num_warm_up >= 2
        assert found.num_warm_up + found.number.sum() <= 40 * every


def test_the_first_two_steps_are_no_pace() -> None:
    """Of lines for every step those of the first two are left out, and a first line of ten steps alone."""
    every = [StepLine(i, str(i), step_s=100.0 if i < 3 else 1.0) for i in range(1, 7)]
    assert tuple(end.line for end in timed(every, 1e-3).ends) == ("3", "4", "5", "6")
    tenth = [StepLine(i, str(i), step_s=1.0) for i in (10, 20, 30)]
    assert tuple(end.line for end in timed(tenth, 1e-3).ends) == ("20", "30")
    titan = [StepLine(i, str(i), clock_s=float(i)) for i in (1, 10, 20, 30)]
    assert tuple(end.line for end in timed(titan, 1e-3).ends) == ("20", "30")
    second = [StepLine(i, str(i), clock_s=float(i)) for i in (2, 4, 6)]
    assert tuple(end.line for end in timed(second, 1e-3).ends) == ("4", "6")


def test_a_coarse_clock_times_long_intervals() -> None:
    """Steps of 0.3 s on a clock of whole seconds are timed over 20 s at least, within 5 %."""
    found = timed([StepLine(i, "", clock_s=float(int(0.3 * i))) for i in range(1, 400)], 1.0)
    assert found.seconds[1:] == pytest.approx(0.3, rel=0.05)
    assert min(found.number[1:]) > 60


def test_refused_lines_are_counted_and_the_first_are_kept() -> None:
    """All are counted; only so many are kept."""
    refused = Refused()
    for i in range(100):
        refused.add("not whole", f"line {i}\x1b")
    assert (refused.count, len(refused.told)) == (100, MOST_QUOTED)
    assert refused.told[0] == "not whole: 'line 0\\x1b'"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (StepLine(2**40, ""), "no run has so many"),
        (StepLine(1, "", step_s=0.0), "0 s is no step's time"),
        (StepLine(1, "", step_s=float("nan")), "nan s is no step's time"),
        (StepLine(1, "", step_s=1e7), r"1e\+07 s is no step's time"),
        (StepLine(1, "", clock_s=float("inf")), "a time that no log has"),
        (StepLine(1, "", tokens=-1.0), "tokens = -1 is no run's"),
        (StepLine(1, "", rows=float("nan")), "rows = nan is no run's"),
    ],
)
def test_numbers_that_no_run_has_are_refused(record: StepLine, message: str) -> None:
    """A step number, a time or a count that cannot be is refused."""
    with pytest.raises(ValueError, match=message):
        StepLines().add(record)
