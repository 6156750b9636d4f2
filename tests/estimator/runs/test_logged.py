import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from estimator.runs.logged import UNKNOWN_LOG_SE, logged_run_of
from estimator.runs.logs.read import read_log
from estimator.runs.measured import Run
from estimator.stack.recipe import Recipe
from estimator.work.plan import Plan
from hardware.catalog import load_catalog
from tests.support.paths import GOLDEN, MEASURED

LOGS = GOLDEN / "logs"
CATALOG = load_catalog()
LINES = (LOGS / "steps.jsonl").read_text(encoding="utf-8").splitlines()
RUN: dict[str, Any] = json.loads(LINES[0])
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}


def foreign(log: str, tmp_path: Path, **changes: Any) -> Run:
    """Return a foreign log beside the record of its run, on 8 H100."""
    path = tmp_path / log
    path.write_bytes((LOGS / log).read_bytes())
    plan = {"num_stages": 1, "num_micro_batches": 1, "batch_per_device": 2, "zero_stage": 3} | changes.pop("plan", {})
    run = RUN | {
        "model": LLAMA,
        "plan": plan,
        "accelerator": "h100-sxm-80gb",
        "num_devices": 8,
        "tokens_per_step": 16 * 4096,
        "precision": "bf16-mixed",
        "attention": "flash",
    }
    (tmp_path / f"{log}.run.json").write_text(json.dumps(run | changes), encoding="utf-8")
    return logged_run_of(read_log(path), CATALOG)


def own(tmp_path: Path, *lines: str) -> Run:
    """Return a log of the reference trainer of these lines."""
    path = tmp_path / "steps.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return logged_run_of(read_log(path), CATALOG)


def step(index: int, **changes: Any) -> str:
    """Return a line of the golden log with other values."""
    return json.dumps(json.loads(LINES[index]) | changes)


def test_the_trainer_log_is_a_run() -> None:
    """The golden log: what was trained, on what, the mean of its two paces, and the fullest rank's memory."""
    run = logged_run_of(read_log(LOGS / "steps.jsonl"), CATALOG)
    assert (run.trainer, run.model, run.seq_len, run.dp) == ("reference", "mistral-tiny", 256, 2)
    assert run.plan == Plan(num_micro_batches=2, batch_per_device=4)
    assert run.recipe == Recipe("fp32", has_all_logits=True)
    assert run.pace is not None
    assert run.step_s == run.pace.step_s == pytest.approx(0.3 * (1 + 0.35 * 12 / 37), rel=0.01)
    assert run.reserved_bytes == 402653184 + 40
    assert run.pace.modes is not None
    assert run.pace.modes.slow_ratio == pytest.approx(1.35, rel=0.02)
    assert run.pace.num_outliers == 1
    assert (run.fits, run.why_unhealthy, run.steps_per_read) == (True, "", 1)
    assert run.pace.log_se is not None
    assert run.step_log_se == np.hypot(run.pace.log_se, 0.12)  # on a processor, whose speed drifts from run to run


def test_a_foreign_log_is_a_run_with_a_record_beside_it(tmp_path: Path) -> None:
    """A torchtitan log of 8 devices with its run record: 16 rows of 4,096 tokens in 0.915 s."""
    run = foreign("torchtitan.log", tmp_path)
    assert (run.trainer, run.recipe) == ("torchtitan", Recipe())
    assert run.tokens_per_s == pytest.approx(16 * 4096 / 0.915, rel=0.005)
    assert run.reserved_bytes == 61.44 * 2**30


def test_steps_timed_all_together_have_an_assumed_error(tmp_path: Path) -> None:
    """A trainer_state.json without stamps tells one mean, whose error is assumed."""
    model = LLAMA | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    run = foreign(
        "trainer_state.json",
        tmp_path,
        model=model | {"num_key_value_heads": 2, "vocab_size": 512},
        plan={"batch_per_device": 4, "num_micro_batches": 2},
        accelerator="epyc-7763",
        num_devices=1,
        tokens_per_step=1024,
        precision="fp32",
    )
    assert run.step_log_se == np.hypot(UNKNOWN_LOG_SE, run.machine.drift_log_sd)
    assert run.reserved_bytes is None


def moai(name: str) -> Run:
    """Return a run of the MoAI tutorials."""
    return logged_run_of(read_log(MEASURED / "moai" / f"{name}.log"), CATALOG)


def test_stated_minutes_are_a_second_measurement() -> None:
    """The step lies between what the log says and what the page states, and is surer than either."""
    run = moai("mistral_7b_4xlarge")
    assert run.pace is not None
    assert run.pace.log_se is not None
    assert 50 * 60 / 144 < (run.step_s or 0) < run.pace.step_s
    assert run.step_log_se < run.pace.log_se
    alone = moai("llama2_13b_8xlarge")
    assert alone.pace is not None
    assert (alone.step_s, alone.step_log_se) == (alone.pace.step_s, alone.pace.log_se)


def test_a_run_has_what_its_log_tells_of_the_host_and_the_start() -> None:
    """Launches after the warm-up, steps between reads of the loss, memory that was read, and one-off seconds."""
    run = moai("mistral_7b_4xlarge")
    assert run.launch_windows_s == (10.89, 7.54, 7.94, 7.62, 7.58, 11.13)
    assert (run.trainer, run.total_bytes, run.steps_per_read) == ("moai", 1138546 * 2**20, 1)
    assert run.startup == pytest.approx((5.773, 51.579 / 16, 62.399), abs=1e-3)
    assert moai("llama3_8b_4xlarge").steps_per_read == 2
    every_second = moai("llama2_13b_8xlarge")
    assert every_second.startup is not None
    assert every_second.startup.first_step_s == pytest.approx(103.930 - (every_second.step_s or 0), abs=1e-2)


def test_the_first_step_of_the_trainer_is_told_whole() -> None:
    """The startup of a `steps.jsonl` is its first step, and nothing else of it."""
    run = logged_run_of(read_log(LOGS / "steps.jsonl"), CATALOG)
    assert run.startup == (None, None, json.loads(LINES[1])["step_s"])


def test_eager_attention_teaches_nothing(tmp_path: Path) -> None:
    """A run with eager attention says why nothing is learned from it."""
    run = own(tmp_path, json.dumps(RUN | {"attention": "eager"}), *LINES[1:])
    assert run.why_unhealthy.startswith("attention: eager")


def test_a_run_begun_again_is_one_run(tmp_path: Path) -> None:
    """A second record of the same run changes nothing; one of another run is refused."""
    again = json.dumps(RUN | {"started": "later"})
    assert own(tmp_path, *LINES[:20], again, *LINES[20:]).pace == own(tmp_path, *LINES).pace
    other = json.dumps(RUN | {"num_nodes": 2})
    with pytest.raises(ValueError, match=r"has records of two runs that differ; give a file per run$"):
        own(tmp_path, *LINES, other)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokens": 8192}, 'step 30: 8192 tokens are not the run\'s 4096: \'{"record": "step", "step": 30'),
        ({"useful_tokens": 5000}, "5000 useful tokens are more than 4096: '{"),
        ({"step_s": 1e-5, "data_s": 0, "compute_s": 0, "optimizer_s": 0, "log_s": 0}, "1e-05 s per step imply "),
        ({"compute_s": 9.0}, "phases of 9.025 s do not fit into "),
        ({"step_s": -1.0}, "step_s: -1.0 does not fit; input should be greater than 0: '{"),
        ({"step_s": "0.3"}, "step_s: '0.3' does not fit; input should be a valid number: '{"),
        ({"time": "2026-11-20T09:00:00+00:00"}, "step 30: time runs backward: '{"),
        ({"time": "yesterday"}, "time: 'yesterday' is no time in ISO 8601: '{"),
        ({"peak_reserved_bytes": 0}, "peak_reserved_bytes: 0 does not fit; input should be greater than 0: '{"),
    ],
)
def test_impossible_lines_are_refused_and_quoted(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """A step that cannot have been is left out and quoted, and the others stand."""
    at = next(i for i, line in enumerate(LINES) if '"step": 30,' in line)
    plain = own(tmp_path, *LINES)
    run = own(tmp_path, *LINES[:at], step(at, **changes), *LINES[at + 1 :])
    assert run.log.num_refused == 1
    assert run.log.refused[0].startswith(told)
    assert run.log.refused[0].isprintable()
    assert run.pace.step_s == pytest.approx(plain.pace.step_s, rel=0.01)


@pytest.mark.parametrize(
    ("log", "changes", "message"),
    [
        ("torchtitan.log", {"tokens_per_step": 16 * 2048}, "make 8,18. tokens a step on each device; the run record s"),
        ("torchtitan.log", {"plan": {"batch_per_device": 4}, "tokens_per_step": 2**17}, "make 8,18. tokens a step"),
        ("megatron.log", {}, "64 rows are not the run's 16: ' \\[2025.*; no step of the log is the run record's, give"),
        (
            "torchtitan.log",
            {"model": LLAMA | {"num_hidden_layers": 320}},
            "s per step imply 4[0-9]{2}% of the devices'",
        ),
        (
            "torchtitan.log",
            {"accelerator": "a100-sxm-40gb"},
            "peak memory: 61.4 GiB is more than the 39.5 GiB of a dev",
        ),
        (
            "torchtitan.log",
            {"plan": {"num_stages": 3}},
            "plan: num_stages \\* tp \\* cp = 3 does not divide num_device",
        ),
    ],
)
def test_a_log_of_another_run_is_refused(tmp_path: Path, log: str, changes: dict[str, Any], message: str) -> None:
    """Tokens, rows, speed and memory that are not the run record's are refused, with a line where one is to blame."""
    with pytest.raises(ValueError, match=rf"^log '.*': .*{message}") as error:
        foreign(log, tmp_path, **changes)
    assert str(error.value).isprintable()


def test_a_log_without_a_record(tmp_path: Path) -> None:
    """A log that does not say what was trained needs a record beside it."""
    path = tmp_path / "a.log"
    path.write_bytes((LOGS / "megatron.log").read_bytes())
    with pytest.raises(ValueError, match=r"^run record '.*a\.log\.run\.json': cannot be read; the log does not say"):
        logged_run_of(read_log(path), CATALOG)
