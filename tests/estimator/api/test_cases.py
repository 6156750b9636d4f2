"""What people ran and what happened, asked again: what was said wrongly is not said again."""

import runpy
from typing import Any

import pytest

from estimator import estimate
from tests.support.paths import MEASURED

SCRIPT = runpy.run_path(str(MEASURED / "cases" / "predict_cases.py"))


@pytest.fixture(scope="module")
def cases() -> Any:
    """Return the cases, answered."""
    return SCRIPT["cases"]()


def test_what_ran_out_of_memory_is_never_called_a_fit(cases: Any) -> None:
    """It does not fit, or may not."""
    calls = {case.told["source"]: case.call for case in cases if not case.told.get("fits", True)}
    assert len(calls) >= 3
    assert "fits" not in calls.values()
    assert calls["meta-llama/llama-cookbook#413"] == "does not fit"


def test_no_device_held_more_than_the_upper_end(cases: Any) -> None:
    """Of each case whose memory was measured, whichever software ran it."""
    held = [(measured, said) for case in cases for name, measured, said, _ in case.quantities if name == "memory"]
    assert len(held) >= 7
    assert all(measured <= said.high for measured, said in held)


def test_software_that_is_unknown_may_hold_its_loss_whole() -> None:
    """With long rows the upper end has room for twice the bytes per logit; short ones hardly move it."""

    def spread(seq_len: int, stack: str) -> float:
        asked = {"accelerator": "h100-sxm-80gb", "devices": 8, "batch": 8, "seq_len": seq_len, "stack": stack}
        plan = "tp=1,zero_stage=3,num_micro_batches=1,recomputation=full,offload_optimizer=false"
        (first, *_) = estimate("meta-llama/Meta-Llama-3-8B", plan=plan, **asked).plans
        return first.memory.per_device_bytes.high / first.memory.per_device_bytes.value

    assert spread(32768, "generic") > 1.2 * spread(512, "generic")
    assert spread(32768, "torchtune") == pytest.approx(spread(512, "torchtune"), rel=0.1)
