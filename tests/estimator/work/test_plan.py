import inspect
from dataclasses import asdict, fields
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import estimator.work.plan as plan_module
from estimator.work.plan import MAX_DEGREE, Plan, Plans, is_whole, parse_fields, parse_plan, plan_from_document
from tests.support.strategies import plans

KEYS = "|".join([*(field.name for field in fields(Plan)), "distribute_param"])
any_degree = st.integers(1, MAX_DEGREE - 1)


@given(plans(any_degree, any_degree))
def test_text_is_read_back(plan: Plan) -> None:
    """Any plan is the one that its text describes."""
    assert parse_plan(str(plan)) == plan


@given(plans(any_degree, any_degree), any_degree)
def test_documents_are_read_back(plan: Plan, data_parallel: int) -> None:
    """Any plan is the one that its document describes, under the document's keys and under its own."""
    assert plan_from_document(plan.document(data_parallel)) == plan
    assert plan_from_document(asdict(plan)) == plan
    assert parse_plan(plan.document(data_parallel)["text"]) == plan


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"num_micro_batches": 1}, r"num_stages\n *Field required"),
        ({"tensor_parallel": 2.0}, r"tensor_parallel\n *Input should be a valid integer"),
        ({"tp": 0}, r"tp\n *Input should be greater than or equal to 1"),
        ({"schedule": "zb"}, r"schedule\n *Input should be 'gpipe', '1f1b', 'interleaved' or 'zero_bubble'"),
        ({"sequence_parallel": 1}, r"sequence_parallel\n *Input should be a valid boolean"),
        ({"zero_stage": None}, r"^zero_stage is missing, and distribute_param too; add one of them$"),
        ({"distribute_param": False}, r"^distribute_param = False contradicts zero_stage = 3; true is stage 3$"),
    ],
)
def test_document_that_is_no_plan(document: dict[str, object], message: str) -> None:
    """A document without a key, with a value of another kind or a contradiction is refused, and says which."""
    whole = {} if "num_micro_batches" in document else asdict(Plan())
    whole.pop(*document, None)
    with pytest.raises(ValueError, match=message):
        plan_from_document(whole | document)


def test_keys_of_a_document_stand_in_their_order() -> None:
    """The keys of `estimate/1` and `steps/1`, in the order in which they came to be."""
    keys = (
        "num_stages num_micro_batches batch_per_device data_parallel tensor_parallel context_parallel recomputation "
        "distribute_param zero_stage schedule virtual_stages first_layers last_layers expert_parallel "
        "sequence_parallel recomputed_layers shard_within_node offload_optimizer text"
    )
    assert list(Plan().document(1)) == keys.split()


@given(st.text() | st.from_regex(rf"(({KEYS})=\w*,?){{1,4}}", fullmatch=True))
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
        ("stages=2", r"^plan: unknown key 'stages'; use one of num_stages, .*, offload_optimizer$"),
        ("tp=0", r"^plan: tp='0' is not a positive integer below 2\*\*31$"),
        ("tp=-1", r"^plan: tp='-1' is not a positive integer"),
        ("tp=1.5", r"^plan: tp='1.5' is not a positive integer"),
        ("recomputed_layers=0", r"^plan: recomputed_layers='0' is not a positive integer"),
        ("first_layers=few", r"^plan: first_layers='few' is not a positive integer"),
        (f"tp={MAX_DEGREE}", r"^plan: tp='2147483648' is not a positive integer"),
        ("num_stages=" + "1" * 5000, r"^plan: num_stages='1+\.\.\. is not a positive integer"),
        ("tp=\N{SUPERSCRIPT TWO}", r"^plan: tp='\\xb2' is not a positive integer"),
        ("recomputation=some", r"^plan: recomputation='some' is not one of none, selective, full, false, true$"),
        ("schedule=zb", r"^plan: schedule='zb' is not one of gpipe, 1f1b, interleaved, zero_bubble$"),
        ("shard_within_node=1", r"^plan: shard_within_node='1' is not one of true, false$"),
        ("sequence_parallel=no", r"^plan: sequence_parallel='no' is not one of true, false$"),
        ("offload_optimizer=cpu", r"^plan: offload_optimizer='cpu' is not one of true, false$"),
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
        (
            "schedule=interleaved,virtual_stages=2,cp=2,ep=4,shard_within_node=true",
            Plan(schedule="interleaved", virtual_stages=2, cp=2, ep=4, shard_within_node=True),
        ),
        (
            "recomputation=full,recomputed_layers=3,sequence_parallel=false,offload_optimizer=true",
            Plan(recomputation="full", recomputed_layers=3, sequence_parallel=False, offload_optimizer=True),
        ),
        (
            "num_stages=2,first_layers=7,last_layers=9,schedule=zero_bubble",
            Plan(num_stages=2, first_layers=7, last_layers=9, schedule="zero_bubble"),
        ),
    ],
)
def test_text_that_is_a_plan(text: str, plan: Plan) -> None:
    """Spaces are free, the platform's words are known, and what is left out takes its default."""
    assert parse_plan(text) == plan


@given(plans(any_degree, any_degree))
def test_text_names_what_is_unusual(plan: Plan) -> None:
    """A text names the platform's own fields, and each other field exactly where it differs from a plain plan's."""
    named = {item.partition("=")[0] for item in str(plan).split(",")}
    usual = Plan(zero_stage=3 if plan.distribute_param else 0)
    always = {"num_stages", "num_micro_batches", "batch_per_device", "tp", "recomputation"}
    unusual = {f.name for f in fields(Plan) if getattr(plan, f.name) != getattr(usual, f.name)}
    assert named == always | unusual | {"distribute_param"}


@given(st.lists(plans(any_degree, any_degree), max_size=5))
def test_plans_are_a_sequence(drawn: list[Plan]) -> None:
    """The arrays of plans give each plan back."""
    many = Plans.of(drawn)
    assert [many[i] for i in range(len(many))] == drawn


lists = st.lists(plans(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5)
from_either = st.lists(st.booleans(), min_size=len(fields(Plan)), max_size=len(fields(Plan)))


@given(lists, lists, from_either, st.sampled_from([1, 2, 12, 16, 60]))
def test_a_grid_is_its_list(down: list[Plan], across: list[Plan], is_across: list[bool], num_devices: int) -> None:
    """A grid of fields of shape (g, 1) and (1, w) holds each of the g w plans, row by row."""
    rows, columns = Plans.of(down), Plans.of(across)
    names = [field.name for field in fields(Plans)]
    of_grid = {
        name: getattr(columns, name)[None, :] if turned else getattr(rows, name)[:, None]
        for name, turned in zip(names, is_across, strict=True)
    }
    grid = Plans(**of_grid)
    source = dict(zip(names, is_across, strict=True))
    listed = [
        Plan(**{name: getattr(right if source[name] else left, name) for name in names})
        for left in (down if not all(is_across) else down[:1])
        for right in (across if any(is_across) else across[:1])
    ]
    flat = Plans.of(listed)
    assert len(grid) == len(flat) == len(listed)
    assert [grid[i] for i in range(len(grid))] == listed
    degrees = np.broadcast_to(grid.data_parallel(num_devices), grid.shape).ravel()
    np.testing.assert_array_equal(degrees, flat.data_parallel(num_devices))


@given(plans(st.integers(1, 12), st.integers(1, 12)), st.integers(1, 100))
def test_data_parallel_ranks_are_what_is_left(plan: Plan, num_devices: int) -> None:
    """Data parallelism takes the devices that stages, tensor and context parallelism leave; 0 where they do not fit."""
    taken = plan.num_stages * plan.tp * plan.cp
    expected = num_devices // taken if num_devices % taken == 0 else 0
    assert Plans.of([plan]).data_parallel(num_devices).tolist() == [expected]


def module_with(field: str) -> ModuleType:
    """Return the module of plans whose source names one field more, in one line."""
    source, before = inspect.getsource(plan_module), "    schedule: NameT = "
    assert source.count(before) == 1
    module = ModuleType("wider_plans")
    exec(source.replace(before, f"    {field}\n{before}"), module.__dict__)  # noqa: S102 - our own source
    return module


@pytest.mark.parametrize(
    ("field", "value", "text", "key", "number", "word", "wrong"),
    [
        (
            'wp: CountT = _usually(1, key="window_parallel", brief="wp")',
            4, "wp=4", "window_parallel", 4, "wp4", "wp='no' is not a positive integer",
        ),
        (
            'packs: FlagT = _usually(False, brief="packs")',
            True, "packs=true", "packs", True, "packs", "packs='no' is not one of true, false",
        ),
        (
            'order: NameT = _usually("near", ("far", "near"), brief="is-")',
            "far", "order=far", "order", 0, "is-far", "order='no' is not one of far, near",
        ),
    ],
)  # fmt: skip
def test_a_field_is_named_in_one_place(
    field: str, value: object, text: str, key: str, number: int, word: str, wrong: str
) -> None:
    """A field more in `PlanFields` is in texts, documents, arrays, briefs and messages, and nothing else changes."""
    name, wider = field.partition(":")[0], module_with(field)
    plan, usual = wider.parse_plan(f"num_stages=2,{text}"), wider.Plan(num_stages=2)
    assert plan == wider.Plan(num_stages=2, **{name: value}) != usual
    assert str(plan) == f"{Plan(num_stages=2)},{text}"
    assert str(usual) == str(Plan(num_stages=2))
    document = plan.document(3)
    assert document == Plan(num_stages=2).document(3) | {key: value, "text": str(plan)}
    assert wider.plan_from_document(document) == wider.plan_from_document(asdict(plan)) == plan
    table = wider.Plans.of([plan, usual])
    assert (len(table), table[0], table[1]) == (2, plan, usual)
    assert getattr(table, name)[0] == number != getattr(table, name)[1]
    assert set(plan.brief(3).split()) == {*Plan(num_stages=2).brief(3).split(), word}
    with pytest.raises(ValueError, match=wrong):
        wider.parse_plan(f"{name}=no")
    with pytest.raises(ValueError, match=rf"use one of .*\b{name}\b"):
        wider.parse_plan("no=1")


def test_what_is_left_out_is_usual() -> None:
    """Arrays of some fields alone are of plans that are as usual in the others."""
    grid = Plans(tp=np.array([[1], [2]]), cp=np.array([[1, 3]]))
    assert [grid[i] for i in range(len(grid))] == [Plan(tp=tp, cp=cp) for tp in (1, 2) for cp in (1, 3)]


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
            Plan(num_micro_batches=4, batch_per_device=2, tp=4, zero_stage=0),
            (
                "No PP, num_micro_batches : 4, batch_per_device : 2, TP : 4, recomputation : false, "
                "distribute_param : false"
            ),
        ),
    ],
)
def test_platform_line(plan: Plan, line: str) -> None:
    """A plan reads as in the platform's log, and that line is read back."""
    assert plan.platform_line() == line
    assert parse_plan(line) == plan
    assert is_whole(parse_fields(line))


@given(plans(any_degree, any_degree))
def test_no_line_leaves_out_what_a_plan_says(plan: Plan) -> None:
    """Where the platform's line cannot tell all of a plan, its own text is printed; both are read back as the plan."""
    assert parse_plan(plan.platform_line()) == plan == Plan(**parse_fields(str(plan)))
    assert is_whole(parse_fields(str(plan)))


def test_what_is_given_of_a_plan_is_no_whole_plan() -> None:
    """A text with a field or two tells these alone."""
    assert parse_fields("tp=8,zero_stage=1") == {"tp": 8, "zero_stage": 1}
    assert parse_fields("distribute_param=false") == {"zero_stage": 0}
    assert not is_whole(parse_fields("num_stages=2,num_micro_batches=16"))


@pytest.mark.parametrize(
    ("plan", "brief"),
    [
        (Plan(num_micro_batches=4), "dp2 4x1 zero3"),
        (
            Plan(num_stages=2, tp=4, ep=2, cp=8, schedule="interleaved", virtual_stages=3),
            "pp2 tp4 cp8 ep2 dp2 1x1 interleaved3 zero3",
        ),
        (
            Plan(num_stages=4, first_layers=7, last_layers=5, zero_stage=1, shard_within_node=True),
            "pp4(7-5) dp2 1x1 1f1b zero1/node",
        ),
        (Plan(recomputation="full", recomputed_layers=3, sequence_parallel=False), "dp2 1x1 full/3 zero3 no-sp"),
    ],
)
def test_brief(plan: Plan, brief: str) -> None:
    """A plan's brief has its degrees above 1, its micro-batches, and what is not usual of the rest."""
    assert plan.brief(2) == brief
