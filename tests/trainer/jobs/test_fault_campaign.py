"""The campaign of `make faults`: what it does to a run's files, and what its report says."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.faults import EVERY, FIRST, KINDS, LAST, STEPS, Kind, Outcome, Victim, report, steps_logged


def run_of(folder: Path) -> Victim:
    """Write what a run leaves, whose processes have ended."""
    (folder / "steps.jsonl").write_text("".join(f'{{"record": "step", "step": {n}}}\n' for n in range(1, 12)))
    (folder / "train.log").write_text("".join(f"[Step {n}/20] | Loss: 1\n" for n in range(1, 12)) + "[Step 12/2")
    for step in (6, 9):
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        for name in ("__0_0.distcp", "__1_0.distcp", ".metadata", "run.json"):
            (checkpoint / name).write_bytes(random.Random(name).randbytes(300))  # noqa: S311 - any bytes
    process = SimpleNamespace(kill=lambda: None, wait=lambda **_: 0, pid=1)
    return Victim(folder, process, [process, process])  # type: ignore[arg-type, list-item]


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "killed," in kind.name], ids=lambda kind: kind.name)
def test_a_damage_is_of_one_file_and_no_older_checkpoint(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each damage changes one file, of the newest checkpoint or the log, and at each draw something."""
    monkeypatch.setattr("benchmarks.faults.psutil.wait_procs", lambda *_, **__: ([], []))
    for seed in range(20):
        folder = tmp_path / str(seed)
        folder.mkdir()
        victim = run_of(folder)
        before = content(folder)
        kind.fault(victim, random.Random(seed))  # noqa: S311 - of a test's damage
        after = content(folder)
        (changed,) = [name for name in before if after.get(name) != before[name]]
        assert changed == "steps.jsonl" if "log" in kind.name else changed.startswith("checkpoints/step-00000009/")


def test_a_fault_falls_between_a_checkpoint_and_the_end() -> None:
    """There are two checkpoints to go on from, and something left to do."""
    assert 2 * EVERY < FIRST < LAST < STEPS


def test_the_last_whole_line_counts(tmp_path: Path) -> None:
    """A line under way is no step yet, and a run that has not begun has none."""
    assert steps_logged(tmp_path) == 0
    run_of(tmp_path)
    assert steps_logged(tmp_path) == 11


def test_the_report_counts_what_was_tried() -> None:
    """Tried and survived are told by kind, medians and most of those that survived, and why others have not."""
    kill, *_ = KINDS
    found = [Outcome(kill.name, "", lost, 1.0 + lost, 2.0) for lost in (0, 1, 2)]
    text = report([*found, Outcome(kill.name, "the model is another", 0, 9.0, 9.0)], seed=7)
    assert f"| {kill.name} | 4 | 3 | 1, 2 | 2, 3 | 2, 2 |" in text
    assert "3 of 4 survived" in text
    assert f"- {kill.name}: the model is another" in text
    assert "(seed 7," in text
