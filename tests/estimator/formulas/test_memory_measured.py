"""What is counted against what was measured, and against what is certain."""

import tomllib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.calibrate.batches import batched
from estimator.formulas.activations import activation_bytes
from estimator.formulas.inputs import StepInputs, step_inputs
from estimator.formulas.layout import layout
from estimator.formulas.machine import Machine
from estimator.formulas.memory import STATE, plan_memory
from estimator.formulas.stages import stages_of
from estimator.predict.prediction import predict
from estimator.runs.read import read_runs
from estimator.stack.efficiencies import PARAMETERS, Efficiencies
from estimator.stack.recipe import Recipe
from estimator.stack.stack import builtin_stacks, load_premises, load_stack
from estimator.work.plan import Plan, Plans
from estimator.work.shape import Shape, load_shape
from estimator.work.workload import Workload
from hardware.catalog import load_catalog
from tests.support.paths import GOLDEN, MEASURED
from tests.support.strategies import listed, machines_of

CATALOG = load_catalog()
STACKS = [load_stack(name) for name in builtin_stacks()]
H200 = tomllib.loads((GOLDEN / "h200.toml").read_text(encoding="utf-8"))
COUNTED = Efficiencies(**dict.fromkeys(PARAMETERS, 1.0))
"""Nothing is fitted: what is counted, as it is."""


def asked(model: str, plan: Plan, num_devices: int, stack: str, seq_len: int = 2048) -> StepInputs:
    """Return a plan of a model on H100s under a stack."""
    machine = Machine.of(CATALOG, CATALOG.flavor_of("h100-sxm-80gb", num_devices))
    dp = num_devices // (plan.num_stages * plan.tp * plan.cp)
    batch = dp * plan.num_micro_batches * plan.batch_per_device
    return step_inputs(plan, Workload(load_shape(model), seq_len, batch, 1), machine, load_premises(stack).habits)


@pytest.mark.parametrize("name", H200["allocated_bytes"])
def test_what_is_counted_is_what_torch_allocated(name: str) -> None:
    """With no fitted correction, the count is within one percent of the allocator's peak, whatever is repeated."""
    (run,) = read_runs([MEASURED / "h200" / "logs" / name / "steps.jsonl"], CATALOG).runs
    (batch,) = batched([run], load_premises("reference").habits)
    counted = float(batch.memory(COUNTED).peak_bytes.item())
    assert counted == pytest.approx(H200["allocated_bytes"][name], rel=H200["tolerance"])


@pytest.mark.slow
@settings(max_examples=max(settings.default.max_examples // 5, 5))
@given(listed(16), st.integers(1, 4096), st.sampled_from(machines_of(16)))
def test_nothing_is_predicted_below_what_is_certain(
    drawn: tuple[Shape, list[Plan]], seq_len: int, machine: Machine
) -> None:
    """Weights, gradients, optimizer and gathered shards are a floor of every prediction, whatever was fitted.

    Each example is several plans, under every stack.
    """
    shape, plans = drawn
    for loaded in STACKS:
        inputs = StepInputs(shape, seq_len, layout(Plans.of(plans), 16, 8), machine, loaded.habits)
        found, state = predict(inputs, loaded), plan_memory(inputs, COUNTED)
        assert (found.memory.peak_bytes >= found.certain_bytes * (1 - 1e-12)).all()
        assert (found.certain_bytes >= sum(state.first.parts[name] for name in STATE) * (1 - 1e-12)).all()
        assert not found.fits_probability[found.certain_bytes > found.usable_bytes].any()


def test_full_training_of_7b_on_one_80_gb_device_does_not_fit() -> None:
    """Its state alone is 113 GiB (llama-cookbook issue 413: out of memory)."""
    inputs, stack = asked("meta-llama/Llama-2-7b-hf", Plan(zero_stage=0), 1, "generic"), load_stack("generic")
    found = predict(inputs, stack)
    assert found.certain_bytes.item() > 110 * 2**30
    assert found.fits_probability.item() == 0


def test_interleaved_stages_hold_the_logits_of_one_micro_batch() -> None:
    """Only the last chunk makes logits, and its backward pass follows at once: 5.9 GiB of Llama-3-8B, not 36.7."""
    plan = Plan(num_stages=8, num_micro_batches=8, schedule="interleaved", virtual_stages=4)
    inputs = asked("meta-llama/Meta-Llama-3-8B", plan, 8, "megatron", seq_len=8192)
    logits = plan_memory(inputs, COUNTED).last.parts["logits"].item()
    assert logits == pytest.approx(8192 * 128256 * 6)
    usual = replace(plan, schedule="1f1b", virtual_stages=1)
    assert (
        logits
        == plan_memory(asked("meta-llama/Meta-Llama-3-8B", usual, 8, "megatron", 8192), COUNTED)
        .last.parts["logits"]
        .item()
    )


def test_one_stage_holds_one_micro_batch_under_any_schedule() -> None:
    """GPipe without a pipeline is gradient accumulation: each micro-batch goes backward before the next begins."""
    held = [
        plan_memory(
            asked("mistralai/Mistral-7B-v0.1", Plan(num_micro_batches=32, schedule=name), 1, "generic"), COUNTED
        ).peak_bytes.item()
        for name in ("gpipe", "1f1b")
    ]
    assert held[0] == held[1]


def test_gradients_that_come_late_do_not_meet_all_activations() -> None:
    """Of one micro-batch the peak is the larger of both, of several their sum; with lasting buffers always the sum."""

    def peak(count: int, *, keeps: bool) -> dict[str, float]:
        inputs = asked("mistralai/Mistral-7B-v0.1", Plan(num_micro_batches=count, zero_stage=0), 1, "generic")
        inputs = inputs._replace(habits=inputs.habits.model_copy(update={"keeps_gradients": keeps}))
        return {name: float(np.ravel(part)[0]) for name, part in plan_memory(inputs, COUNTED).peak.items()}

    late, several, kept = peak(1, keeps=False), peak(2, keeps=False), peak(1, keeps=True)
    assert several["gradients"] == kept["gradients"] > 0
    assert several["activations"] == kept["activations"] > 0
    assert late["gradients"] == 0 or late["activations"] == pytest.approx(kept["activations"] / 32)


def test_experts_keep_their_sorted_tokens() -> None:
    """A mixture keeps each token once for each of its experts on the way there and on the way back."""
    dense = asked("mistralai/Mistral-7B-v0.1", Plan(num_micro_batches=2), 1, "megatron")
    shape = replace(dense.shape, num_experts=8, num_experts_per_token=2, ffn_size=dense.shape.ffn_size // 2)
    mixture = dense._replace(shape=shape)
    more = [plan_memory(inputs, COUNTED).first.parts["activations"].item() for inputs in (mixture, dense)]
    assert more[0] - more[1] == pytest.approx(32 * 2048 * 4096 * 2 * 2 * 2)


def activations_of(inputs: StepInputs) -> float:
    """Return what a stage that is alone keeps of one micro-batch."""
    first, *_ = stages_of(inputs.shape, inputs.plan)
    return float(activation_bytes(inputs, COUNTED, first)[0].item())


def test_norms_keep_32_bit_copies_only_where_the_software_makes_them() -> None:
    """A layer of Megatron keeps 8 bytes per token and unit of the width less for its norms than transformers does.

    A compiled one repeats its activation too: it keeps 34 h instead of 49 h, within the 1 % that rotary tables take.
    """
    plan = Plan(num_micro_batches=2)
    megatron, compiled = (asked("mistralai/Mistral-7B-v0.1", plan, 1, name) for name in ("megatron", "reference"))
    eager = compiled._replace(habits=Recipe(compiles=False).habits(compiled.habits, compiled.shape))
    kept = [activations_of(inputs) for inputs in (megatron, eager, compiled)]
    assert kept[1] - kept[0] == pytest.approx(32 * 2048 * 8 * 4096)
    per_token_and_unit = 32 * 2048 * 4096
    assert kept[1] / per_token_and_unit == pytest.approx(49.2, rel=0.01)
    assert kept[2] / per_token_and_unit == pytest.approx(34.2, rel=0.01)
    assert Recipe().habits(eager.habits, eager.shape).norm_copy_bytes == 4


def test_selective_recomputation_keeps_products() -> None:
    """Of a layer of Mistral, 25 h bytes a token operator by operator and 23 h compiled, as dry runs hold."""
    plan = Plan(num_micro_batches=2, recomputation="selective")
    compiled = asked("mistralai/Mistral-7B-v0.1", plan, 1, "reference")
    eager = compiled._replace(habits=Recipe(compiles=False).habits(compiled.habits, compiled.shape))
    kept = [activations_of(inputs) for inputs in (eager, compiled)]
    assert [one / (32 * 2048 * 4096) for one in kept] == pytest.approx([25.2, 23.1], rel=0.01)
