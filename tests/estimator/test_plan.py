import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.plan import MAX_DEGREE, RECOMPUTATIONS, Plan, Plans, moai_space, parse_plan, reasons
from estimator.shape import Shape, load_shape
from estimator.workload import Workload
from hardware.catalog import load_catalog
from hardware.models import Flavor
from tests.strategies import plans, shapes

CATALOG = load_catalog()
LLAMA = load_shape("Meta-Llama-3-8B")
WORKLOAD = Workload(LLAMA, 1024, 64, 10)
KEYS = "num_stages|num_micro_batches|batch_per_device|tp|cp|virtual_stages|recomputation|schedule|distribute_param"
small = st.integers(1, 16)
any_degree = st.integers(1, MAX_DEGREE - 1)


@given(plans(any_degree, any_degree))
def test_text_is_read_back(plan: Plan) -> None:
    """Any plan is the one that its text describes."""
    assert parse_plan(str(plan)) == plan


@given(st.text() | st.from_regex(rf"(({KEYS}|zero_stage)=\w*,?){{1,4}}", fullmatch=True))
def test_any_text_is_a_plan_or_one_line(text: str) -> None:
    """Any text is a plan, or is refused in one line."""
    try:
        plan = parse_plan(text)
    except ValueError as error:
        assert str(error).startswith("plan: ")  # noqa: PT017 - a text that is a plan raises nothing
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - a text that is a plan raises nothing
    else:
        assert parse_plan(str(plan)) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^plan: '' is not key=value; write for example num_stages=2"),
        ("num_stages=2,", r"^plan: '' is not key=value"),
        ("num_stages", r"^plan: 'num_stages' is not key=value"),
        ("tp=2,tp=2", r"^plan: 'tp=2' is given twice; write for example"),
        ("stages=2", r"^plan: unknown key 'stages'; use one of num_stages, .*, zero_stage$"),
        ("tp=0", r"^plan: tp='0' is not a positive integer below 2\*\*31$"),
        ("tp=-1", r"^plan: tp='-1' is not a positive integer"),
        ("tp=1.5", r"^plan: tp='1.5' is not a positive integer"),
        (f"tp={MAX_DEGREE}", r"^plan: tp='2147483648' is not a positive integer"),
        ("num_stages=" + "1" * 5000, r"^plan: num_stages='1+\.\.\. is not a positive integer"),
        ("tp=\N{SUPERSCRIPT TWO}", r"^plan: tp='\\xb2' is not a positive integer"),
        ("recomputation=some", r"^plan: recomputation='some' is not one of none, selective, full, false, true$"),
        ("schedule=zb", r"^plan: schedule='zb' is not one of gpipe, 1f1b$"),
        ("zero_stage=4", r"^plan: zero_stage='4' is not one of 0, 1, 2, 3$"),
        ("distribute_param=yes", r"^plan: distribute_param='yes' is not one of true, false$"),
        ("distribute_param=true,zero_stage=1", r"^plan: distribute_param=true contradicts zero_stage=1; "),
        ("zero_stage=3,distribute_param=false", r"^plan: distribute_param=false contradicts zero_stage=3; "),
    ],
)
def test_text_that_is_no_plan(text: str, message: str) -> None:
    """A text that is no plan is refused with what it says, the rule and the mend."""
    with pytest.raises(ValueError, match=message):
        parse_plan(text)


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        (" num_stages = 2 , tp=4", Plan(num_stages=2, tp=4)),
        ("recomputation=true", Plan(recomputation="full")),
        ("recomputation=false", Plan(recomputation="none")),
        ("distribute_param=false", Plan(zero_stage=0)),
        ("distribute_param=false,zero_stage=2", Plan(zero_stage=2)),
        ("zero_stage=3,distribute_param=true,schedule=gpipe", Plan(schedule="gpipe")),
    ],
)
def test_text_that_is_a_plan(text: str, plan: Plan) -> None:
    """Spaces are free, the platform's words are known, and what is left out takes its default."""
    assert parse_plan(text) == plan


@given(st.lists(plans(any_degree, any_degree), max_size=5))
def test_plans_are_a_sequence(drawn: list[Plan]) -> None:
    """The arrays of plans give each plan back."""
    many = Plans.of(drawn)
    assert [many[i] for i in range(len(many))] == drawn


def runs(plan: Plan, workload: Workload, num_devices: int) -> bool:
    """Whether a plan keeps every rule, in exact integers."""
    model_parallel = plan.num_stages * plan.tp
    dp = num_devices // model_parallel
    return (
        plan.cp == plan.virtual_stages == 1
        and num_devices == dp * model_parallel
        and dp * plan.num_micro_batches * plan.batch_per_device == workload.global_batch
        and workload.shape.num_layers % plan.num_stages == 0
        and workload.shape.num_kv_heads % plan.tp == 0
        and workload.shape.ffn_size % plan.tp == 0
        and workload.seq_len % plan.tp == 0
        and (plan.schedule == "gpipe" or plan.num_micro_batches >= plan.num_stages)
    )


@given(
    shapes(),
    st.lists(plans(st.integers(1, 4), st.integers(1, 2)), min_size=1, max_size=8),
    st.sampled_from([1, 2, 4, 6, 8, 12, 16]),
    st.sampled_from([1, 2, 4, 8, 12, 16]),
)
def test_a_plan_without_a_reason_keeps_the_rules(shape: Shape, drawn: list[Plan], num_devices: int, batch: int) -> None:
    """A plan has no reason against it if and only if it keeps every rule."""
    workload = Workload(shape, 16, batch, 1)
    found = reasons(Plans.of(drawn), workload, num_devices)
    assert [reason == "" for reason in found] == [runs(plan, workload, num_devices) for plan in drawn]


@given(st.lists(plans(any_degree, any_degree | st.just(1)), min_size=1, max_size=4), st.integers(1, 10**6))
def test_huge_plans_do_not_run(drawn: list[Plan], num_devices: int) -> None:
    """Degrees up to their bound are judged as smaller ones are."""
    found = reasons(Plans.of(drawn), WORKLOAD, num_devices)
    assert [reason == "" for reason in found] == [runs(plan, WORKLOAD, num_devices) for plan in drawn]


def test_products_beyond_64_bits_do_not_wrap() -> None:
    """A plan whose rows, or whose devices, exceed 64 bits has a reason against it."""
    rows = Plan(num_micro_batches=2**31 - 1, batch_per_device=2**30 + 1)  # 8 times that is 2**64 + the batch below
    devices = Plan(num_stages=2**30, tp=2**30, cp=2**4)
    workload = Workload(LLAMA, 1024, 8 * (2**30 - 1), 10)
    assert all(reasons(Plans.of([rows, devices]), workload, 8))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(cp=2), "cp=2 is not modelled; use cp=1"),
        (Plan(virtual_stages=2), "virtual_stages=2 is not modelled; use virtual_stages=1"),
        (Plan(num_stages=3, tp=2), "num_stages * tp = 3 * 2 does not divide 16 devices; use divisors of it"),
        (
            Plan(num_micro_batches=2),
            (
                "data_parallel * num_micro_batches * batch_per_device = 16 * 2 * 1 = 32 is not the global batch 64; "
                "change one of them"
            ),
        ),
        (
            Plan(tp=16, num_micro_batches=64),
            "tp=16 does not divide num_kv_heads=8 of 'meta-llama/Meta-Llama-3-8B'; use one of [1, 2, 4, 8]",
        ),
        (
            Plan(num_stages=4, num_micro_batches=2, batch_per_device=8),
            "num_micro_batches=2 is fewer than num_stages=4; 1f1b needs at least as many",
        ),
        (Plan(num_stages=4, num_micro_batches=2, batch_per_device=8, schedule="gpipe"), ""),
        (Plan(num_micro_batches=4), ""),
    ],
)
def test_reasons(plan: Plan, message: str) -> None:
    """A plan that cannot run says which rule it breaks, and what would keep it."""
    assert reasons(Plans.of([plan]), WORKLOAD, 16) == [message]


def test_stages_that_do_not_divide_the_layers() -> None:
    """Stages hold equal numbers of layers."""
    plan = Plan(num_stages=3, num_micro_batches=4, batch_per_device=4)
    (reason,) = reasons(Plans.of([plan]), WORKLOAD, 12)
    assert reason == (
        "num_stages=3 does not divide num_layers=32 of 'meta-llama/Meta-Llama-3-8B'; use one of [1, 2, 4, 8, 16, 32]"
    )


@given(st.sampled_from(CATALOG.flavors), st.integers(1, 4096))
def test_moai_space_holds_the_batch(flavor: Flavor, batch: int) -> None:
    """Every candidate makes the batch, has at most 8 rows per device, and stands once, recomputed and not."""
    space = moai_space(flavor, batch)
    candidates = [space[i] for i in range(len(space))]
    dp = space.data_parallel(flavor.num_devices)
    assert (dp * space.num_micro_batches * space.batch_per_device == batch).all()
    assert all(plan.batch_per_device <= 8 and plan.tp == 1 and plan.zero_stage == 3 for plan in candidates)
    assert len(set(candidates)) == len(candidates)
    both = {RECOMPUTATIONS.index("none"), RECOMPUTATIONS.index("full")}
    assert set(space.recomputation.tolist()) in (both, set())
    assert np.count_nonzero(space.recomputation) * 2 == len(space)


@pytest.mark.parametrize(("flavor", "batch", "count"), [("4xLarge.2048GB", 256, 16), ("8xLarge.4096GB", 512, 24)])
def test_moai_space_is_as_large_as_the_logs_say(flavor: str, batch: int, count: int) -> None:
    """The space has as many candidates as the platform's log prints."""
    assert len(moai_space(CATALOG.flavor(flavor), batch)) == count


def test_moai_space_without_a_pipeline() -> None:
    """On one node the platform runs without a pipeline."""
    space = moai_space(CATALOG.flavor("Large.256GB"), 16)
    assert sorted(set(space.num_stages.tolist())) == [1]
    assert len(space) == 2 * 3  # 1, 2 or 4 micro-batches of 4, 2 or 1 rows


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        (
            Plan(num_stages=2, num_micro_batches=16, recomputation="full"),
            (
                "num_stages : 2, num_micro_batches : 16, batch_per_device : 1, No TP, recomputation : true, "
                "distribute_param : true"
            ),
        ),
        (
            Plan(num_micro_batches=4, batch_per_device=2, tp=4, zero_stage=1),
            (
                "No PP, num_micro_batches : 4, batch_per_device : 2, TP : 4, recomputation : false, "
                "distribute_param : false"
            ),
        ),
    ],
)
def test_platform_line(plan: Plan, line: str) -> None:
    """A plan reads as in the platform's log."""
    assert plan.platform_line() == line


def test_tensor_parallel_divides_the_block_and_the_row() -> None:
    """Tensor parallelism splits the feed-forward block, and with sequence parallelism each row."""
    odd = dataclasses.replace(WORKLOAD.shape, ffn_size=14337)
    plan = Plans.of([Plan(num_micro_batches=8, tp=2)])
    (reason,) = reasons(plan, dataclasses.replace(WORKLOAD, shape=odd), 16)
    assert reason.startswith("tp=2 does not divide ffn_size=14337 of 'meta-llama/Meta-Llama-3-8B'; use one of [1, 3, ")
    (reason,) = reasons(plan, dataclasses.replace(WORKLOAD, seq_len=1023), 16)
    assert reason == "tp=2 does not divide the 1023 tokens of a row; use a divisor of it"
