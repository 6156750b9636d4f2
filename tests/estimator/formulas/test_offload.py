"""Activations that wait in the host's memory."""

import pytest

from estimator import estimate
from estimator.formulas.activations import LAYERS_STAYING
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import layout
from estimator.formulas.machine import Machine
from estimator.formulas.memory import host_bytes, plan_memory
from estimator.formulas.offload import LINK_EFFICIENCY
from estimator.formulas.step import plan_step
from estimator.stack.recipe import Recipe
from estimator.stack.stack import load_stack
from estimator.work.plan import Plan
from estimator.work.shape import load_shape
from hardware.catalog import load_catalog

CATALOG, STACK = load_catalog(), load_stack("generic")
LLAMA = load_shape("meta-llama/Meta-Llama-3-8B")
H100 = Machine.of(CATALOG, CATALOG.flavor_of("h100-sxm-80gb", 8))
EFFICIENCIES = STACK.efficiencies("llama")


def inputs_of(recomputation: str, *, away: bool, stages: int = 1) -> StepInputs:
    """Return what a step of 8 micro-batches is predicted from."""
    plan = Plan(num_stages=stages, num_micro_batches=8, recomputation=recomputation)
    habits = Recipe(offload_activations=away).habits(STACK.habits, LLAMA)
    return StepInputs(LLAMA, 4096, layout(plan, 8, 8), H100, habits)


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("recomputation", ["none", "full"])
def test_two_layers_stay_and_the_host_has_the_rest(recomputation: str, stages: int) -> None:
    """Bytes of the device and of the host add up to what the device would keep, in pipelines too."""
    here, away = (inputs_of(recomputation, away=flag, stages=stages) for flag in (False, True))
    kept, left = (plan_memory(inputs, EFFICIENCIES).first.parts["activations"].item() for inputs in (here, away))
    in_flight = 32 / stages * min(stages, 8)
    assert left == pytest.approx(kept * LAYERS_STAYING / in_flight)
    assert host_bytes(away, EFFICIENCIES).item() == pytest.approx(8 * (kept - left))
    assert host_bytes(here, EFFICIENCIES).item() == 0


def test_what_travels_longer_than_the_device_works_is_waited_for() -> None:
    """All activations of a micro-batch go there and back; the inputs of layers alone hide behind the work."""
    assert H100.node.host is not None
    link = LINK_EFFICIENCY * H100.node.host.link_bytes_per_s
    for recomputation, waits in (("none", True), ("full", False)):
        here, away = (plan_step(inputs_of(recomputation, away=flag), EFFICIENCIES).breakdown for flag in (False, True))
        assert (away["offload"].item() > 0) == waits
        busy = sum(here[name].item() for name in ("matmul", "attention", "elementwise"))
        sent = host_bytes(inputs_of(recomputation, away=True), EFFICIENCIES).item() / 8
        travels = EFFICIENCIES.family_factor * 8 * 2 * sent / link  # the factor is on all seconds of a device
        assert away["offload"].item() == pytest.approx(max(travels - busy, 0))
        assert {**away, "offload": here["offload"]} == here


def test_a_host_that_is_not_known_is_refused() -> None:
    """In one line, which names the node."""
    hostless = next(node for node in CATALOG.nodes if node.host is None)
    with pytest.raises(
        ValueError, match=f"^offload-activations: the host of .* is not known; .* node {hostless.id} in"
    ):
        estimate(accelerator=hostless.accelerator, devices=1, batch=8, offload_activations=True)
