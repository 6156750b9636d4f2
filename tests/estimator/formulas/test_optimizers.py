"""State of optimizers as libraries keep it on the processor, and an optimizer in the backward pass."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from estimator import estimate
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import layout
from estimator.formulas.machine import Machine
from estimator.formulas.memory import state_bytes
from estimator.formulas.optimizers import NEWTON_SCHULZ_STEPS, newton_schulz_products, optimizer_state_bytes
from estimator.formulas.stages import Stage, stages_of
from estimator.formulas.step import plan_step
from estimator.stack.optimizers import STATES, state_bytes_each
from estimator.stack.recipe import Recipe
from estimator.stack.stack import load_stack
from estimator.work.plan import Plan
from estimator.work.shape import load_shape, shape_from_config
from hardware.catalog import load_catalog
from tests.support.counted import config_of
from tests.support.families import SMALL_FAMILIES

CATALOG, STACK = load_catalog(), load_stack("torchtune")
LLAMA = load_shape("meta-llama/Llama-2-7b-hf")
H100 = Machine.of(CATALOG, CATALOG.flavor_of("h100-sxm-80gb", 8))
SMALL = SMALL_FAMILIES["granite"]


def kept_each(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], dtype: torch.dtype) -> float:
    """Return the bytes per parameter that an optimizer keeps of a matrix after a step, its lookup tables left out."""
    weight = nn.Parameter(torch.randn(512, 1024, dtype=dtype))
    weight.grad = torch.randn_like(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = make([weight])
        optimizer.step()
    return sum(_bytes_of(value) for value in optimizer.state[weight].values()) / weight.numel()


def _bytes_of(value: Any) -> int:
    if hasattr(value, "codes"):  # torchao's quantized state
        return _bytes_of(value.codes) + _bytes_of(value.scale)
    is_table = not torch.is_tensor(value) or value.numel() <= 256
    return 0 if is_table else value.numel() * value.element_size()


@pytest.mark.parametrize(("dtype", "moment"), [(torch.bfloat16, 2.0), (torch.float32, 4.0)])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw", torch.optim.AdamW),
        ("sgd-momentum", lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9)),
        ("sgd", torch.optim.SGD),
        ("muon", torch.optim.Muon),
    ],
)
def test_state_of_torch_s_optimizers(name: str, make: Callable[..., Any], dtype: torch.dtype, moment: float) -> None:
    """Per parameter of a matrix, bytes of state are those that torch keeps, in the precision of the weights."""
    assert state_bytes_each(STATES[name], moment, 1024) == kept_each(make, dtype)


@pytest.mark.parametrize(
    ("name", "library", "class_name"),
    [
        ("adamw-8bit", "bitsandbytes.optim", "AdamW8bit"),
        ("paged-adamw-8bit", "bitsandbytes.optim", "PagedAdamW8bit"),
        ("adamw-8bit", "torchao.optim", "AdamW8bit"),
        ("adamw-4bit", "torchao.optim", "AdamW4bit"),
        ("lion", "lion_pytorch", "Lion"),
    ],
)
def test_state_of_other_libraries_optimizers(name: str, library: str, class_name: str) -> None:
    """So it is of the libraries that have them, where they are installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make = getattr(pytest.importorskip(library), class_name)
    assert state_bytes_each(STATES[name], 2.0, 1024) == kept_each(make, torch.bfloat16)


def test_muon_keeps_one_moment_of_matrices_and_two_of_the_ends() -> None:
    """Of a whole model, with torch's Muon for matrices of layers and AdamW for the rest: but for the norms, equal."""
    model = AutoModelForCausalLM.from_config(config_of(SMALL))
    inside = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is one for one in inside)]
    for weight in (*inside, *rest):
        weight.grad = torch.randn_like(weight)
    kept = 0
    for optimizer in (torch.optim.Muon(inside), torch.optim.AdamW(rest)):
        optimizer.step()
        kept += sum(v.numel() * 4 for state in optimizer.state.values() for v in state.values() if v.numel() > 1)
    shape, plan = shape_from_config(SMALL, "small"), layout(Plan(zero_stage=0), 1, 1)
    habits = Recipe("fp32", "muon").habits(STACK.habits, shape)
    predicted = optimizer_state_bytes(StepInputs(shape, 16, plan, H100, habits), stages_of(shape, plan)[0]).item()
    norms = 4 * (2 * shape.num_layers) * shape.hidden_size
    assert predicted == kept - norms


def test_flop_of_muon_is_what_pytorch_counts() -> None:
    """The products that make an update orthogonal have the FLOP of torch's own."""
    weight = nn.Parameter(torch.randn(48, 80))
    weight.grad = torch.randn_like(weight)
    with FlopCounterMode(display=False) as counter:
        torch.optim.Muon([weight]).step()
    each = sum(2 * m * n * k for m, n, k in newton_schulz_products(48, 80))
    assert counter.get_total_flops() == NEWTON_SCHULZ_STEPS * each


def test_muon_takes_its_time() -> None:
    """It takes longer than AdamW where each rank updates all, and less the more ranks share the matrices."""

    def update_s(optimizer: str, zero_stage: int) -> float:
        plan = layout(Plan(num_micro_batches=1, zero_stage=zero_stage), 8, 8)
        habits = Recipe("bf16", optimizer).habits(STACK.habits, LLAMA)
        step = plan_step(StepInputs(LLAMA, 2048, plan, H100, habits), STACK.efficiencies("llama"))
        return step.breakdown["optimizer"].item()

    assert update_s("muon", 0) > 5 * update_s("adamw", 0)
    extra = update_s("muon", 3) - update_s("lion", 3)
    assert extra == pytest.approx((update_s("muon", 0) - update_s("lion", 0)) / 8)


def test_an_optimizer_in_the_backward_pass_keeps_no_full_gradient() -> None:
    """The gradient of the largest tensor is held, and no other; the rest stays."""
    plan, stage = layout(Plan(zero_stage=0), 1, 1), Stage((32.0,), has_embedding=True, has_head=True)

    def held(recipe: Recipe) -> dict[str, float]:
        inputs = StepInputs(LLAMA, 2048, plan, H100, recipe.habits(STACK.habits, LLAMA))
        return {name: part.item() for name, part in state_bytes(inputs, stage).items()}

    usual, inside = held(Recipe("bf16")), held(Recipe("bf16", optimizer_in_backward=True))
    assert inside["gradients"] == 2 * 32_000 * 4096
    assert usual["gradients"] == pytest.approx(2 * 6_738_415_616)
    assert {**inside, "gradients": 0} == {**usual, "gradients": 0}


def test_full_fine_tune_with_a_paged_optimizer_in_the_backward_pass() -> None:
    """Llama-2-7B in bf16, 4 x 2,048, on one device: torchtune measured 20.2 GB (pytorch/torchtune#961)."""
    answer = estimate(
        "meta-llama/Llama-2-7b-hf",
        accelerator="a100-sxm-80gb",
        devices=1,
        batch=4,
        steps=10,
        precision="bf16",
        optimizer="paged-adamw-8bit",
        optimizer_in_backward=True,
        stack="torchtune",
        plan="recomputation=full",
    )
    assert answer.best is not None
    held = answer.best.memory.per_device_bytes
    assert held.low < 20.2e9 < held.high
    assert held.value == pytest.approx(20.2e9, rel=0.1)
    assert answer.best.plan.num_micro_batches == 1


def test_gradients_cannot_be_added_up_in_the_backward_pass() -> None:
    """A plan of several micro-batches is refused, with its mend."""
    with pytest.raises(ValueError, match="num_micro_batches=2: an optimizer in the backward pass adds up no gradients"):
        estimate(
            accelerator="h100-sxm-80gb", devices=8, batch=16, optimizer_in_backward=True, plan="num_micro_batches=2"
        )
