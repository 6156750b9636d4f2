from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.measurement import read_runs, read_step_log, refuse_impossible_speed, sustained_step_s

RUNS = Path(__file__).parents[2] / "reports" / "measured" / "moai" / "runs.csv"
LINE = "2024-04-22 00:{minute:02d}:{second:06.3f} | INFO | __main__:main:149 - [Step {step}/144] | Loss: 0.5 | {rest}"


def log(seconds: list[float], timed: float = 1.0) -> list[str]:
    """Return a log whose steps end at these seconds."""
    rest = f"Duration: {timed:.2f} | Throughput: 1000.00 tokens/sec"
    return [LINE.format(minute=int(s) // 60, second=s % 60, step=i + 1, rest=rest) for i, s in enumerate(seconds)]


@given(st.lists(st.floats(0.5, 90), min_size=3, max_size=30))
def test_mean_is_the_span_over_the_steps(gaps: list[float]) -> None:
    """The mean step is the time from the first line to the last over the steps between them."""
    ends = np.round(np.cumsum(gaps), 3)
    mean, _ = read_step_log(log(list(ends))).mean_step_s()
    assert mean == pytest.approx((ends[-1] - ends[0]) / (len(ends) - 1))


def test_gaps_in_a_log_weigh_by_their_steps() -> None:
    """Lines may be missing: an interval of many steps weighs as many."""
    lines = log([10.0, 20.0, 40.0])
    lines[2] = lines[2].replace("Step 3/", "Step 12/")
    assert read_step_log(lines).mean_step_s()[0] == pytest.approx(30 / 11)


def test_time_running_backward_is_refused_and_quoted() -> None:
    """A line whose time or step runs backward is left out, and quoted."""
    found = read_step_log([*log([10.0, 20.0, 30.0]), *log([5.0])])
    assert len(found.steps) == 3
    assert "run backward" in found.refused[0]


def test_two_records_in_one_line_are_refused_and_quoted() -> None:
    """Of two records written into one line only the first counts."""
    first, second = log([10.0, 20.0])
    found = read_step_log([first, second + first])
    assert len(found.steps) == 2
    assert "two records in one line" in found.refused[0]


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_text_is_no_log(lines: list[str]) -> None:
    """Text that is no log raises one clear line."""
    with pytest.raises(ValueError, match="usable step lines; at least 2"):
        read_step_log(lines)


def test_the_seed_log() -> None:
    """The seed's log reads as the facts state it: 22.14 s between lines, windows of 9.06 s, mean 59,671 tokens/s."""
    seed = read_runs(RUNS)[0]
    mean, _ = seed.log.mean_step_s()
    windows = seed.log.timed_windows()
    assert mean == pytest.approx(22.143, abs=5e-4)
    assert windows.mean() == pytest.approx(9.06, abs=5e-3)
    assert (seed.workload.tokens_per_step / windows).mean() == pytest.approx(59671, abs=1)


def test_stated_minutes_are_a_second_measurement() -> None:
    """The pooled step lies between what the log says and what the page states, and is surer than either."""
    seed = read_runs(RUNS)[0]
    mean, log_se = seed.log.mean_step_s()
    pooled, pooled_se = sustained_step_s(seed)
    assert 50 * 60 / 144 < pooled < mean
    assert pooled_se < log_se


def test_impossible_windows_are_refused() -> None:
    """A timed window that implies more than the peak is refused as evidence of speed; a possible one is not."""
    runs = read_runs(RUNS)
    peak = 32 * 181.05e12
    assert "refused as evidence of speed" in refuse_impossible_speed(runs[3], peak)
    assert refuse_impossible_speed(runs[0], peak) == ""
    assert "step" in refuse_impossible_speed(runs[0], peak / 10)


def test_a_missing_table_is_one_line(tmp_path: Path) -> None:
    """A table that is not there raises one clear line."""
    with pytest.raises(ValueError, match="cannot be read as CSV; check the path"):
        read_runs(tmp_path / "none.csv")
