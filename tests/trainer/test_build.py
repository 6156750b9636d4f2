from itertools import chain, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from estimator.work.plan import Plan, parse_plan
from tests.support.legality import stage_lengths
from trainer.build import build_stages, chunk_layers
from trainer.config import TrainConfig
from trainer.parallel.mesh import Place


@st.composite
def laid(draw: st.DrawFn) -> tuple[Plan, int]:
    """Draw a plan that keeps the rules of its stages, and the layers of its model."""
    stages, size = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    if stages > 1 and draw(st.booleans()):
        first, last = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        return Plan(num_stages=stages, first_layers=first, last_layers=last), first + last + size * (stages - 2)
    virtual = draw(st.integers(1, 3))
    return Plan(num_stages=stages, virtual_stages=virtual), stages * virtual * size


@given(laid())
def test_chunks_partition_the_layers(drawn: tuple[Plan, int]) -> None:
    """The chunks hold every layer once, in order, and none is empty."""
    plan, num_layers = drawn
    chunks = chunk_layers(plan, num_layers)
    assert list(chain.from_iterable(chunks)) == list(range(num_layers))
    assert all(a.stop == b.start for a, b in pairwise(chunks))
    assert all(chunks)
    assert len(chunks) == plan.num_stages * plan.virtual_stages


@given(laid())
def test_stages_have_the_layers_that_the_rules_give_them(drawn: tuple[Plan, int]) -> None:
    """A stage's chunks, every `num_stages`-th, hold as many layers as the rules of the layout give it."""
    plan, num_layers = drawn
    chunks = chunk_layers(plan, num_layers)
    held = [sum(map(len, chunks[stage :: plan.num_stages])) for stage in range(plan.num_stages)]
    assert held == stage_lengths(plan, num_layers)


@pytest.mark.parametrize("pipeline", ["num_stages=2", "num_stages=2,schedule=interleaved,virtual_stages=2"])
@pytest.mark.parametrize(
    ("recomputation", "count"),
    [("none", 0), ("selective", 4), ("full", 4), *((f"full,recomputed_layers={count}", count) for count in (1, 2, 3))],
)
def test_a_stage_repeats_as_many_layers_as_its_plan_says(pipeline: str, recomputation: str, count: int) -> None:
    """Layers that are recomputed are counted over all chunks of a stage, its first ones first."""
    mesh: Any = SimpleNamespace(device_type="cpu")  # nothing is split over ranks
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = AutoConfig.for_model("llama", vocab_size=16, num_hidden_layers=8, **shape)
    config = TrainConfig(plan=parse_plan(f"{pipeline},recomputation={recomputation}"), precision="fp32")
    for stage in range(2):
        chunks = build_stages(model, config, Place(mesh, dp=1, dp_rank=0, stage=stage, tp_rank=0))
        repeated = ["forward" in vars(layer) for chunk in chunks for _, layer in chunk.layers]
        assert repeated == [True] * count + [False] * (4 - count)
