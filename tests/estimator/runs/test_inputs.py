import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from estimator.calibrate.batches import batched
from estimator.calibrate.fit_stack import fit_stack_to_runs
from estimator.runs.read import Run
from estimator.runs.logged import LoggedRun, logged_run_of, logged_startup
from estimator.runs.inputs import Inputs, is_run_table, is_table, read_inputs
from estimator.stack.stack import Stack, load_stack
from estimator.runs.logs.read import read_log
from hardware.catalog import load_catalog
from hardware.toml_text import catalog_text
from tests.support.paths import ROOT
from tests.support.samples import SAMPLES

STEPS = ROOT / "tests" / "golden" / "logs" / "steps.jsonl"
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
        run = logged_run_of(read_log(path), CATALOG).run
        path.unlink()
        path.parent.rmdir()
        write_log(path, logged, predicted(run, stack), draw)
        found.append(path)
    return found


def fitted(inputs: Inputs) -> Stack:
    """Return the stack that inputs lead to."""
    return fit_stack_to_runs(REFERENCE, inputs.runs, inputs.origin)


def test_logs_are_fitted_back(logs: list[Path]) -> None:
    """Logs made with known parameters, with noise and pauses, lead back to these within three standard errors."""
    inputs = read_inputs(logs, ())
    stack = fitted(inputs)
    for i, name in enumerate(stack.priors):
        if name in TRUTH:
            se = stack.fit.covariance[i][i] ** 0.5
            assert se < stack.priors[name].log_sd / 2, name
            assert abs(stack.fit.log_values[i] - np.log(TRUTH[name])) < 3 * se + 0.01, name
    assert all(run.pace.num_outliers == 2 for run in inputs.logged)


def test_order_and_repetition_of_logs_change_nothing(logs: list[Path], tmp_path: Path) -> None:
    """Logs in another order, and one given twice, lead to the same cases and origins; the copy is told."""
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(logs[0].read_bytes())
    plain, other = read_inputs(logs, ()), read_inputs([*reversed(logs), logs[3]], ())
    assert (other.runs, other.origin) == (plain.runs, plain.origin)
    assert [left.why for left in other.skipped] == ["log: the same as one before"]
    again = read_inputs([*logs, copy], ())
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
    whole, split = read_inputs(logs, ()), read_inputs(parts, ())
    by_run = {repr((run.shape, run.plan)): (run.digest, run.step_s) for run in split.runs}
    assert by_run == {repr((run.shape, run.plan)): (run.digest, run.step_s) for run in whole.runs}
    assert len(split.runs) == len(whole.runs) == len(by_run)
    assert fitted(split).fit.log_values == pytest.approx(fitted(whole).fit.log_values, abs=1e-9)


def test_a_run_measured_twice_is_two(tmp_path: Path) -> None:
    """Two logs of one description that tell the same steps are no parts of one, but runs to be counted each."""
    for name, seconds in (("a", 1.0), ("b", 1.1)):
        write_log(tmp_path / name / "steps.jsonl", record(1024, 1, 4, 8), seconds, np.random.default_rng(0))
    assert len(read_inputs([tmp_path / name / "steps.jsonl" for name in "ab"], ()).runs) == 2


def test_logs_of_runs_that_began_who_knows_when_are_not_joined(tmp_path: Path) -> None:
    """Logs that tell only their whole run, or whose records state no beginning, are runs of their own."""
    end = "{{'train_runtime': {0}, 'train_samples_per_second': 8.0, 'train_steps_per_second': {1}, 'train_loss': 1.0}}"
    logged = record(1024, 1, 4, 8) | {"started": ""}
    for name, seconds in (("a", 400.0), ("b", 500.0)):
        (tmp_path / f"{name}.log").write_text(end.format(seconds, 1000 / seconds), encoding="utf-8")
        (tmp_path / f"{name}.log.run.json").write_text(json.dumps(logged), encoding="utf-8")
    inputs = read_inputs([tmp_path / "a.log", tmp_path / "b.log"], ())
    assert [run.step_s for run in inputs.runs] == [0.4, 0.5]


def test_a_log_given_whole_and_in_parts_counts_once(logs: list[Path], tmp_path: Path) -> None:
    """Beside the whole log its halves are the same as one before."""
    run, *steps = logs[0].read_text(encoding="utf-8").splitlines()
    for name, half in (("b", steps[:20]), ("c", steps[20:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([run, *half]), encoding="utf-8")
    inputs = read_inputs([logs[0], tmp_path / "b.jsonl", tmp_path / "c.jsonl"], ())
    assert len(inputs.runs) == 1
    assert [left.why for left in inputs.skipped] == ["log: the same as one before"]


def test_files_are_told_apart_by_content(tmp_path: Path) -> None:
    """A table of any form, a log and a table of runs with logs are known whatever their names."""
    for number, text in enumerate(SAMPLES.values()):
        path = tmp_path / f"{number}.log"
        path.write_text(text, encoding="utf-8")
        assert is_table(path)
        assert not is_run_table(path)
    assert not is_table(STEPS)
    assert is_run_table(ROOT / "reports" / "measured" / "moai" / "runs.csv")
    inputs = read_inputs([*tmp_path.iterdir(), STEPS], ())
    assert len(inputs.logged) == 1
    assert len(inputs.origin) == len(SAMPLES) + 1


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
            (run,) = read_inputs([path], ()).runs
            assert run.machine.accelerator.fp32_flop_per_s == 2e10
        else:
            with pytest.raises(ValueError, match="of the devices' peak FLOP/s"):
                read_inputs([path], ())


def test_the_first_step_of_logs_is_the_startup(logs: list[Path]) -> None:
    """The median of what first steps took beyond a usual one is the stack's first step; without logs it stays."""
    runs: list[LoggedRun] = read_inputs(logs, ()).logged
    expected = np.median([29 * run.pace.step_s for run in runs])
    assert logged_startup(REFERENCE.startup, runs).first_step_s == pytest.approx(expected, rel=0.05)
    assert logged_startup(REFERENCE.startup, []) == REFERENCE.startup
    assert asdict(runs[0].run)["trainer"] == "reference"
