"""The events of a pipeline, held against torch's own schedules, closed forms, and laws that no schedule breaks."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.schedule import (
    BACKWARD,
    FORWARD,
    WEIGHT_GRADIENT,
    Pass,
    Timeline,
    pass_orders,
    timeline,
)
from estimator.work.plan import SCHEDULES

durations = st.floats(1e-3, 1e2)


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[tuple[tuple[Pass, ...], ...], dict[int, Any]]:
    """Return the passes of each stage of some pipeline, and their seconds by kind and stage."""
    schedule, stages = draw(st.sampled_from(SCHEDULES)), draw(st.integers(1, 6))
    virtual = draw(st.integers(2, 3)) if schedule == "interleaved" else 1
    micro_batches = draw(st.integers(1, 4)) * (stages if schedule == "interleaved" else 1)
    seconds = {kind: np.array(draw(st.lists(durations, min_size=stages, max_size=stages))) for kind in range(3)}
    return pass_orders(schedule, stages, micro_batches, virtual), seconds


def torch_order(kind: str, stages: int, micro_batches: int, virtual: int = 1) -> list[list[tuple[int, int, int]]]:
    """Return the passes that torch runs on each rank: kind, stage of the whole pipeline, micro-batch."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    made = SimpleNamespace(
        pp_group_size=stages,
        _num_stages=stages * virtual,
        n_local_stages=virtual,
        _n_microbatches=micro_batches,
        rank=0,
        number_of_rounds=max(1, micro_batches // stages),
        microbatches_per_round=micro_batches // max(1, micro_batches // stages),
    )
    if virtual > 1:
        plain = getattr(schedules, kind)._calculate_single_rank_operations  # noqa: SLF001
        found = [plain(made, rank) for rank in range(stages)]
    else:
        whole = getattr(schedules, kind)._get_pipeline_order(made)  # noqa: SLF001
        found = [whole[rank] for rank in range(stages)]
    kinds = {"FORWARD": FORWARD, "FULL_BACKWARD": BACKWARD}
    late = kind == "Schedule1F1B"  # tells forward passes 1 to n of its last stage (findings/pipeline-order-of-1f1b.sh)
    return [
        [
            (
                kinds[each.computation_type.name],
                each.stage_index,
                each.microbatch_index
                - (late and each.stage_index == stages - 1 and each.computation_type.name == "FORWARD"),
            )
            for each in rank
            if each is not None and each.computation_type.name in kinds
        ]
        for rank in found
    ]


@pytest.mark.parametrize(
    ("schedule", "name", "virtual"),
    [("gpipe", "ScheduleGPipe", 1), ("1f1b", "Schedule1F1B", 1), ("interleaved", "ScheduleInterleaved1F1B", 3)],
)
@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 2), (2, 6), (4, 4), (4, 12)])
def test_passes_are_those_of_torch(schedule: str, name: str, virtual: int, stages: int, micro_batches: int) -> None:
    """Each stage runs what torch's schedule of that name runs, in the same order."""
    ours = [
        [(each.kind, each.chunk * stages + i, each.micro_batch) for each in own]
        for i, own in enumerate(pass_orders(schedule, stages, micro_batches, virtual))
    ]
    assert ours == torch_order(name, stages, micro_batches, virtual)


@given(pipelines(), st.floats(0, 10))
def test_no_law_of_a_pipeline_is_broken(
    drawn: tuple[tuple[tuple[Pass, ...], ...], dict[int, Any]], transfer_s: float
) -> None:
    """No stage or link is doubly booked, nothing starts before what it needs is there, and each pass runs once."""
    orders, seconds = drawn
    found = timeline(orders, seconds, transfer_s)
    stages, begins, ends = len(orders), {}, {}
    for i, own in enumerate(found.passes):
        assert np.all(own.start_s[1:] >= own.end_s[:-1])
        for kind, chunk, micro_batch, start, end in zip(*own, strict=True):
            key = (kind, chunk * stages + i, micro_batch)
            assert key not in begins
            assert end - start == pytest.approx(seconds[kind][i], rel=1e-9)
            begins[key], ends[key] = start, end
    assert len(begins) == sum(map(len, orders))
    last = max(place for _, place, _ in begins)
    for (kind, place, micro_batch), start in begins.items():
        needed = {
            FORWARD: (FORWARD, place - 1, micro_batch),
            BACKWARD: (BACKWARD, place + 1, micro_batch) if place < last else (FORWARD, place, micro_batch),
            WEIGHT_GRADIENT: (BACKWARD, place, micro_batch),
        }[kind]
        travels = transfer_s if kind != WEIGHT_GRADIENT and stages > 1 and needed[1] != place else 0.0
        assert needed[1] < 0 or start >= ends[needed] + travels - 1e-9
    for own in found.sends:
        for kind in (FORWARD, BACKWARD):
            link = own.kind == kind
            assert np.all(own.start_s[link][1:] >= own.end_s[link][:-1] - 1e-9)


@given(pipelines())
def test_the_step_is_the_critical_path(drawn: tuple[tuple[tuple[Pass, ...], ...], dict[int, Any]]) -> None:
    """From the last pass back, each one begins at the very end of one that it waited for, down to the step's start."""
    orders, seconds = drawn
    found = timeline(orders, seconds)
    ends = {float(end) for own in found.passes for end in own.end_s}
    starts = {
        float(end): float(start) for own in found.passes for start, end in zip(own.start_s, own.end_s, strict=True)
    }
    at = found.seconds
    while at > 0.0:
        at = starts[at]
        assert at == 0.0 or at in ends


@given(pipelines(), st.floats(1, 3))
def test_a_slow_device_delays_and_never_hurries(
    drawn: tuple[tuple[tuple[Pass, ...], ...], dict[int, Any]], ratio: float
) -> None:
    """A stage whose passes take longer ends the step later or at the same time; at most by as much as they do."""
    orders, seconds = drawn
    factors = [np.full(len(own), ratio if i == 0 else 1.0) for i, own in enumerate(orders)]
    usual, slow = timeline(orders, seconds), timeline(orders, seconds, factors=factors)
    assert usual.seconds <= slow.seconds * (1 + 1e-12)
    assert slow.seconds <= (usual.seconds + slow.passes[0].busy_s - usual.passes[0].busy_s) * (1 + 1e-12)


@given(st.integers(1, 6), st.integers(1, 12), durations, durations)
def test_transfers_lengthen_what_fills_and_drains(stages: int, micro_batches: int, each: float, travels: float) -> None:
    """GPipe waits for transfers as it fills and drains: (m + p - 1) t + 2 (p - 1) d, d no longer than a pass."""
    seconds = {kind: np.full(stages, each) for kind in range(3)}
    transfer_s = min(each, travels)
    found = timeline(pass_orders("gpipe", stages, micro_batches), seconds, transfer_s)
    expected = (micro_batches + stages - 1) * 2 * each + 2 * (stages - 1) * transfer_s
    assert found.seconds == pytest.approx(expected)


def test_what_is_held() -> None:
    """A stage holds a micro-batch from its forward pass until its last gradient is made."""
    seconds = {kind: np.ones(2) for kind in range(3)}
    found = timeline(pass_orders("zero_bubble", 2, 3), seconds)
    assert [int(found.held(i)[1].max()) for i in range(2)] == [2, 2]
    assert [int(found.held(i)[1][-1]) for i in range(2)] == [0, 0]


def test_passes_that_wait_for_each_other() -> None:
    """An order in which a stage waits for itself is refused with the stages that cannot go on."""
    backward_first = [Pass(BACKWARD, 0, 0), Pass(FORWARD, 0, 0)]
    with pytest.raises(ValueError, match=r"^schedule: stages 0 wait for each other; reorder their passes$"):
        timeline([backward_first], {FORWARD: np.ones(1), BACKWARD: np.ones(1)})


def test_no_passes_take_no_time() -> None:
    """A pipeline of nothing is over at once."""
    assert Timeline((), ()).seconds == 0.0
