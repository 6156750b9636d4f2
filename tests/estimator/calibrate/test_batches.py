import numpy as np
import pytest

from estimator.calibrate.batches import batched
from estimator.stack.stack import load_stack
from tests.support.measured import table_runs

STACK = load_stack("nanotron")
CASES = [run for run in table_runs("ultrascale_h100") if run.step_s][::12]


def test_every_run_is_in_one_batch() -> None:
    """The batches' rows are the runs, each once."""
    rows = np.concatenate([batch.rows for batch in batched(CASES, STACK.habits)])
    assert sorted(rows.tolist()) == list(range(len(CASES)))


def test_a_run_in_a_batch_is_predicted_as_alone() -> None:
    """Seconds and bytes of run i of a batch are those of a batch of that run alone."""
    efficiencies = STACK.efficiencies("llama")
    for batch in batched(CASES, STACK.habits):
        many = np.broadcast_to(batch.step(efficiencies).seconds, batch.rows.shape)
        held = np.broadcast_to(batch.memory(efficiencies).peak_bytes, batch.rows.shape)
        for i, row in enumerate(batch.rows):
            (alone,) = batched([CASES[row]], STACK.habits)
            assert alone.step(efficiencies).seconds.item() == pytest.approx(many[i])
            assert alone.memory(efficiencies).peak_bytes.item() == pytest.approx(held[i])


def test_the_first_stage_is_no_fuller_than_the_fullest() -> None:
    """What is read on the first stage is at most the peak, and is the peak where there is one stage."""
    efficiencies = STACK.efficiencies("llama")
    for batch in batched(CASES, STACK.habits):
        memory = batch.memory(efficiencies)
        assert (batch.read_bytes(memory) <= memory.peak_bytes * (1 + 1e-12)).all()
        one_stage = np.equal(batch.inputs.plan.num_stages, 1)
        assert np.all(np.isclose(batch.read_bytes(memory), memory.peak_bytes) | ~one_stage)
