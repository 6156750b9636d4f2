import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.report.json import estimate_document
from estimator.runs.record import RunRecord, parse_run_record, plan_of, read_run_record
from estimator.search.planner import search
from estimator.stack.recipe import Recipe
from estimator.stack.stack import load_stack
from estimator.work.plan import Plan
from estimator.work.shape import TARGETS, load_shape
from estimator.work.workload import Workload
from hardware.catalog import load_catalog
from tests.support.paths import GOLDEN, MEASURED

LOG = GOLDEN / "logs" / "steps.jsonl"
CATALOG = load_catalog()
DOCUMENT: dict[str, Any] = json.loads(LOG.read_text(encoding="utf-8").split("\n")[0])


def record(**changes: Any) -> RunRecord:
    """Return the golden run record with other values."""
    return parse_run_record(json.dumps(DOCUMENT | changes), "run record")


def plan(**changes: Any) -> dict[str, Any]:
    """Return the golden plan with other values."""
    return DOCUMENT["plan"] | changes


def test_a_run_record_is_a_run() -> None:
    """Two data-parallel ranks, 2 micro-batches of 4 rows each: 16 rows of 256 tokens make the 4,096 of a step."""
    run = record()
    workload, machine = run.workload(), run.machine(CATALOG)
    assert (workload.seq_len, workload.global_batch, workload.shape.num_layers) == (256, 16, 4)
    assert (machine.num_devices, machine.num_nodes, machine.devices_per_node) == (2, 1, 2)
    assert plan_of(run.plan) == Plan(num_micro_batches=2, batch_per_device=4, zero_stage=3)
    assert run.recipe() == Recipe("fp32")
    assert record(precision="bf16-mixed").recipe() == Recipe()
    assert record(compiled=True).recipe() == Recipe("fp32", compiles=True)


def test_adapters_of_a_record_are_those_of_its_recipe() -> None:
    """Modules or matrices name the targets; all of them are none told, as a recipe says it; no key is all weights."""
    few = {"lora_rank": 16, "lora_alpha": 32.0, "lora_targets": ["v_proj", "q"], "lora_dropout": 0.0}
    assert record(**few).recipe() == Recipe("fp32", lora_rank=16, lora_targets=("q", "v"))
    every = few | {"lora_targets": [f"{name}_proj" for name in TARGETS]}
    assert record(**every).recipe() == Recipe("fp32", lora_rank=16)
    assert record().recipe().lora_rank == 0
    assert not record(**few).is_same_run(record())


def test_a_plan_as_estimate_prints_it_is_read_back() -> None:
    """Every plan that `estimate --json` prints reads back as that plan, all its keys."""
    workload = Workload(load_shape("mistral-7b-v0.1"), 2048, 256, 144)
    found = search(workload, CATALOG.flavor("4xLarge.2048GB"), load_stack("moai-24.2"), CATALOG, space="full")
    for plan_document, estimate in zip(estimate_document(found)["plans"], found.plans, strict=True):
        run = record(plan=plan_document["plan"], num_devices=32, num_nodes=4, tokens_per_step=524288)
        assert plan_of(run.plan) == estimate.plan
        assert (run.workload().seq_len, run.workload().global_batch) == (2048, 256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "steps/2"}, "run record: schema: 'steps/2' does not fit; input should be 'steps/1'"),
        ({"plan": {}}, "run record: plan: num_stages: is missing; add it"),
        ({"plan": plan(num_stages=True)}, "run record: plan: num_stages: True does not fit"),
        ({"plan": plan(zero_stage=1)}, "run record: plan: distribute_param = True contradicts zero_stage = 1; true is"),
        ({"plan": plan(zero_stage=None, distribute_param=None)}, "run record: plan: zero_stage is missing, and distr"),
        ({"plan": plan(schedule="magic")}, "run record: plan: schedule: 'magic' does not fit; input should be 'gpipe'"),
        ({"num_devices": 0}, "run record: num_devices: 0 does not fit"),
        ({"tokens_per_step": "4096"}, "run record: tokens_per_step: '4096' does not fit"),
        ({"stated_minutes": 50.0}, "run record: num_steps is missing, of which stated_minutes is the time; add it"),
        ({"total_bytes": 0}, "run record: total_bytes: 0 does not fit"),
        ({"model": 1}, "run record: model: 1 is neither a Hugging Face config nor a name"),
    ],
)
def test_refused_records(changes: dict[str, Any], message: str) -> None:
    """A record that breaks a rule is refused in one line that names the key."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        record(**changes)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_nodes": 3}, "num_nodes: 3 is more than num_devices = 2"),
        ({"accelerator": "epyc"}, "unknown accelerator 'epyc': did you mean epyc-7763?"),
        ({"precision": "bf17"}, "unknown precision 'bf17': did you mean"),
        ({"plan": plan(num_stages=3)}, "plan: num_stages * tp * cp = 3 does not divide num_devices = 2"),
        ({"plan": plan(data_parallel=1)}, "plan: data_parallel = 1 is stated, 2 follows from the rest"),
        ({"seq_len": 128}, "seq_len: 128 is stated, 256 follows from tokens_per_step and the plan"),
        ({"tokens_per_step": 4097}, "tokens_per_step: 4097 is not a whole number of tokens in each of 16 rows (2 data"),
        ({"model": {"model_type": "bert"}}, "model 'bert': model_type 'bert' is not modelled; use one of"),
    ],
)
def test_records_of_no_run(changes: dict[str, Any], message: str) -> None:
    """A record whose numbers do not make a run is refused when it is used."""
    run = record(**changes)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        [run.machine(CATALOG), run.recipe(), run.workload()]


def test_a_record_beside_a_log(tmp_path: Path) -> None:
    """A log without a run record takes the one that lies beside it; where none does, the error says what to write."""
    log = tmp_path / "megatron.log"
    with pytest.raises(ValueError, match=r"^run record '.*megatron\.log\.run\.json': cannot be read; the log does not"):
        read_run_record(log)
    (tmp_path / "megatron.log.run.json").write_text(json.dumps(DOCUMENT), encoding="utf-8")
    assert read_run_record(log) == record()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_device": 2}, "unknown key 'num_device': did you mean num_devices"),
        ({"plan": plan(recomputaton="full")}, "unknown key of plan 'recomputaton': did you mean recomputation or "),
    ],
)
def test_a_record_written_by_hand_has_no_other_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A misspelt key of a record beside a log is an error; the trainer's own log may say more than is read."""
    (tmp_path / "a.log.run.json").write_text(json.dumps(DOCUMENT | changes), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^run record '.*a\.log\.run\.json': {re.escape(message)}"):
        read_run_record(tmp_path / "a.log")
    assert record(**changes).num_devices == 2


def test_the_first_line_of_a_step_log_is_a_record(tmp_path: Path) -> None:
    """What begins a `steps.jsonl` of the trainer may be written beside another log as it is."""
    line = next((MEASURED / "cpu").glob("*/steps.jsonl")).read_text(encoding="utf-8").partition("\n")[0]
    (tmp_path / "a.log.run.json").write_text(line, encoding="utf-8")
    assert read_run_record(tmp_path / "a.log") == parse_run_record(line, "run record")


def test_a_model_by_its_name() -> None:
    """The model may be a built-in name instead of a config."""
    assert record(model="mistral-7b-v0.1").shape() == load_shape("mistral-7b-v0.1")
    with pytest.raises(ValueError, match="unknown model 'mistral-8b': "):
        record(model="mistral-8b").shape()


def test_a_plan_under_its_own_keys_is_the_same() -> None:
    """A plan written with the keys of `Plan` reads as under those of `estimate --json`."""
    own = Plan(num_stages=2, num_micro_batches=4, tp=2, zero_stage=1, schedule="gpipe", sequence_parallel=False)
    run = record(plan=asdict(own) | {"distribute_param": False, "data_parallel": 2}, num_devices=8)
    assert plan_of(run.plan) == own


def test_the_same_run_begun_again() -> None:
    """Another start and other versions are the same run; another plan is not."""
    assert record().is_same_run(record(started="later", versions={"torch": "2"}))
    assert not record().is_same_run(record(plan=plan(recomputation="full")))


@given(text=st.text(max_size=200) | st.builds(json.dumps, st.dictionaries(st.sampled_from(list(DOCUMENT)), st.none())))
def test_any_text_is_refused_in_one_line(text: str) -> None:
    """Whatever is no run record is refused in one printable line."""
    with pytest.raises(ValueError, match=r"^run record: ") as error:
        parse_run_record(text, "run record")
    assert str(error.value).isprintable()
