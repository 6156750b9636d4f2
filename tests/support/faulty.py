"""`python -m tests.support.faulty`: the trainer, whose last rank fails in its second step."""

import os
from typing import Any

import trainer.train
from trainer.cli import main

take_step = trainer.train.take_step


def fail(run: Any, *rest: Any) -> bool:
    """Take a step, or fail."""
    if run.step == 1 and os.environ["RANK"] == "1":
        raise RuntimeError("a fault of this test\nthat has two lines")
    return take_step(run, *rest)


if __name__ == "__main__":
    trainer.train.take_step = fail
    main()
