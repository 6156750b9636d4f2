import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.counts import model_flop, num_parameters, trained_parameters
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import layout
from estimator.formulas.machine import Machine
from estimator.formulas.memory import plan_memory
from estimator.formulas.step import plan_step
from estimator.stack.optimizers import OPTIMIZERS
from estimator.stack.recipe import PRECISIONS, Recipe
from estimator.stack.stack import builtin_stacks, load_stack
from estimator.work.plan import Plan
from estimator.work.shape import load_shape
from hardware.catalog import load_catalog

CATALOG, STACK = load_catalog(), load_stack("moai-24.2")
MISTRAL = load_shape("mistral-7b-v0.1")
EFFICIENCIES = STACK.efficiencies("mistral")
EXACT = EFFICIENCIES._replace(memory_ratio=1.0)
H100 = Machine.of(CATALOG, CATALOG.flavor_of("h100-sxm-80gb", 8))
PLAN = layout(Plan(num_micro_batches=8), 8, 8)


def inputs_of(recipe: Recipe) -> StepInputs:
    """Return what a step by a recipe is predicted from."""
    return StepInputs(recipe.shape(MISTRAL), 2048, PLAN, H100, recipe.habits(STACK.habits, MISTRAL))


def peak(recipe: Recipe) -> dict[str, float]:
    """Return the bytes of the fullest device by purpose."""
    return {name: float(part.item()) for name, part in plan_memory(inputs_of(recipe), EXACT).peak.items()}


def seconds(recipe: Recipe, machine: Machine = H100) -> dict[str, float]:
    """Return the seconds of a step by purpose."""
    step = plan_step(inputs_of(recipe)._replace(machine=machine), EFFICIENCIES)
    return {name: float(part.item()) for name, part in step.breakdown.items()}


def test_lora_parameters_as_peft_prints_them() -> None:
    """Rank 16 on all linear layers of Mistral-7B: 41,943,040 trainable of 7,283,675,136, as peft prints it."""
    shape = Recipe(lora_rank=16).shape(MISTRAL)
    assert trained_parameters(shape) == 41_943_040
    assert num_parameters(shape) == 7_283_675_136
    assert trained_parameters(MISTRAL) == num_parameters(MISTRAL)


def test_no_recipe_is_the_stacks_own() -> None:
    """Without a wish nothing changes, and nothing is said."""
    recipe = Recipe()
    assert recipe.habits(STACK.habits, MISTRAL) == STACK.habits
    assert recipe.shape(MISTRAL) == MISTRAL
    assert str(recipe) == ""


@pytest.mark.parametrize("name", builtin_stacks())
def test_naming_the_stacks_own_precision_changes_nothing(name: str) -> None:
    """A stack of mixed 16-bit training, asked for that, adds gradients up and keeps moments as it did unasked."""
    habits = load_stack(name).habits
    assert Recipe("bf16-mixed").habits(habits, MISTRAL) == habits
    assert Recipe("bf16-mixed", "adamw").habits(habits, MISTRAL) == habits


def test_frozen_weights_have_neither_gradients_nor_state() -> None:
    """With adapters, gradients and state shrink with what is trained, and quantized weights to a quarter."""
    whole, lora, qlora = peak(Recipe()), peak(Recipe(lora_rank=16)), peak(Recipe(lora_rank=16, quantize="4"))
    share = 41_943_040 / 7_241_732_096
    for purpose in ("gradients", "optimizer", "master_weights"):
        assert lora[purpose] == pytest.approx(share * whole[purpose])
    assert lora["weights"] == pytest.approx(2 * 7_283_675_136)
    ends = 2 * 32_000 * 4096 + 4096
    layers = num_parameters(MISTRAL) - ends
    assert qlora["weights"] == pytest.approx(2 * 41_943_040 + 2 * ends + (0.5 + 0.127 / 8) * layers)
    ranks = 7 * 16 * MISTRAL.num_layers  # what seven adapters multiply down to
    assert lora["activations"] == whole["activations"] + 2 * 2048 * ranks


def test_frozen_weights_skip_their_gradients_pass() -> None:
    """Two of three passes remain, plus the adapters' own; quantized weights are unpacked on top."""
    whole, lora, qlora = (
        seconds(recipe) for recipe in (Recipe(), Recipe(lora_rank=16), Recipe(lora_rank=16, quantize="4"))
    )
    assert 2 / 3 < lora["matmul"] / whole["matmul"] < 0.8
    assert lora["data_parallel"] < 0.02 * whole["data_parallel"]
    assert qlora["elementwise"] > lora["elementwise"]
    assert qlora["matmul"] == lora["matmul"]
    flop = model_flop(4096.0, 2048, Recipe(lora_rank=16).shape(MISTRAL)) / model_flop(4096.0, 2048, MISTRAL)
    assert 2 / 3 < flop < 0.72


@pytest.mark.parametrize(
    ("recipe", "state"),
    [
        (Recipe("bf16-mixed", "adamw"), 2 + 4 + 8),
        (Recipe("bf16", "adamw"), 2 + 0 + 4),
        (Recipe("fp32", "adamw"), 4 + 0 + 8),
        (Recipe("bf16-mixed", "sgd"), 2 + 4 + 0),
        (Recipe("bf16-mixed", "sgd-momentum"), 2 + 4 + 4),
        (Recipe("bf16-mixed", "adamw-8bit"), 2 + 4 + 2 * (1 + 4 / 256)),
        (Recipe("bf16", "adamw-4bit"), 2 + 2 * (0.5 + 4 / 128)),
        (Recipe("bf16", "paged-adamw-8bit"), 2),
        (Recipe("bf16", "lion"), 2 + 2),
        (Recipe("bf16-mixed", "adafactor"), 2 + 4 + 8 / 4096),
    ],
)
def test_state_per_parameter(recipe: Recipe, state: float) -> None:
    """Weights, master weights and optimizer state take the bytes per parameter that the recipe's papers say."""
    one = layout(Plan(num_micro_batches=8, zero_stage=0), 1, 1)
    held = plan_memory(inputs_of(recipe)._replace(plan=one), EXACT).peak
    found = sum(float(held[name].item()) for name in ("weights", "master_weights", "optimizer"))
    assert found / num_parameters(MISTRAL) == pytest.approx(state)


def test_a_recipe_keeps_the_stacks_own_ways() -> None:
    """8-bit products leave gradients and the loss as the stack has them; 32 bits change what logits take."""
    own = STACK.habits.model_copy(update={"gradient_bytes": 4.0, "logit_bytes": 10.0})
    fp8, fp32 = (Recipe(name).habits(own, MISTRAL) for name in ("fp8-mixed", "fp32"))
    assert (fp8.gradient_bytes, fp8.logit_bytes, fp8.matmul_precision) == (4, 10, "fp8")
    assert (fp32.gradient_bytes, fp32.logit_bytes) == (4, 4 + 4)
    pure = own.model_copy(update={"master_bytes": 0.0})
    assert Recipe("fp8-mixed").habits(pure, MISTRAL).gradient_bytes == 2
    assert not Recipe(overlaps=False).habits(own, MISTRAL).overlaps_communication
    assert str(Recipe("fp8-mixed", overlaps=False)) == "fp8-mixed, communication not overlapped"


def test_layers_are_compiled_as_asked_else_as_the_stack_has_it() -> None:
    """A run that says whether its layers were compiled is predicted so, and one that does not as the stack is."""
    own = load_stack("reference").habits
    found = [Recipe(compiles=compiles).habits(own, MISTRAL).execution for compiles in (None, True, False)]
    assert found == ["compiled", "compiled", "eager"]
    assert STACK.habits.execution == "kernels"
    assert str(Recipe("bf16", compiles=False)) == "bf16, layers not compiled"


def test_precision_picks_the_peak() -> None:
    """Products of layers run at their precision's peak: float32 slower than bfloat16, float8 faster."""
    fp32, bf16, fp8 = (seconds(Recipe(name))["matmul"] for name in ("fp32", "bf16-mixed", "fp8-mixed"))
    assert fp8 < bf16 < fp32
    with pytest.raises(ValueError, match=r"^precision: fp8 needs matrix units that mi250 lacks; use bf16-mixed$"):
        seconds(Recipe("fp8-mixed"), Machine.of(CATALOG, CATALOG.flavor_of("mi250", 8)))


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"precision": "bf61-mixed"}, "unknown precision 'bf61-mixed': did you mean bf16-mixed"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam': did you mean adamw"),
        ({"quantize": "3", "lora_rank": 8}, "unknown quantize '3': did you mean 4 or 8"),
        ({"quantize": "4"}, "quantize: 4-bit weights cannot be trained; freeze them with --lora RANK"),
        ({"lora_rank": -1}, "lora: rank -1 is not from 1 to 4096; use for example --lora 16"),
    ],
)
def test_bad_recipes(wish: dict, message: str) -> None:
    """An unknown or contradictory wish is refused with its mend."""
    with pytest.raises(ValueError, match="^" + message):
        Recipe(**wish)


@given(st.sampled_from([None, *PRECISIONS]), st.sampled_from([None, *OPTIMIZERS]), st.integers(0, 64))
def test_words_name_every_wish(precision: str | None, optimizer: str | None, rank: int) -> None:
    """The recipe in words names what was asked for, and nothing else."""
    words = str(Recipe(precision, optimizer, rank))
    assert [word for word in words.split(", ") if word in {*PRECISIONS, *OPTIMIZERS}] == [
        word for word in (precision, optimizer) if word
    ]
    assert (f"rank {rank}" in words) == (rank > 0)


def test_a_recipe_is_part_of_the_shape_and_the_stack_alone() -> None:
    """A stack that trains by a recipe differs in its habits alone."""
    changed = Recipe("fp32", "sgd").stack(STACK, MISTRAL)
    assert changed.model_copy(update={"habits": STACK.habits}) == STACK
    assert dataclasses.replace(Recipe(lora_rank=4).shape(MISTRAL), lora_rank=0) == MISTRAL
