"""A predicted step as a trace: its form, and that it says what the estimate says."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from estimator import Estimate, estimate, trace
from estimator.predict.timeline import step_timeline
from hardware.units import MIB
from tests.support.commands import estimate as call
from tests.support.trace_format import check_trace, slices

ON_A100 = {"model": "meta-llama/Llama-2-7b-hf", "flavor": "p4de.24xlarge-x4", "batch": 256, "steps": 100}
CASES: dict[str, dict[str, Any]] = {
    "seed": {"flavor": "4xLarge.2048GB"},
    "tensor parallel, all repeated": {
        "flavor": "4xLarge.2048GB",
        "plan": "num_stages=4,num_micro_batches=32,batch_per_device=2,tp=2,recomputation=full",
    },
    "interleaved": {
        **ON_A100,
        "stack": "megatron",
        "plan": "num_stages=4,num_micro_batches=32,schedule=interleaved,virtual_stages=4,zero_stage=1",
    },
    "zero bubble": {
        **ON_A100,
        "stack": "megatron",
        "plan": "num_stages=4,num_micro_batches=32,schedule=zero_bubble,zero_stage=1",
    },
    "gpipe": {
        **ON_A100,
        "batch": 64,
        "stack": "megatron",
        "plan": "num_stages=4,num_micro_batches=8,schedule=gpipe,zero_stage=1",
    },
    "one stage": {**ON_A100, "stack": "generic", "plan": "num_micro_batches=8,zero_stage=3"},
}


@pytest.fixture(scope="module", params=CASES)
def answer(request: pytest.FixtureRequest) -> Estimate:
    """Return the answer of a case."""
    found = estimate(**CASES[request.param])
    assert isinstance(found, Estimate)
    return found


@pytest.fixture(scope="module")
def document(answer: Estimate) -> dict[str, Any]:
    """Return its trace, as a file holds it."""
    return json.loads(json.dumps(trace(answer)))


def test_the_form_is_that_of_the_format(document: dict[str, Any]) -> None:
    """Keys, named streams, nested slices, flows, counters: as the Trace Event Format has them."""
    check_trace(document)


def test_ops_add_up_to_the_estimate(answer: Estimate, document: dict[str, Any]) -> None:
    """Over the stages, the mean seconds of each kind of op are those of the estimate's breakdown."""
    plan = answer.plans[0]
    sums: dict[str, float] = defaultdict(float)
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            sums[event["name"].removesuffix(" again")] += event["dur"] / 1e6 / plan.plan.num_stages
    ops = ("matmul", "attention", "elementwise", "tensor_parallel", "data_parallel", "optimizer")
    told = {name: plan.step_breakdown[name] for name in ops}
    assert {name: sums[name] for name in ops} == pytest.approx(told, rel=1e-6, abs=1e-9)


def test_the_step_is_the_estimates_but_for_waits(answer: Estimate, document: dict[str, Any]) -> None:
    """From the first event to the last, a step takes what is estimated, but for how long stages wait."""
    plan, said = answer.plans[0], document["otherData"]
    last = max(event["ts"] + event["dur"] for stream in slices(document).values() for event in stream)
    unexplained = min(said["after_the_pipeline_s"].get("unexplained", 0.0), 0.0)
    assert last / 1e6 + unexplained == pytest.approx(said["step_s"], rel=1e-6)
    waits = plan.step_breakdown["pipeline_bubble"] + plan.step_breakdown["stage_transfer"]
    busy = plan.step_s.value - waits
    assert said["step_s"] >= busy * (1 - 1e-9)
    assert said["step_s"] == pytest.approx(plan.step_s.value, rel=0.2)
    if plan.plan.num_stages == 1:
        assert said["step_s"] == pytest.approx(plan.step_s.value, rel=1e-9)


def test_the_memory_on_the_timeline_is_the_memory(answer: Estimate, document: dict[str, Any]) -> None:
    """The fullest moment of the fullest stage holds what the estimate says; nothing is negative, all is given back."""
    peaks: dict[int, list[float]] = defaultdict(list)
    for event in document["traceEvents"]:
        if event["ph"] == "C":
            peaks[event["pid"]].append(event["args"]["MiB"])
    fullest = max(max(values) for values in peaks.values())
    assert fullest == pytest.approx(answer.plans[0].memory.per_device_bytes.value / MIB, rel=1e-6)
    assert all(values[-1] == pytest.approx(values[0]) for values in peaks.values())


def test_the_critical_path_without_transfers(answer: Estimate) -> None:
    """Without transfers the pipeline takes no longer than the closed form, interleaved a tenth more at most."""
    best = answer.plans[0]
    found = step_timeline(best.plan, answer.workload, answer.machine, answer.stack)
    within = found.pipeline.seconds - sum(float(np.sum(own.end_s - own.start_s)) for own in found.pipeline.sends)
    ratio = 1.1 if best.plan.schedule == "interleaved" else 1 + 1e-9
    breakdown = best.step_breakdown
    closed = sum(
        breakdown[name]
        for name in ("matmul", "attention", "elementwise", "tensor_parallel", "context_parallel", "pipeline_bubble")
    )
    host = 0.0 if answer.stack.habits.single_controller else breakdown["host"]
    assert within <= (closed + host) * ratio


def test_the_command_writes_it(tmp_path: Path) -> None:
    """`--trace FILE` writes the trace beside the answer, which stays as it was."""
    file = tmp_path / "step.json"
    status, out, err = call("--flavor", "4xLarge.2048GB", "--json", "--trace", str(file))
    assert (status, err) == (0, "")
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["otherData"]["plan"] == json.loads(out)["best"]["plan"]["text"]
    check_trace(document)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--flavor", "all"),
            "trace: --trace is given beside --flavor all; it draws the best or only plan of one flavor",
        ),
        (
            ("--flavor", "4xLarge.2048GB", "--why", "num_stages=2,num_micro_batches=16"),
            "trace: --trace is given beside --why; it draws the best or only plan of one flavor",
        ),
    ],
)
def test_where_there_is_no_one_plan(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """Of several flavors, or of two plans, there is no one step to draw."""
    status, _, err = call(*arguments, "--trace", str(tmp_path / "step.json"))
    assert (status, err.strip()) == (2, message)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that is not there ends in one line."""
    status, _, err = call("--flavor", "4xLarge.2048GB", "--trace", str(tmp_path / "none" / "step.json"))
    assert status == 2
    assert err.startswith("trace: ")
    assert "cannot be written" in err


def test_where_nothing_fits(tmp_path: Path) -> None:
    """Where no plan fits, nothing is written, and the command says what is missing as without the option."""
    file = tmp_path / "step.json"
    status, _, _ = call("--flavor", "Large.256GB", "--trace", str(file))
    assert (status, file.exists()) == (3, False)
    with pytest.raises(ValueError, match=r"^trace: no plan fits Large\.256GB"):
        trace(estimate(flavor="Large.256GB"))
