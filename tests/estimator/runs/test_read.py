import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from estimator.calibrate.batches import batched
from estimator.calibrate.fit_stack import fit_stack_to_runs
from estimator.calibrate.host import startup_of
from estimator.runs.logged import logged_run_of
from estimator.runs.logs.read import read_log
from estimator.runs.measured import Run
from estimator.runs.read import RunsRead, is_timings, read_runs
from estimator.stack.stack import Stack, load_stack
from hardware.catalog import load_catalog
from hardware.toml_text import catalog_text
from tests.support.paths import GOLDEN
from tests.support.tables import RUNS, TIMINGS

STEPS = GOLDEN / "logs" / "steps.jsonl"
RUN: dict[str, Any] = json.loads(STEPS.read_text(encoding="utf-8").partition("\n")[0])
CATALOG = load_catalog()
REFERENCE = load_stack("reference")
TRUTH = {"matmul_efficiency": 0.6, "launch_s_per_layer": 0.005}
NOISE = 0.004


def truth() -> Stack:
    """Return the reference stack with other parameters."""
    fit = REFERENCE.fit
    values = [np.log(TRUTH.get(name, np.exp(value))) for name, value in zip(fit.names, fit.log_values, strict=True)]
    return REFERENCE.model_copy(update={"fit": fit.model_copy(update={"log_values": tuple(map(float, values))})})


def record(hidden: int, rows: int, micro_batches: int, devices: int) -> dict[str, Any]:
    """Return the run record of a data-parallel run on H100."""
    model = RUN["model"] | {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": 8}
    plan = {"num_stages": 1, "num_micro_batches": micro_batches, "batch_per_device": rows, "zero_stage": 3}
    return RUN | {
        "model": model
        | {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64, "vocab_size": 32000},
        "plan": plan,
        "accelerator": "h100-sxm-80gb",
        "num_devices": devices,
        "tokens_per_step": 2048 * rows * micro_batches * devices,
        "precision": "bf16-mixed",
    }


def predicted(run: Run, stack: Stack) -> float:
    """Return the seconds of a step by a stack."""
    (batch,) = batched([run], stack.habits)
    return float(batch.step(stack.efficiencies(*batch.labels)).seconds.item())


def write_log(path: Path, run: dict[str, Any], step_s: float, draw: np.random.Generator) -> None:
    """Write the log of 40 steps with noise, a slow start and two pauses."""
    seconds = step_s * np.exp(NOISE * draw.standard_normal(40))
    seconds[[0, 1, 20, 30]] *= (30, 2, 4, 7)
    lines = [{"record": "step", "step": i, "step_s": float(s)} for i, s in enumerate(seconds, start=1)]
    path.parent.mkdir()
    path.write_text("\n".join(json.dumps(line) for line in [run, *lines]), encoding="utf-8")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return logs of runs that take as long as a stack of known parameters says."""
    folder, draw, stack = tmp_path_factory.mktemp("logs"), np.random.default_rng(0), truth()
    found = []
    for i, (hidden, rows, micro_batches) in enumerate(
        (h, r, m) for h in (512, 1024, 4096) for r in (1, 8) for m in (1, 4)
    ):
        path, logged = folder / str(i) / "steps.jsonl", record(hidden, rows, micro_batches, devices=1 + 7 * (i % 2))
        write_log(path, logged, 10.0, draw)  # slower than any peak
        run = logged_run_of(read_log(path), CATALOG)
        path.unlink()
        path.parent.rmdir()
        write_log(path, logged, predicted(run, stack), draw)
        found.append(path)
    return found


def fitted(found: RunsRead) -> Stack:
    """Return the stack that runs lead to."""
    return fit_stack_to_runs(REFERENCE, found.runs, found.origin)


def test_logs_are_fitted_back(logs: list[Path]) -> None:
    """Logs made with known parameters, with noise and pauses, lead back to these within three standard errors."""
    found = read_runs(logs, CATALOG)
    stack = fitted(found)
    for i, name in enumerate(stack.priors):
        if name in TRUTH:
            se = stack.fit.covariance[i][i] ** 0.5
            assert se < stack.priors[name].log_sd / 2, name
            assert abs(stack.fit.log_values[i] - np.log(TRUTH[name])) < 3 * se + 0.01, name
    assert all(run.pace and run.pace.num_outliers == 2 for run in found.logged)


def test_order_and_repetition_of_logs_change_nothing(logs: list[Path], tmp_path: Path) -> None:
    """Logs in another order, and one given twice, lead to the same cases and origins; the copy is told."""
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(logs[0].read_bytes())
    plain, other = read_runs(logs, CATALOG), read_runs([*reversed(logs), logs[3]], CATALOG)
    assert (other.runs, other.origin) == (plain.runs, plain.origin)
    assert [left.why for left in other.skipped] == ["log: the same as one before"]
    again = read_runs([*logs, copy], CATALOG)
    assert len(again.runs) == len(plain.runs)
    assert [left.why for left in again.skipped] == ["log: the same as one before"]


@pytest.mark.parametrize("cuts", [(20,), (3,), (1, 2, 38), (12, 13, 30)])
def test_splitting_logs_changes_nothing(logs: list[Path], tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Logs cut into files, each headed by the run record, lead to the same runs and the same fit, in any order."""
    parts = []
    for i, path in enumerate(logs):
        logged, *steps = path.read_text(encoding="utf-8").splitlines()
        for first, last in zip((0, *cuts), (*cuts, len(steps)), strict=True):
            parts.append(tmp_path / f"{7 * last % 41}-{i}.jsonl")  # names in another order than the steps
            parts[-1].write_text("\n".join([logged, *steps[first:last]]), encoding="utf-8")
    whole, split = read_runs(logs, CATALOG), read_runs(parts, CATALOG)
    by_run = {repr((run.shape, run.plan)): (run.digest, run.step_s) for run in split.runs}
    assert by_run == {repr((run.shape, run.plan)): (run.digest, run.step_s) for run in whole.runs}
    assert len(split.runs) == len(whole.runs) == len(by_run)
    assert fitted(split).fit.log_values == pytest.approx(fitted(whole).fit.log_values, abs=1e-9)


def test_a_run_measured_twice_is_two(tmp_path: Path) -> None:
    """Two logs of one description that tell the same steps are no parts of one, but runs to be counted each."""
    for name, seconds in (("a", 1.0), ("b", 1.1)):
        write_log(tmp_path / name / "steps.jsonl", record(1024, 1, 4, 8), seconds, np.random.default_rng(0))
    assert len(read_runs([tmp_path / name / "steps.jsonl" for name in "ab"], CATALOG).runs) == 2


def test_logs_of_runs_that_began_who_knows_when_are_not_joined(tmp_path: Path) -> None:
    """Logs that tell only their whole run, or whose records state no beginning, are runs of their own."""
    end = "{{'train_runtime': {0}, 'train_samples_per_second': 8.0, 'train_steps_per_second': {1}, 'train_loss': 1.0}}"
    logged = record(1024, 1, 4, 8) | {"started": ""}
    for name, seconds in (("a", 400.0), ("b", 500.0)):
        (tmp_path / f"{name}.log").write_text(end.format(seconds, 1000 / seconds), encoding="utf-8")
        (tmp_path / f"{name}.log.run.json").write_text(json.dumps(logged), encoding="utf-8")
    found = read_runs([tmp_path / "a.log", tmp_path / "b.log"], CATALOG)
    assert [run.step_s for run in found.runs] == [0.4, 0.5]


def test_a_log_given_whole_and_in_parts_counts_once(logs: list[Path], tmp_path: Path) -> None:
    """Beside the whole log its halves are the same as one before."""
    run, *steps = logs[0].read_text(encoding="utf-8").splitlines()
    for name, half in (("b", steps[:20]), ("c", steps[20:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([run, *half]), encoding="utf-8")
    found = read_runs([logs[0], tmp_path / "b.jsonl", tmp_path / "c.jsonl"], CATALOG)
    assert len(found.runs) == 1
    assert [left.why for left in found.skipped] == ["log: the same as one before"]


def test_files_are_told_apart_by_content(tmp_path: Path) -> None:
    """Tables of runs and of microbenchmarks, and logs, are known whatever their names; any mix of runs is read."""
    names = {"a.log": RUNS, "b.jsonl": TIMINGS}
    for name, text in names.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert [is_timings(path) for path in (tmp_path / "a.log", tmp_path / "b.jsonl", STEPS)] == [False, True, False]
    found = read_runs([STEPS, tmp_path / "a.log"], CATALOG)
    assert [run.name for run in found.logged] == [str(STEPS)]
    assert found.runs[-1] == found.logged[0]
    assert list(found.origin) == ["a.log", "logs/steps.jsonl"]
    with pytest.raises(ValueError, match=r"^files: .*b\.jsonl' is a table of microbenchmarks; it holds no runs$"):
        read_runs([tmp_path / "b.jsonl"], CATALOG)


def test_a_table_of_other_columns_says_which_is_not_known(tmp_path: Path) -> None:
    """A table that shares columns with the format is taken for one, and its first other column is named."""
    path = tmp_path / "others.csv"
    path.write_text("id,model,tp,gpus\na,b,1,8\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^runs table '.*others\.csv': unknown column 'gpus': "):
        read_runs([path], CATALOG)


def test_a_table_given_twice_counts_once(tmp_path: Path) -> None:
    """Of a table and its copy the second is told, and its runs are not there again."""
    paths = [tmp_path / name for name in ("a.csv", "b.csv")]
    for path in paths:
        path.write_text(RUNS, encoding="utf-8")
    found = read_runs(paths, CATALOG)
    assert found.runs == read_runs(paths[:1], CATALOG).runs
    assert [skipped.why for skipped in found.skipped] == ["table: the same as one before"]


def test_hardware_beside_a_log(tmp_path: Path) -> None:
    """A log's accelerator may be of a machine.toml beside it, measured where it ran; its peak is no hard bound."""
    like, node = CATALOG.accelerator("epyc-7763"), CATALOG.node("epyc-7763-x1")
    lines = STEPS.read_text(encoding="utf-8").splitlines()
    logged = RUN | {"accelerator": "own", "num_devices": 1, "plan": RUN["plan"] | {"data_parallel": None}}
    path = tmp_path / "steps.jsonl"
    path.write_text("\n".join([json.dumps(logged | {"tokens_per_step": 4096}), *lines[1:]]), encoding="utf-8")
    for efficiency, is_read in ((1.0, True), (0.8, False)):
        sure = like.matmul_efficiency.model_copy(update={"value": efficiency})
        slow = {"id": "own", "fp32_flop_per_s": 2e10, "matmul_efficiency": sure}
        machine = [like.model_copy(update=slow), node.model_copy(update={"id": "own-x1", "accelerator": "own"})]
        (tmp_path / "machine.toml").write_text(catalog_text(machine), encoding="utf-8")
        if is_read:
            (run,) = read_runs([path], CATALOG).runs
            assert run.machine.accelerator.fp32_flop_per_s == 2e10
        else:
            with pytest.raises(ValueError, match="of the devices' peak FLOP/s"):
                read_runs([path], CATALOG)


def test_the_first_step_of_logs_is_the_startup(logs: list[Path]) -> None:
    """The median of what first steps took beyond others is the startup's; the load is as premised."""
    runs = read_runs(logs, CATALOG).logged
    expected = np.median([29 * run.step_s for run in runs if run.step_s])
    found = startup_of(runs, REFERENCE.log.load_s)
    assert found.first_step_excess_s == pytest.approx(expected, rel=0.05)
    assert found.load_s == REFERENCE.log.load_s
    assert runs[0].trainer == "reference"
