from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.work.plan import MAX_DEGREE, PLAN_FIELDS, RECOMPUTATIONS, SCHEDULES, Plan, Plans
from estimator.work.rules import are_legal, reasons
from estimator.work.shape import Shape, load_shape
from estimator.work.workload import Workload
from tests.support.legality import runs
from tests.support.strategies import plans

LLAMA, MIXTRAL = load_shape("Meta-Llama-3-8B"), load_shape("mistralai/Mixtral-8x7B-v0.1")
WORKLOAD = Workload(LLAMA, 1024, 64, 10)
any_degree = st.integers(1, MAX_DEGREE - 1)
small = st.sampled_from([1, 1, 1, 2, 2, 3, 4])


@st.composite
def suited(draw: st.DrawFn) -> tuple[Plan, Workload, int]:
    """Draw a plan, and the workload and the devices that suit it."""
    few = st.integers(1, 3)
    p, tp, cp = draw(small), draw(small), draw(st.sampled_from([1, 1, 2]))
    ep, schedule, first, last, virtual = draw(st.sampled_from([1, 1, 2, 3])), "1f1b", 0, 0, 1
    dp = ep * draw(few)
    num_micro_batches = p * draw(few)
    if p > 1:
        schedule = draw(st.sampled_from(SCHEDULES))
        virtual = draw(st.integers(2, 3)) if schedule == "interleaved" else 1
    lengths = [virtual * draw(few)] * p
    if p > 1 and virtual == 1 and draw(st.booleans()):
        first, last = draw(st.integers(1, 6)), draw(st.integers(1, 6))
        lengths = [first, *[draw(st.integers(1, 6))] * (p - 2), last]
    recomputation = draw(st.sampled_from(RECOMPUTATIONS))
    zero_stage = draw(st.integers(0, 3))
    plan = Plan(
        num_stages=p,
        num_micro_batches=num_micro_batches,
        batch_per_device=draw(few),
        tp=tp,
        cp=cp,
        ep=ep,
        recomputation=recomputation,
        recomputed_layers=draw(st.integers(0, max(lengths) - 1)) if recomputation == "full" else 0,
        zero_stage=zero_stage,
        shard_within_node=zero_stage > 0 and draw(st.booleans()),
        schedule=schedule,
        virtual_stages=virtual,
        first_layers=first,
        last_layers=last,
        sequence_parallel=draw(st.booleans()),
        offload_optimizer=draw(st.booleans()),
    )
    shape = replace(
        MIXTRAL,
        num_layers=sum(lengths),
        num_kv_heads=tp * draw(few),
        ffn_size=tp * draw(few),
        num_experts=ep * draw(few) if ep > 1 else draw(st.sampled_from([0, 8])),
    )
    seq_len = (2 * cp if cp > 1 else 1) * (tp if plan.sequence_parallel else 1) * draw(few)
    batch = dp * num_micro_batches * plan.batch_per_device
    return plan, Workload(shape, seq_len, batch, 1), p * tp * cp * dp


@st.composite
def judged(draw: st.DrawFn) -> tuple[list[Plan], Workload, int]:
    """Draw a workload, devices, and plans of which some suit them and others do not, in a field or two."""
    plan, workload, num_devices = draw(suited())
    names = st.lists(st.sampled_from([own.name for own in PLAN_FIELDS]), max_size=2)
    others = st.builds(
        lambda other, changed: replace(plan, **{name: getattr(other, name) for name in changed}),
        plans(small, st.integers(1, 7)),
        names,
    )
    shape = workload.shape
    sizes = ("num_layers", "num_kv_heads", "ffn_size")
    grown = draw(st.sampled_from([{}, {}, {}, {}, *({name: getattr(shape, name) + 1} for name in sizes)]))
    changed = replace(
        workload, shape=replace(shape, **grown), seq_len=workload.seq_len + draw(st.sampled_from([0, 0, 1]))
    )
    return draw(st.lists(others, min_size=1, max_size=8)), changed, num_devices


@given(
    st.lists(plans(any_degree, any_degree) | plans(any_degree | st.just(1), any_degree), min_size=1, max_size=4),
    st.integers(1, 10**6),
)
def test_huge_plans_do_not_run(drawn: list[Plan], num_devices: int) -> None:
    """Degrees up to their bound are judged as smaller ones are."""
    found = reasons(Plans.of(drawn), WORKLOAD, num_devices)
    assert [reason == "" for reason in found] == [runs(plan, WORKLOAD, num_devices) for plan in drawn]


@given(judged())
def test_a_grid_is_judged_as_its_list(drawn: tuple[list[Plan], Workload, int]) -> None:
    """Plans down and ways to save memory across are judged as each plan of the grid alone is."""
    listed, workload, num_devices = drawn
    flat = Plans.of(listed)
    down = {name: array[:, None] for name, array in flat.arrays.items()}
    across = {"recomputation": np.array([[0, 2, 2]]), "recomputed_layers": np.array([[0, 0, 2]])}
    grid = Plans(**(down | across))
    alone = [reasons(Plans.of([grid[i]]), workload, num_devices)[0] for i in range(len(grid))]
    assert reasons(grid, workload, num_devices) == alone
    assert are_legal(grid, workload, num_devices).tolist() == np.reshape([not r for r in alone], grid.shape).tolist()


def test_products_beyond_64_bits_do_not_wrap() -> None:
    """A plan whose rows, or whose devices, exceed 64 bits has a reason against it."""
    rows = Plan(num_micro_batches=2**31 - 1, batch_per_device=2**30 + 1)  # 8 times that is 2**64 + the batch below
    devices = Plan(num_stages=2**30, tp=2**30, cp=2**4)
    workload = Workload(LLAMA, 1024, 8 * (2**30 - 1), 10)
    assert all(reasons(Plans.of([rows, devices]), workload, 8))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(num_stages=3, tp=2), "num_stages * tp * cp = 3 * 2 * 1 does not divide 16 devices; use divisors of it"),
        (
            Plan(num_micro_batches=2),
            (
                "data_parallel * num_micro_batches * batch_per_device = 16 * 2 * 1 = 32 is not the global batch 64; "
                "change one of them"
            ),
        ),
        (
            Plan(num_stages=2, num_micro_batches=8, virtual_stages=3, schedule="interleaved"),
            (
                "num_stages * virtual_stages = 2 * 3 does not divide num_layers=32 of 'meta-llama/Meta-Llama-3-8B'; "
                "use one of [1, 2, 4, 8, 16, 32]"
            ),
        ),
        (
            Plan(num_stages=4, num_micro_batches=16, first_layers=7),
            (
                "first_layers=7 and last_layers=0 leave num_layers=32 of 'meta-llama/Meta-Llama-3-8B' no equal stages "
                "between; give both, with one chunk per stage"
            ),
        ),
        (
            Plan(num_stages=4, num_micro_batches=16, first_layers=7, last_layers=6),
            (
                "first_layers=7 and last_layers=6 leave num_layers=32 of 'meta-llama/Meta-Llama-3-8B' no equal stages "
                "between; give both, with one chunk per stage"
            ),
        ),
        (
            Plan(num_stages=4, num_micro_batches=2, batch_per_device=8),
            "num_micro_batches=2 is fewer than num_stages=4; 1f1b needs at least as many",
        ),
        (
            Plan(num_stages=4, num_micro_batches=2, batch_per_device=8, schedule="zero_bubble"),
            "num_micro_batches=2 is fewer than num_stages=4; zero_bubble needs at least as many",
        ),
        (
            Plan(num_stages=2, num_micro_batches=8, schedule="interleaved"),
            "schedule=interleaved needs num_stages and virtual_stages of 2 or more; set them",
        ),
        (
            Plan(num_micro_batches=4, virtual_stages=2, schedule="interleaved"),
            "schedule=interleaved needs num_stages and virtual_stages of 2 or more; set them",
        ),
        (
            Plan(num_stages=2, num_micro_batches=8, virtual_stages=2),
            "virtual_stages=2 is for schedule=interleaved; use virtual_stages=1",
        ),
        (
            Plan(num_micro_batches=4, schedule="zero_bubble"),
            "schedule=zero_bubble needs num_stages of 2 or more; use schedule=1f1b",
        ),
        (
            Plan(tp=16, num_micro_batches=64),
            "tp=16 does not divide num_kv_heads=8 of 'meta-llama/Meta-Llama-3-8B'; use one of [1, 2, 4, 8]",
        ),
        (Plan(ep=2, num_micro_batches=4), "ep=2: 'meta-llama/Meta-Llama-3-8B' has no experts to share; use ep=1"),
        (
            Plan(num_micro_batches=4, recomputed_layers=2),
            "recomputed_layers=2 is for recomputation=full; leave it out",
        ),
        (
            Plan(num_stages=4, num_micro_batches=16, recomputation="full", recomputed_layers=8),
            "recomputed_layers=8 is all layers of a stage or more; leave it out to repeat all",
        ),
        (
            Plan(num_micro_batches=4, shard_within_node=True, zero_stage=0),
            "shard_within_node=true needs something to shard; use zero_stage of 1 to 3",
        ),
        (Plan(num_stages=4, num_micro_batches=2, batch_per_device=8, schedule="gpipe"), ""),
        (Plan(num_stages=4, num_micro_batches=16, first_layers=7, last_layers=5), ""),
        (Plan(num_stages=4, num_micro_batches=16, virtual_stages=8, schedule="interleaved"), ""),
        (Plan(num_stages=4, num_micro_batches=16, recomputation="full", recomputed_layers=7), ""),
        (Plan(num_micro_batches=4), ""),
    ],
)
def test_reasons(plan: Plan, message: str) -> None:
    """A plan that cannot run says which rule it breaks, and what would keep it."""
    assert reasons(Plans.of([plan]), WORKLOAD, 16) == [message]


def test_stages_that_do_not_divide_the_layers() -> None:
    """Stages hold equal numbers of layers, where nothing else is said."""
    plan = Plan(num_stages=3, num_micro_batches=4, batch_per_device=4)
    (reason,) = reasons(Plans.of([plan]), WORKLOAD, 12)
    assert reason == (
        "num_stages=3 does not divide num_layers=32 of 'meta-llama/Meta-Llama-3-8B'; use one of [1, 2, 4, 8, 16, 32]"
    )


def test_interleaving_takes_rounds_of_micro_batches() -> None:
    """The interleaved schedule runs as many micro-batches in a round as there are stages."""
    plan = Plan(num_stages=4, num_micro_batches=6, virtual_stages=2, schedule="interleaved")
    (reason,) = reasons(Plans.of([plan]), replace(WORKLOAD, global_batch=24), 16)
    assert reason == "num_stages=4 does not divide num_micro_batches=6; schedule=interleaved needs that"


def reason_against(plan: Plan, shape: Shape = LLAMA, seq_len: int = 1024) -> str:
    """Return the reason against a plan on 16 devices with a batch of 64."""
    (reason,) = reasons(Plans.of([plan]), Workload(shape, seq_len, 64, 10), 16)
    return reason


def test_tensor_parallel_divides_the_block_and_the_row() -> None:
    """Tensor parallelism splits the feed-forward block, and with sequence parallelism each row."""
    plan = Plan(num_micro_batches=8, tp=2)
    reason = reason_against(plan, replace(LLAMA, ffn_size=14337))
    assert reason.startswith("tp=2 does not divide ffn_size=14337 of 'meta-llama/Meta-Llama-3-8B'; use one of [1, 3, ")
    assert reason_against(plan, seq_len=1023) == "tp=2 does not divide the 1023 tokens of a row; use a divisor of it"
    assert not reason_against(replace(plan, sequence_parallel=False), seq_len=1023)


def test_context_parallel_divides_the_row_twice() -> None:
    """Each context-parallel rank takes two equal pieces of a row, for equal work under the causal mask."""
    split = "cp={} with tp={} does not split the {} tokens of a row evenly; use smaller degrees"
    assert reason_against(Plan(num_micro_batches=8, cp=2), seq_len=1022) == split.format(2, 1, 1022)
    assert reason_against(Plan(num_micro_batches=16, cp=2, tp=2), seq_len=1022) == split.format(2, 2, 1022)
    assert not reason_against(Plan(num_micro_batches=8, cp=2), seq_len=1020)


def test_expert_parallel_divides_experts_and_ranks() -> None:
    """Expert parallelism splits the experts over data-parallel ranks."""
    shared = "ep=3 does not divide the 8 experts of 'mistralai/Mixtral-8x7B-v0.1'; use a divisor of it"
    assert reason_against(Plan(num_micro_batches=4, ep=3), MIXTRAL) == shared
    few = reason_against(Plan(num_stages=8, num_micro_batches=32, ep=4), MIXTRAL)
    assert few == "ep=4 does not divide data_parallel=2; use a divisor"
    assert not reason_against(Plan(num_micro_batches=4, ep=8), MIXTRAL)
