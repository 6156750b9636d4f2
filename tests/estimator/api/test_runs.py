import pytest

from estimator import read_runs
from estimator.work.plan import PLAN_NAMES
from tests.support.paths import GOLDEN, TABLES

TABLE = TABLES / "measured_runs.csv"
STEPS = GOLDEN / "logs" / "steps.jsonl"


def test_a_row_a_run() -> None:
    """The frame has what ran and what was measured, in order, plans under the names of their fields."""
    found = read_runs([TABLE, str(STEPS)])
    frame = found.to_frame()
    assert frame.run.tolist() == [run.name for run in found.runs]
    assert frame.step_s.dropna().tolist() == [run.step_s for run in found.runs if run.step_s is not None]
    assert set(PLAN_NAMES) < set(frame.columns)
    assert (frame.tokens_per_s * frame.step_s).dropna().round().tolist() == (frame.global_batch * frame.seq_len)[
        frame.step_s.notna()
    ].tolist()
    assert len(found.skipped) > 0
    assert repr(found) == (
        f"{len(found.runs)} runs of {', '.join(sorted(set(frame.trainer)))}; {len(found.skipped)} skipped"
    )


def test_one_file_is_enough() -> None:
    """A path alone is read; of no runs there is an empty frame."""
    assert len(read_runs(STEPS).runs) == 1
    assert read_runs([]).to_frame().empty


def test_what_cannot_be_read() -> None:
    """A file that is not there is told as the command tells it."""
    with pytest.raises(ValueError, match=r"log 'none\.log': cannot be read; check the path"):
        read_runs("none.log")
