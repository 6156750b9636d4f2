"""What the tests of several modules draw: configs, shapes, plans, layouts; and a stack to run them on."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import Layout, layout
from estimator.formulas.machine import Machine
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.habits import Evidence, Habits
from estimator.work.plan import PLAN_FIELDS, RECOMPUTATIONS, SCHEDULES, Plan
from estimator.work.shape import Shape, shape_from_config
from hardware.catalog import load_catalog

DENSE_TYPES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
MODEL_TYPES = (*DENSE_TYPES, "mixtral")

HABITS = Habits(
    weight_bytes=2,
    master_bytes=4,
    optimizer_bytes=8,
    gradient_bytes=4,
    activation_bytes=2,
    logit_bytes=6,
    fused_attention=("qwen2", "llama"),
    keeps_weights_gathered=False,
    reduces_every_micro_batch=True,
    single_controller=True,
    usable_memory_fraction=0.8,
    ranks_by="device",
    evidence={"weight_bytes": Evidence(kind="assumed", text="a test")},
)

EFFICIENCIES = Efficiencies(
    matmul_efficiency=0.8,
    memory_efficiency=0.7,
    exposed_communication=0.5,
    launch_s_per_layer=1e-3,
    launch_s_per_step=0.5,
    memory_ratio=1.1,
)

habits = st.fixed_dictionaries(
    {
        "fused_attention": st.sampled_from(["always", (), ("qwen2", "llama")]),
        "keeps_weights_gathered": st.booleans(),
        "reduces_every_micro_batch": st.booleans(),
        "single_controller": st.booleans(),
        "activation_bytes": st.sampled_from([2, 4]),
    }
).map(lambda changes: HABITS.model_copy(update=changes))
"""Ways in which a stack may work."""


@st.composite
def documents(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    """Draw a small config of a model type, as transformers takes and saves it; no window."""
    layers, vocab = draw(st.integers(1, 4)), draw(st.integers(3, 70))
    head_dim, kv_heads, group = 2 * draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads, ffn = kv_heads * group, draw(st.integers(1, 70))
    common: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": vocab,
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if model_type == "gpt2":
        return common | {
            "n_embd": heads * head_dim,
            "n_head": heads,
            "n_layer": layers,
            "n_positions": draw(st.integers(16, 64)),
            "n_inner": draw(st.none() | st.just(ffn)),
            "resid_pdrop": draw(st.sampled_from([0.0, 0.1])),
        }
    explicit = draw(st.booleans()) or model_type == "qwen3"  # left out, transformers takes 128 for Qwen3
    width = {"hidden_size": heads * draw(st.integers(1, 12)), "head_dim": head_dim}
    common |= {
        **(width if explicit else {"hidden_size": heads * head_dim}),
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    match model_type:
        case "llama":
            common |= {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
        case "qwen3":
            common |= {"attention_bias": draw(st.booleans())}
        case "mistral":
            common |= {"sliding_window": None}
        case "mixtral":
            experts = draw(st.integers(2, 5))
            chosen = draw(st.integers(1, experts))
            common |= {"sliding_window": None, "num_local_experts": experts, "num_experts_per_tok": chosen}
    return common


def shapes(*model_types: str) -> st.SearchStrategy[Shape]:
    """Draw a small shape of one of the model types; of any without arguments."""
    chosen = st.sampled_from(model_types or MODEL_TYPES)
    return chosen.flatmap(documents).map(lambda document: shape_from_config(document, "small"))


def plans(degrees: st.SearchStrategy[int], layers: st.SearchStrategy[int]) -> st.SearchStrategy[Plan]:
    """Draw a plan of any kind, whether it can run or not; `layers` draws numbers of layers, where they are given."""
    counts = {1: degrees, 0: st.just(0) | layers}  # by what is usual
    return st.builds(
        Plan, **{f.name: st.sampled_from(f.choices) if f.choices else counts[int(f.usual)] for f in PLAN_FIELDS}
    )


@st.composite
def fitting_plans(draw: st.DrawFn, shape: Shape, num_devices: int, most_micro_batches: int = 24) -> Plan:
    """Draw a plan that uses all of so many devices and keeps the rules of its schedule and of the shape's experts.

    Its stages may hold parts of layers, and its ranks parts of heads: the formulas do not mind.
    """
    stages = draw(_divisors(num_devices))
    tp = draw(_divisors(num_devices // stages))
    cp = draw(_divisors(num_devices // stages // tp))
    dp = num_devices // stages // tp // cp
    experts = [d for d in range(1, shape.num_experts + 1) if shape.num_experts % d == dp % d == 0]
    allowed = ("gpipe", "1f1b") if stages == 1 else SCHEDULES
    schedule = draw(st.sampled_from(allowed))
    waves, virtual, first, last = draw(st.integers(1, max(most_micro_batches // stages, 1))), 1, 0, 0
    micro_batches = stages * waves
    if schedule == "interleaved":
        virtual = draw(st.integers(2, 4))
    else:
        micro_batches += draw(st.integers(0, stages - 1))
        if stages > 1 and shape.num_layers >= stages and draw(st.booleans()):
            first = draw(st.integers(1, shape.num_layers - stages + 1))
            rest = shape.num_layers - first
            last = rest if stages == 2 else draw(st.integers(1, rest - stages + 2))
    recomputation, zero_stage = draw(st.sampled_from(RECOMPUTATIONS)), draw(st.integers(0, 3))
    return Plan(
        num_stages=stages,
        num_micro_batches=micro_batches,
        batch_per_device=draw(st.integers(1, 8)),
        tp=tp,
        cp=cp,
        ep=draw(st.sampled_from(experts or [1])),
        recomputation=recomputation,
        recomputed_layers=draw(st.integers(0, 3)) if recomputation == "full" else 0,
        zero_stage=zero_stage,
        shard_within_node=zero_stage > 0 and draw(st.booleans()),
        schedule=schedule,
        virtual_stages=virtual,
        first_layers=first,
        last_layers=last,
        sequence_parallel=draw(st.booleans()),
        offload_optimizer=draw(st.booleans()),
    )


def _divisors(number: int) -> st.SearchStrategy[int]:
    return st.sampled_from([d for d in range(1, number + 1) if number % d == 0])


def deeper_shapes(*model_types: str) -> st.SearchStrategy[Shape]:
    """Draw a small shape of enough layers for pipelines of many kinds, at times with adapters."""
    return st.builds(
        lambda shape, layers, rank: replace(shape, num_layers=layers, lora_rank=rank),
        shapes(*model_types),
        st.integers(1, 24),
        st.sampled_from([0, 0, 3]),
    )


@st.composite
def listed(draw: st.DrawFn, num_devices: int) -> tuple[Shape, list[Plan]]:
    """Draw a shape, and plans for it that use all of so many devices."""
    shape = draw(deeper_shapes())
    return shape, draw(st.lists(fitting_plans(shape, num_devices), min_size=1, max_size=6))


@st.composite
def laid(draw: st.DrawFn, num_devices: int, *model_types: str) -> tuple[Shape, Layout]:
    """Draw a shape, and the numbers of a plan for it that uses all of so many devices, eight in a node."""
    shape = draw(deeper_shapes(*model_types))
    return shape, one_layout(draw(fitting_plans(shape, num_devices)), num_devices)


def one_layout(plan: Plan, num_devices: int, devices_per_node: int = 8) -> Layout:
    """Return the numbers of one plan, without the axis of plans."""
    many = layout(plan, num_devices, devices_per_node)
    return replace(many, **{own.name: getattr(many, own.name)[0] for own in PLAN_FIELDS}, dp=many.dp[0])


CATALOG = load_catalog()


def machines_of(num_devices: int) -> list[Machine]:
    """Return machines of several kinds, of so many devices."""
    names = ("mi250", "mi210", "mi300x", "h100-sxm-80gb")
    return [Machine.of(CATALOG, CATALOG.flavor_of(name, num_devices)) for name in names]


def step_inputs_of(num_devices: int, *model_types: str) -> st.SearchStrategy[StepInputs]:
    """Draw what a step of one plan is predicted from, on so many devices."""
    return st.builds(
        lambda drawn, *rest: StepInputs(drawn[0], rest[0], drawn[1], *rest[1:]),
        laid(num_devices, *model_types),
        st.integers(1, 4096),
        st.sampled_from(machines_of(num_devices)),
        habits,
    )


def with_plan(inputs: StepInputs, **changes: Any) -> StepInputs:
    """Return inputs whose plan is another in some fields."""
    return inputs._replace(plan=replace(inputs.plan, **changes))
