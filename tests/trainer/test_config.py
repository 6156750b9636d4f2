from typing import Any

import pytest

from estimator.work.plan import Plan
from trainer.config import TrainConfig
from trainer.data.dataset import DataConfig


@pytest.mark.parametrize(
    ("values", "said"),
    [
        *(
            ({name: least - 1}, rf"{said}: {least - 1} is not from {least} to 2\*\*40 - 1; give a count in that range")
            for name, said, least in (
                ("global_batch", "batch", 1),
                ("epochs", "epochs", 1),
                ("num_steps", "steps", 0),
                ("checkpoint_every", "checkpoint-every", 0),
                ("keep", "keep", 1),
                ("eval_every", "eval-every", 0),
            )
        ),
        ({"num_steps": 2**40}, r"steps: 1099511627776 is not from 0 to 2\*\*40 - 1; give a count in that range"),
        ({"precision": "fp16"}, "precision: 'fp16' is not one of bf16-mixed, bf16, fp32"),
        (
            {"attention": "flash"},
            "attention: 'flash' is not one of sdpa, flash_attention_2, flash_attention_3, flex_attention, eager",
        ),
        ({"eval_every": 5}, "eval-every: 5 steps, but no rows are held out; give --eval-rows too"),
        ({"keep_best": True}, "keep-best: by the loss on held-out rows, but none are held out; give --eval-rows too"),
        (
            {"compiles": True, "plan": Plan(num_stages=2, schedule="zero_bubble")},
            "compile: schedule=zero_bubble splits backward passes, which compiled layers do not; give one",
        ),
        (
            {"compiles": True, "plan": Plan(tp=2, recomputation="full")},
            "compile: torch repeats no compiled layer that tp=2 splits; give --no-compile, or recomputation=selective",
        ),
    ],
)
def test_runs_that_are_none_are_refused(values: dict[str, Any], said: str) -> None:
    """Each rule of a run is told with what was given."""
    with pytest.raises(ValueError, match=f"^{said}$"):
        TrainConfig(**values)


def test_the_least_of_each_count_is_a_run() -> None:
    """The ends of the ranges are in them."""
    config = TrainConfig(
        global_batch=1, epochs=1, num_steps=2**40 - 1, keep=1, eval_every=1, data=DataConfig(eval_rows=1)
    )
    assert config.num_steps == 2**40 - 1
