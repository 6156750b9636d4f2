"""What the tests of several modules draw: configs, shapes, plans, layouts; and a stack to run them on."""

from typing import Any

from hypothesis import strategies as st

from estimator.memory import Layout, layout
from estimator.plan import RECOMPUTATIONS, SCHEDULES, Plan, Plans
from estimator.shape import Shape, shape_from_config
from estimator.stack import Efficiencies, Evidence, Habits

ONE = st.just(1)
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
    issue_s_per_layer=1e-3,
    issue_s_per_step=0.5,
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


def plans(degrees: st.SearchStrategy[int], unmodelled: st.SearchStrategy[int] = ONE) -> st.SearchStrategy[Plan]:
    """Draw a plan of any kind; `unmodelled` draws the degrees that only run at 1."""
    return st.builds(
        Plan,
        num_stages=degrees,
        num_micro_batches=degrees,
        batch_per_device=degrees,
        tp=degrees,
        cp=unmodelled,
        recomputation=st.sampled_from(RECOMPUTATIONS),
        zero_stage=st.integers(0, 3),
        schedule=st.sampled_from(SCHEDULES),
        virtual_stages=unmodelled,
    )


@st.composite
def plan_lists(draw: st.DrawFn, num_devices: int) -> list[Plan]:
    """Draw plans that use all of so many devices, whatever the model and the batch."""
    degrees = st.sampled_from([d for d in range(1, num_devices + 1) if num_devices % d == 0])
    fitting = plans(degrees).filter(lambda plan: num_devices % (plan.num_stages * plan.tp) == 0)
    return draw(st.lists(fitting, min_size=1, max_size=6))


def one_layout(plan: Plan, num_devices: int) -> Layout:
    """Return the numbers of one plan, without the axis of plans."""
    return Layout(*(field[0] for field in layout(Plans.of([plan]), num_devices)))
