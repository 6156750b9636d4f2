import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.attention import CUDNN, TORCH_FLASH, attention_passes, kernel_of, kernel_seconds
from estimator.formulas.compute import Rates, sustained_rates
from estimator.formulas.counts import attention_backward_flop, attention_flop
from estimator.formulas.inputs import StepInputs
from estimator.formulas.machine import Machine
from hardware.catalog import load_catalog
from tests.support.strategies import EFFICIENCIES, step_inputs_of

CATALOG = load_catalog()
PEAK = 989.4e12
H200 = Rates(PEAK, 4.16e12, 132, PEAK, PEAK, PEAK, PEAK)


def flash(inputs: StepInputs, device: str) -> StepInputs:
    """Return inputs whose attention torch chooses, on a device."""
    habits = inputs.habits.model_copy(update={"attention_kernel": "torch", "fused_attention": "always"})
    machine = Machine.of(CATALOG, CATALOG.flavor_of(device, inputs.machine.num_devices))
    return inputs._replace(habits=habits, machine=machine)


def test_the_kernel_is_the_devices() -> None:
    """Torch chooses cuDNN's on an H200; of an MI300X and an A100 only published rates tell."""

    @given(step_inputs_of(8))
    def holds(inputs: StepInputs) -> None:
        assert kernel_of(flash(inputs, "h200-sxm-141gb")) is CUDNN
        assert kernel_of(flash(inputs, "mi300x")) is None
        assert kernel_of(flash(inputs, "a100-sxm-80gb")) is None

    holds()


@given(step_inputs_of(8))
def test_a_kernel_takes_its_flop_at_the_peak_at_least(inputs: StepInputs) -> None:
    """No pass of cuDNN's attention is faster than its causal products at the device's peak."""
    asked = flash(inputs, "h200-sxm-141gb")
    rates = sustained_rates(asked.machine.accelerator, EFFICIENCIES._replace(attention_efficiency=1.0))
    forward, backward = attention_passes(asked, rates)
    flop = attention_flop(asked.tokens, asked.seq_len, asked.shape, causal=True) / asked.plan.tp
    assert (forward >= flop / PEAK).all()
    assert (backward >= attention_backward_flop(flop, keeps_scores=False) / PEAK).all()


@given(st.sampled_from([64, 128, 256]), st.integers(1, 64), st.integers(9, 15))
def test_twice_the_heads_take_at_most_twice_as_long(head_dim: int, heads: int, log_length: int) -> None:
    """More heads fill the compute units better, and longer rows take more than twice as long once they are filled."""
    length = np.asarray(2.0**log_length)

    def seconds(count: int) -> float:
        queries = count * length
        return float(kernel_seconds(queries, length / 2, length, head_dim, CUDNN.forward, 4.0, H200))

    assert seconds(heads) < seconds(2 * heads) <= 2 * seconds(heads)


def test_torchs_own_flash_takes_twice_as_long() -> None:
    """Of 32 heads and 8,192 tokens cuDNN's kernel is measured at 614 TFLOP/s forward, torch's own at 315."""
    length = np.asarray(8192.0)
    flop = 4.0 * 32 * 128 * 8192 * 8193 / 2
    for kernel, rate in ((CUDNN, 614e12), (TORCH_FLASH, 315e12)):
        seconds = kernel_seconds(32 * length, length / 2, length, 128, kernel.forward, 4.0, H200)
        assert flop / seconds == pytest.approx(rate, rel=0.03)
