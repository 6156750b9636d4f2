from dataclasses import replace
from pathlib import Path

import pytest

from estimator.work.plan import Plans
from estimator.work.rules import reasons
from estimator.work.trainer_limits import untrainable_reason
from estimator.work.workload import Workload
from tests.parity.cases import CASES, GLOBAL_BATCH, QUICK_STEPS, Case
from tests.parity.compare import PACKED_ROW, ROW, Work
from trainer.prepare import trainable_shape
from trainer.source import find_model


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Return what all plans train."""
    return Work(tmp_path_factory.mktemp("parity"), QUICK_STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.quick], ids=lambda case: case.name)
def test_a_plan_trains_as_the_plain_loop(case: Case, work: Work, tmp_path: Path) -> None:
    """Losses, gradient norms, held-out loss and exported weights are those of one plain Hugging Face loop."""
    found, most = work.difference(case, tmp_path), case.tolerance
    assert found.loss <= most.loss
    assert found.norm <= most.norm
    assert found.weight <= most.weight


@pytest.mark.slow
def test_the_plain_loop_learns(work: Work) -> None:
    """The run that plans are held against has a falling loss, clipped gradients, and other weights at its end."""
    trained = work.plain("mistral", "fp32", packing=False)
    assert trained.losses[-1] < trained.losses[0]
    assert max(trained.norms) > 1
    assert len(set(trained.norms)) == QUICK_STEPS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_plan_of_the_list_is_one_the_command_takes(case: Case, work: Work) -> None:
    """The layout and the trainer allow each plan that is compared."""
    shape = trainable_shape(find_model(str(work.files(case.model) / "checkpoint"), 1))
    shape = replace(shape, lora_rank=4 * case.adapters)
    workload = Workload(shape, PACKED_ROW if case.packing else ROW, GLOBAL_BATCH, 1)
    assert reasons(Plans.of([case.plan]), workload, case.world) == [""]
    assert untrainable_reason(case.plan, shape) == ""


def test_the_list_covers_every_dimension() -> None:
    """Each value of each dimension that the trainer has is trained, in the part that the tests run too."""
    for cases in (CASES, [case for case in CASES if case.quick]):
        plans = [case.plan for case in cases]
        assert {plan.schedule for plan in plans if plan.num_stages > 1} == {
            "gpipe",
            "1f1b",
            "interleaved",
            "zero_bubble",
        }
        assert {plan.recomputation for plan in plans} == {"none", "selective", "full"}
        assert {plan.sequence_parallel for plan in plans if plan.tp > 1} == {True, False}
        assert {case.packing for case in cases} == {True, False}
        assert any(plan.first_layers for plan in plans)
    dp = {case.plan.zero_stage for case in CASES if case.world > case.plan.num_stages * case.plan.tp}
    assert dp == {0, 1, 2, 3}
