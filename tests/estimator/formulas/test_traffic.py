from dataclasses import replace

import pytest

from estimator.formulas.counts import layer_traffic
from estimator.formulas.traffic import KERNELS, eager_traffic, executed_traffic, loss_traffic_bytes
from estimator.stack.recipe import Recipe
from estimator.stack.stack import load_premises
from estimator.work.shape import load_shape

MISTRAL = load_shape("mistralai/Mistral-7B-v0.1")
HABITS = load_premises("reference").habits
COPY = 4.2e12
"""Bytes per second of a copy on an H200, read and written."""


def test_a_norm_takes_the_bytes_that_were_measured() -> None:
    """An eager norm and its gradient take 439 and 885 us for 8,192 tokens of 4,096 on an H200: below a copy's rate."""
    two = eager_traffic(replace(MISTRAL, ffn_size=1, num_heads=8), 2)[0]
    for moved, others, measured_s in ((two.forward, 12, 438.7e-6), (two.backward, 30, 884.6e-6)):
        of_norm = (moved - others * MISTRAL.hidden_size) / 2 * 8192
        assert 0.6 < of_norm / COPY / measured_s < 0.9


def test_compiled_layers_move_what_fused_kernels_do() -> None:
    """A compiled layer moves a quarter of what its operators do one by one, in fewer kernels."""
    compiled, eager = (Recipe(compiles=one).habits(HABITS, MISTRAL) for one in (True, False))
    fused = layer_traffic(MISTRAL, 2, in_8_bits=False)
    assert executed_traffic(MISTRAL, compiled) == fused
    ratio = sum(map(sum, fused)) / sum(map(sum, executed_traffic(MISTRAL, eager)))
    assert 0.2 < ratio < 0.3
    assert sum(KERNELS["compiled"]) < sum(KERNELS["eager"]) / 2


def test_the_loss_takes_the_bytes_that_were_measured() -> None:
    """Of 8,192 tokens and 128,256 logits it takes 13.5 ms on an H200, in 32 bits and uncompiled."""
    seconds = loss_traffic_bytes(HABITS) * 8192 * 128256 / COPY
    assert 0.8 < seconds / 13.5e-3 < 0.9
    fp32 = Recipe("fp32").habits(HABITS, MISTRAL)
    kernels = HABITS.model_copy(update={"execution": "kernels"})
    assert loss_traffic_bytes(fp32) < loss_traffic_bytes(HABITS)  # nothing is cast
    assert loss_traffic_bytes(kernels) == pytest.approx(12)
    assert loss_traffic_bytes(Recipe("fp32").habits(kernels, MISTRAL)) == pytest.approx(16)
