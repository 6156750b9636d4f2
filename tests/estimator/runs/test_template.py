import json
import re
from pathlib import Path

import pytest

from estimator.runs.logged import logged_run_of
from estimator.runs.logs.read import read_log
from estimator.runs.read import read_runs
from estimator.runs.record import read_run_record, record_path
from estimator.runs.template import write_template
from hardware.catalog import load_catalog
from tests.support.paths import GOLDEN, MEASURED

CATALOG = load_catalog()
LOGS = GOLDEN / "logs"
REST = {
    "model": "meta-llama/Meta-Llama-3-8B",
    "accelerator": "a100-sxm-80gb",
    "num_nodes": 2,
    "precision": "bf16-mixed",
}


def copied(path: Path, folder: Path) -> Path:
    """Return a copy of a log in a folder, without a record."""
    log = folder / path.name
    log.write_bytes(path.read_bytes())
    return log


def test_a_template_that_is_filled_in_is_a_run(tmp_path: Path) -> None:
    """What the log tells is there, what it does not is null; once that is filled in, it reads as a run."""
    log = copied(LOGS / "megatron.log", tmp_path)
    begun = write_template(log, CATALOG)
    assert begun.path == record_path(log)
    assert {"num_devices", "tokens_per_step", "seq_len", "plan.num_stages", "plan.num_micro_batches"} <= {*begun.told}
    assert begun.empty.keys() == {*REST, "plan.zero_stage"}
    document = json.loads(begun.path.read_text(encoding="utf-8"))
    assert all(document[key] is None for key in REST)
    document |= REST
    document["plan"]["zero_stage"] = 1
    begun.path.write_text(json.dumps(document), encoding="utf-8")
    (run,) = read_runs([log], CATALOG).runs
    assert (run.trainer, run.machine.num_devices, run.seq_len, run.plan.tp) == ("megatron", 16, 4096, 2)


@pytest.mark.parametrize("key", ["model", "accelerator", "num_devices", "precision"])
def test_what_is_not_filled_in_is_named(tmp_path: Path, key: str) -> None:
    """A key that is needed and still null is an error that says what to write."""
    record_path(tmp_path / "a.log").write_text(json.dumps({key: None, "plan": {}}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"a\.log\.run\.json': {key} is not filled in; write ") as error:
        read_run_record(tmp_path / "a.log")
    assert str(error.value).isprintable()


def test_a_plan_that_is_not_filled_in_is_named(tmp_path: Path) -> None:
    """The same of a key of the plan."""
    record_path(tmp_path / "a.log").write_text(json.dumps({"plan": {"zero_stage": None}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"plan: zero_stage is not filled in; write what is sharded: 3 with FSDP, "):
        read_run_record(tmp_path / "a.log")


def test_a_record_is_never_replaced(tmp_path: Path) -> None:
    """Where a record lies beside the log, nothing is written."""
    log = copied(LOGS / "torchtitan.log", tmp_path)
    record_path(log).write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^template: '.*' is there already, and is not replaced; move it away first$"):
        write_template(log, CATALOG)
    assert record_path(log).read_text(encoding="utf-8") == "mine"


def test_logs_that_need_none(tmp_path: Path) -> None:
    """A log that says itself what was trained, and a file that is none, get no record."""
    log = copied(LOGS / "steps.jsonl", tmp_path)
    with pytest.raises(ValueError, match=r"^template: log '.*' says itself what was trained; it needs no run record$"):
        write_template(log, CATALOG)
    (tmp_path / "none.log").write_text("no log", encoding="utf-8")
    with pytest.raises(ValueError, match="no whole step of a known format"):
        write_template(tmp_path / "none.log", CATALOG)
    assert not list(tmp_path.glob("*.run.json"))


def test_a_moai_log_tells_its_plan(tmp_path: Path) -> None:
    """The plan of a template is that of the record which was written by hand."""
    own = MEASURED / "moai" / "qwen1.5_7b_4xlarge.log"
    begun = write_template(copied(own, tmp_path), CATALOG)
    found, known = (json.loads(path.read_text(encoding="utf-8"))["plan"] for path in (begun.path, record_path(own)))
    assert {key: found[key] for key in ("num_stages", "num_micro_batches", "batch_per_device")} == {
        key: known[key] for key in ("num_stages", "num_micro_batches", "batch_per_device")
    }
    assert found["zero_stage"] == 3


def test_rows_and_tokens_of_the_steps_are_told(tmp_path: Path) -> None:
    """What every step says of its rows and tokens is in the template."""
    begun = write_template(copied(LOGS / "composer.log", tmp_path), CATALOG)
    document = json.loads(begun.path.read_text(encoding="utf-8"))
    assert (document["tokens_per_step"], document["plan"]["batch_per_device"]) == (131072, 4)
    assert document["trainer"] == "llm-foundry"
    assert not {"rows", "devices_per_node"} & document.keys()


def test_adapters_are_told_in_a_record(tmp_path: Path) -> None:
    """Adapters, quantized weights and the optimizer of a record are those of its run, of fewer FLOP."""
    log = copied(LOGS / "megatron.log", tmp_path)
    plan = {"num_stages": 1, "num_micro_batches": 2, "batch_per_device": 2, "zero_stage": 0, "recomputation": "full"}
    document = {
        "record": "run", "schema": "steps/1", "num_devices": 16, "tokens_per_step": 262144, "plan": plan,
        "lora_rank": 16, "lora_targets": ["q_proj", "v"], "quantize": 4, "optimizer": "adamw-8bit", "seq_len": 4096,
    }  # fmt: skip
    large = REST | {"model": "meta-llama/Llama-2-13b-hf"}
    record_path(log).write_text(json.dumps(large | document | {"lora_rank": 0, "lora_targets": [], "quantize": None}))
    with pytest.raises(ValueError, match="imply 127% of the devices' peak FLOP/s"):
        logged_run_of(read_log(log), CATALOG)
    record_path(log).write_text(json.dumps(large | document), encoding="utf-8")
    recipe = logged_run_of(read_log(log), CATALOG).recipe
    assert (recipe.lora_rank, recipe.lora_targets, recipe.quantize) == (16, ("q", "v"), "4")
    assert (recipe.optimizer, str(recipe)) == (
        "adamw-8bit",
        "LoRA of rank 16 on q and v, 4-bit frozen weights, adamw-8bit",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize": 5}, "quantize: 5 are no bits of frozen weights; use one of 8, 4"),
        ({"quantize": True}, "quantize: True are no bits of frozen weights; use one of 8, 4"),
        ({"lora_targets": ["q", "query"]}, "lora_targets: unknown matrix 'query'"),
        ({"lora_targets": 3}, "lora_targets: 3 is no list of matrices; use some of q, k, v, o, gate, up, down"),
        ({"lora_rank": -1}, "lora_rank: -1 does not fit"),
        ({"lora_ranks": 8}, "unknown key 'lora_ranks': did you mean lora_rank"),
        ({"quantise": 8}, "unknown key 'quantise': did you mean quantize"),
    ],
)
def test_refused_adapters(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """What is none of its kind is an error in one line, a misspelt key one that names the nearest."""
    plan = {"num_stages": 1, "num_micro_batches": 2, "batch_per_device": 2, "zero_stage": 0}
    document = {"schema": "steps/1", "num_devices": 16, "tokens_per_step": 262144, "plan": plan, **REST} | changes
    record_path(tmp_path / "a.log").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_run_record(tmp_path / "a.log")
    assert str(error.value).isprintable()
