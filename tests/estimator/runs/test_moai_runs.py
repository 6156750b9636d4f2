from tests.support.paths import MEASURED
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.runs.moai_runs import read_runs, read_step_log, refuse_impossible_speed, sustained_step_s
from estimator.work.plan import Plan

RUNS = MEASURED / "moai" / "runs.csv"
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


@pytest.mark.parametrize("timed", [0.0, 1e-9, 1e9])
def test_a_window_of_no_time_is_refused_and_the_line_counts(timed: float) -> None:
    """A timed window too short or too long to be one is left out and quoted; its line still times a step."""
    lines = log([10.0, 20.0, 30.0])
    lines[1] = lines[1].replace("Duration: 1.00", f"Duration: {timed:.9f}")
    found = read_step_log(lines)
    assert [step.timed_s for step in found.steps] == [1.0, None, 1.0]
    assert found.refused == (f"step 2: a timed window of {timed:g} s is none; the line counts without it",)
    assert found.timed_windows().tolist() == [1.0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Step 2/", "Step 99999999999999999999999/"),
        pytest.param("Step 2/", f"Step {'9' * 5000}/", id="digits"),
        ("2024-04-22", "2024-13-45"),
        ("2024-04-22", "0000-04-22"),
        ("00:00:20.000", "00:00:61.000"),
        ("00:00:20.000", "00:00:20.0000001"),
        ("Duration: 1.00", "Duration: 1.0.0"),
        ("2024-04-22", "9999-12-31"),
        ("2024-04-22", "0001-01-01"),
    ],
)
def test_a_line_that_no_log_has_is_refused_and_quoted(old: str, new: str) -> None:
    """A date, a number or a leap that no log has leaves its line out, and the others stand."""
    lines = log([10.0, 20.0, 30.0])
    assert old in lines[1]
    lines[1] = lines[1].replace(old, new)
    found = read_step_log(lines)
    assert [step.step for step in found.steps] == [1, 3]
    assert len(found.refused) == 1
    assert found.refused[0].isprintable()


def test_an_event_of_no_date_is_refused_and_quoted() -> None:
    """An event of the startup whose date is none is left out; another counts."""
    events = [f"[2024-{month}-22 00:00:01.000] [info] Requesting resources" for month in (13, "04")]
    assert read_step_log([events[0], *log([10.0, 20.0])]).startup == {}
    found = read_step_log([*events, *log([10.0, 20.0])])
    assert found.startup == {"request": found.steps[0].time_s - 9}
    assert "a date or a number that no log has" in found.refused[0]


@given(data=st.data(), inserted=st.text(max_size=12) | st.sampled_from(["0", "9" * 30, ".", "-", "e", "\u0663"]))
def test_any_edit_of_a_log_is_a_log_or_one_line(data: st.DataObject, inserted: str) -> None:
    """A stretch of a log replaced by any text ends in a log that times its steps, or in one clear line."""
    text = "\n".join(log([10.0, 20.0, 30.0]))
    start = data.draw(st.integers(0, len(text)))
    broken = text[:start] + inserted + text[data.draw(st.integers(start, min(start + 20, len(text)))) :]
    try:
        found = read_step_log(broken.splitlines())
    except ValueError as error:
        message = str(error)
        assert "usable step lines; at least 2" in message
    else:
        assert all(0 < value < np.inf for value in (*found.timed_windows(), found.mean_step_s()[0]))
        assert np.isfinite(found.mean_step_s()[1])
        assert found.steps_per_line() >= 1


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


COLUMNS = (
    "log,model,seq_len,global_batch,steps,flavor,num_stages,num_micro_batches,batch_per_device,"
    "recomputation,distribute_param,candidates,possible_candidates,stated_minutes,memory_mib,notes"
)
ROW = "a.log,mistral-7b-v0.1,2048,256,144,4xLarge,2,16,1,false,true,16,3,50,1138546,none"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return the path of a table beside a log."""
    (tmp_path / "a.log").write_text("\n".join(log([10.0, 20.0])), encoding="utf-8")
    return tmp_path / "runs.csv"


def edited(column: str, cell: str) -> str:
    """Return the table with another cell in one column."""
    cells = dict(zip(COLUMNS.split(","), ROW.split(","), strict=True)) | {column: cell}
    return f"{COLUMNS}\n{','.join(cells.values())}"


def test_a_row_is_a_run(table: Path) -> None:
    """A table of the columns that are needed, and notes, is a run; empty cells are nothing measured."""
    table.write_text(edited("memory_mib", ""), encoding="utf-8")
    (run,) = read_runs(table)
    assert run.plan == Plan(num_stages=2, num_micro_batches=16, recomputation="none", zero_stage=3)
    assert (run.memory_mib, run.stated_minutes, run.num_possible) == (None, 50, 3)


@pytest.mark.parametrize(
    ("cell", "recomputation"),
    [("0 (none)", "none"), ("default(1)", "full"), ("true", "full"), ("selective", "selective"), ("none", "none")],
)
def test_spellings_of_recomputation(table: Path, cell: str, recomputation: str) -> None:
    """Recomputation reads as each of the platform's versions prints it."""
    table.write_text(edited("recomputation", cell), encoding="utf-8")
    assert read_runs(table)[0].plan.recomputation == recomputation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows; add at least one run below the header"),
        (COLUMNS, "has no rows; add at least one run below the header"),
        (f"{COLUMNS},log\n{ROW},b.log", "column 'log' is given twice; remove one"),
        (f"{COLUMNS},color\n{ROW},red", "row 'a.log': color: is not a field of this record; remove it"),
        (f"{COLUMNS}\n{ROW},more", "row 'a.log': has not one cell per column; put quotes around"),
        (f"{COLUMNS}\n{ROW.removesuffix(',none')}", "row 'a.log': has not one cell per column; put quotes around"),
        ("log\na.log", "row 'a.log': model: is missing; add it"),
        ("model\ngpt2", "row 1: log: is missing; add it"),
        (edited("log", ""), "row 1: log: '' does not fit; string should have at least 1 character"),
        (edited("seq_len", "0"), "row 'a.log': seq_len: '0' does not fit; input should be greater than or equal to 1"),
        (edited("steps", "many"), "row 'a.log': steps: 'many' does not fit; input should be a valid integer"),
        (edited("steps", "9" * 5000), "row 'a.log': steps: '9999"),
        (
            edited("global_batch", "2.5"),
            "row 'a.log': global_batch: '2.5' does not fit; input should be a valid integer",
        ),
        (edited("candidates", "0"), "row 'a.log': candidates: '0' does not fit; input should be greater than"),
        (edited("possible_candidates", "-1"), "row 'a.log': possible_candidates: '-1' does not fit; input should be"),
        (edited("memory_mib", "nan"), "row 'a.log': memory_mib: 'nan' does not fit; input should be "),
        (edited("memory_mib", "1e308"), "row 'a.log': memory_mib: '1e308' does not fit; input should be less than"),
        (edited("stated_minutes", "0"), "row 'a.log': stated_minutes: '0' does not fit; input should be greater"),
        (edited("recomputation", "fals"), "row 'a.log': recomputation: 'fals' does not fit; input should be 'false',"),
        (edited("distribute_param", "True"), "row 'a.log': distribute_param: 'True' does not fit; input should be"),
        (edited("num_stages", str(2**31)), "row 'a.log': plan: num_stages='2147483648' is not a positive integer"),
        (edited("model", "mistral-8b"), "row 'a.log': unknown model 'mistral-8b': "),
        (edited("log", "none.log"), "row 'none.log': log: '.*none.log' cannot be read; check the path"),
        (edited("log", "a\0b"), r"row 'a\\x00b': log: '.*' cannot be read; check the path"),
        (edited("log", "binary.log"), "row 'binary.log': log: not UTF-8 text; save it as UTF-8"),
        (edited("log", "runs.csv"), "row 'runs.csv': step log: 0 usable step lines; at least 2"),
    ],
)
def test_refused_tables(table: Path, text: str, message: str) -> None:
    """Each error is one line that names the table, the row by its log, the column and the rule."""
    (table.parent / "binary.log").write_bytes(b"\xff\xfe")
    table.write_text(text, encoding="utf-8")
    pattern = message if "log: '" in message else re.escape(message)
    with pytest.raises(ValueError, match=rf"^runs table '.*runs\.csv': {pattern}") as error:
        read_runs(table)
    assert str(error.value).isprintable()


@given(content=st.text(), row=st.booleans())
def test_any_table_is_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: str, row: bool) -> None:
    """Whatever a table holds, the end is one line."""
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(f"{COLUMNS}\n{content}" if row else content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^runs table '.*any\.csv'") as error:
        read_runs(path)
    assert str(error.value).isprintable()
